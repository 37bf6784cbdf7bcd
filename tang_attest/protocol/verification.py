"""Verification of a running machine: what its policy is then, and which refusals say something about the machine.

A machine that runs is not what its initrd was: the cap is extended, and PCR 10 and 11 went on.  Unless the operator
recorded a policy for the running system, :func:`running_policy` makes one from the policy of the boot.

Rules of this module:

* Three outcomes, never mixed up: *verified*, *refused* (the TPM itself says that something is wrong) and
  *unreachable* (nothing authentic came).
* What somebody without the TPM can cause is no verdict: :data:`VERDICTS` has only what takes the TPM's signature over
  our nonce and cannot be changed on the way.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from enum import StrEnum
from typing import Final

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol.pcr import Selection
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import MOVING_PCRS, ReferenceState

#: What the initrd extends the cap PCR with, by TPM2_PCR_Event: each bank by its own hash (initrd/clevis-attest-cap).
CAP_EVENT: Final = b"tang-attest/v1 cap\n"


class Outcome(StrEnum):
    """How one round ended."""

    VERIFIED = "verified"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


#: Refusals by :func:`tang_attest.protocol.quote.verify_quote` that count as :attr:`Outcome.REFUSED`; the policy's all do.
#: Not here: `signature-invalid`, `quote-invalid` and `qualifying-data-mismatch`, which anybody can cause with bytes of
#: his own; `pcr-digest-mismatch`, because the values are not signed and may be changed on the way; `clock-backwards`
#: and `reset-count-backwards`, which count only for some nonces (see :mod:`tang_attest.service.verify`).
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


#: Refusals by a policy's rules that are no verdict either: a log or a list is not signed, and may be lost or changed on
#: the way.  `rule-failed` is a verdict, unless another log of the same boot shows that the rules are kept: a type and data
#: that were not measured may be changed on the way in a log that replays.
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
    """Whether nothing in *refusal* is about signed values: another log could have been permitted."""
    return {reason.code for reason in refusal.reasons} <= UNPROVEN | {"rule-failed"}


def cap_value(bank: str) -> bytes:
    """The cap PCR of *bank* after the cap: Extend(0, H(event)) (TPM 2.0 part 1, section 17)."""
    event = hashlib.new(bank, CAP_EVENT).digest()
    return hashlib.new(bank, bytes(len(event)) + event).digest()


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

    A state that was approved for one boot counts for as long as that boot lasts.  Raises ``selection-invalid``, also
    when the policy's rules read a PCR that moves: the log does not say how it moved.
    """
    selection = running_selection(boot.selection)
    if boot.rules is not None and not boot.rules.pcrs <= set(selection.pcrs):
        sentence = f"The rules of policy '{boot.name}' read a PCR that moves while a system runs."
        raise Refused("selection-invalid", sentence)
    states = tuple(_running(state, selection, boot.cap_pcr) for state in boot.states)
    return replace(boot, selection=selection, states=states)


def _running(state: ReferenceState, selection: Selection, cap_pcr: int) -> ReferenceState:
    values = {pcr: state.values[pcr] for pcr in selection.pcrs if pcr in state.values}
    if cap_pcr in values and not any(values[cap_pcr]):
        values[cap_pcr] = cap_value(selection.bank)
    return replace(state, values=values, limits=replace(state.limits, uses_left=None))
