"""Verification of a running machine: what its policy is then, and which refusals say something about the
machine.

A machine that runs is not what its initrd was: the cap is extended, and PCR 10 and 11 went on.  Unless the
operator recorded a policy for the running system, :func:`running_policy` makes one from the policy of the
boot.

Rules of this module:

* Three outcomes, never mixed up: *verified*, *refused* (the TPM itself says that something is wrong) and
  *unreachable* (nothing authentic came).
* A refusal that a client without the TPM can cause is no verdict: :data:`VERDICTS` has only what takes the TPM's
  signature over our nonce and cannot be changed on the way.
"""

from __future__ import annotations

import re
from dataclasses import replace
from enum import StrEnum
from typing import Final

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol import cap
from tang_attest.protocol.cap import Opened
from tang_attest.protocol.policy import ReferencePolicy, differing_pcrs
from tang_attest.protocol.reference_state import MOVING_PCRS, ReferenceState
from tang_attest.protocol.values.pcr import PcrValues, Selection

#: The shortest text of a cap: that of a boot in which no volume was open, or of an older initrd.
CAP_EVENT: Final = cap.HEADER
#: The cap PCR after that text alone.
cap_value = cap.cap_value


class RoundOutcome(StrEnum):
    """Outcome of one round."""

    VERIFIED = "verified"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


#: Refusals by :func:`tang_attest.protocol.quote.verify_quote` that count as :attr:`RoundOutcome.REFUSED`; the
#: policy's all do. Not here: `signature-invalid`, `quote-invalid` and `qualifying-data-mismatch`, which any
#: client can cause with its own bytes; `pcr-digest-mismatch`, because the values are not signed and may be
#: changed on the way; `clock-backwards` and `reset-count-backwards`, which count only for some nonces (see
#: :mod:`tang_attest.service.rounds.verify`).
VERDICTS: Final = frozenset({"selection-mismatch"})

#: Kinds of TPMs that are reached; not `cmd:`, which would run whatever the text says.
_TCTI: Final = re.compile(r"(?:swtpm|mssim|device|tabrmd)(?::[A-Za-z0-9=,./_@:-]{0,200})?")
_HANDLE: Final = re.compile(r"0x81[0-9A-Fa-f]{6}")


def check_reach(tcti: str, ak_handle: str) -> None:
    """Raise ``setting-invalid`` unless these name a TPM and a persistent key there."""
    if not _TCTI.fullmatch(tcti):
        raise Malformed("setting-invalid", "A TCTI is swtpm:..., mssim:..., device:... or tabrmd:....")
    if not _HANDLE.fullmatch(ak_handle):
        raise Malformed("setting-invalid", "An AK's handle is persistent, such as 0x81010002.")


#: Refusals by a policy's rules that are no verdict either: a log or a list is not signed, and may be lost or
#: changed on the way.  `rule-failed` is a verdict, unless another log of the same boot shows that the rules
#: are kept: a type and data that were not measured may be changed on the way in a log that replays.
UNPROVEN: Final = frozenset(
    {
        "log-missing",
        "eventlog-malformed",
        "eventlog-bank-missing",
        "log-replay-mismatch",
        "ima-missing",
        "ima-incomplete",
        "ima-mismatch",
    }
)


def blames_the_log_only(refusal: Refused) -> bool:
    """Return True if nothing in *refusal* is about signed values: another log could have been permitted."""
    return {reason.code for reason in refusal.reasons} <= UNPROVEN | {"rule-failed"}


def running_selection(selection: Selection) -> Selection:
    """*selection* without the PCRs that move while a system runs.

    Raises :class:`Refused` ``selection-invalid`` when nothing is left.
    """
    settled = tuple(pcr for pcr in selection.pcrs if pcr not in MOVING_PCRS)
    if not settled:
        raise Refused("selection-invalid", f"{selection} has no PCR that stays while a system runs.")
    return Selection(selection.bank, settled)


def running_policy(boot: ReferencePolicy) -> ReferencePolicy:
    """The policy *boot*, as a running system shows its states: capped, and without PCR 10 and 11.

    A state that was approved for one boot counts for as long as that boot lasts, and so does an older version of a
    signer or one that a rollout keeps from other machines.  Raises
    ``selection-invalid``, also when the policy's rules read a PCR that moves: the log does not say how it
    moved.
    """
    selection = running_selection(boot.selection)
    if boot.rules is not None and not boot.rules.pcrs <= set(selection.pcrs):
        sentence = f"The rules of policy '{boot.name}' read a PCR that moves while a system runs."
        raise Refused("selection-invalid", sentence)
    states = tuple(_running(state, selection, boot.cap_pcr) for state in boot.states)
    return replace(boot, selection=selection, states=states, signers=boot.signers.while_running())


def recorded_policy(recorded: ReferencePolicy, boot: ReferencePolicy) -> ReferencePolicy:
    """The policy *recorded* of a running system, for a machine that *boot* lets unlock.

    The signers of *boot* count in it: what they vouched for at the unlock is what runs.  So an update that is signed
    need not be recorded again.
    """
    signers = recorded.signers.with_those_of(boot.signers.while_running())
    return replace(recorded, cap_pcr=boot.cap_pcr, signers=signers)


def _running(state: ReferenceState, selection: Selection, cap_pcr: int) -> ReferenceState:
    values = {pcr: state.values[pcr] for pcr in selection.pcrs if pcr in state.values}
    if cap_pcr in values and not any(values[cap_pcr]):
        values[cap_pcr] = cap_value(selection.bank)
    return replace(state, values=values, limits=replace(state.limits, uses_left=None))


# --- the cap's text -----------------------------------------------------------------------------------------


def with_cap(selection: Selection, cap_pcr: int) -> Selection:
    """*selection* and the cap PCR."""
    return Selection(selection.bank, tuple(sorted({cap_pcr, *selection.pcrs})))


def read_cap(events: bytes | None, selection: Selection, values: PcrValues, cap_pcr: int) -> Opened:
    """Return the statements that the cap's texts *events* prove, beside the quoted *values* of *selection*;
    see :func:`cap.read`.
    """
    if cap_pcr not in values:
        return cap.untold(f"PCR {cap_pcr} is not quoted")
    return cap.read(events, selection.bank, values[cap_pcr])


def as_capped(policy: ReferencePolicy, values: PcrValues, opened: Opened) -> PcrValues:
    """*values* as the states of a running *policy* have them: a cap is a cap, whatever volumes its text
    names.

    A state that has the very value of the cap PCR keeps being met by it.
    """
    value = values.get(policy.cap_pcr)
    if value is None or not opened.explained:
        return values
    if any(state.values.get(policy.cap_pcr) == value for state in policy.states):
        return values
    return {**values, policy.cap_pcr: cap_value(policy.selection.bank)}


def recordable(values: PcrValues, selection: Selection, cap_pcr: int, *, explained: bool) -> PcrValues:
    """*values* of *selection* alone, as a state of a running policy keeps them: an *explained* cap names no
    volume.
    """
    kept = {pcr: values[pcr] for pcr in selection.pcrs}
    return kept | {cap_pcr: cap_value(selection.bank)} if explained and cap_pcr in kept else kept


def cap_missing(cap_pcr: int, values: PcrValues) -> Reason | None:
    """Return the reason that the cap PCR is quoted and was never extended, or ``None``."""
    if cap_pcr not in values or any(values[cap_pcr]):
        return None
    return Reason(
        "cap-missing",
        "This machine did not extend its cap: its initrd has no hook, or it has not rebooted since binding;"
        f" PCR {cap_pcr} is zero.",
    )


def with_cause(
    refusal: Refused, policy: ReferencePolicy, values: PcrValues, opened: Opened, *, required: bool
) -> Refused:
    """*refusal*; where the cap PCR is in the way, with the reason for its value.

    A cap PCR that was never extended is named whatever else differs.  If it is extended and nothing else differs,
    the reason is that nothing explains its value; it comes first where *policy* requires an explanation.
    """
    differing = differing_pcrs(refusal)
    if (missing := cap_missing(policy.cap_pcr, values)) is not None and policy.cap_pcr in differing:
        return Refused.because(*refusal.reasons, missing)
    extended = any(values.get(policy.cap_pcr, b""))
    reason = None if opened.explained or not extended else opened.obstacle()
    if reason is None or differing != (policy.cap_pcr,):
        return refusal
    return Refused.because(*((reason, *refusal.reasons) if required else (*refusal.reasons, reason)))
