"""Examine the signed values that a machine brought, or that were posted: those that count, and why others do not.

Rules of this module:

* Nothing is raised.  A statement that does not count is as if it were not there, with a reason for the refusal.
* Limits come first: a member beyond them is not read at all.
* Each statement names its key, so each costs one check of a signature at most, and each signer one for a ``.pcrsig``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol.signed_values import pcrsig, statement
from tang_attest.protocol.signed_values.keys import StatementForm
from tang_attest.protocol.signed_values.signed_state import SignedState
from tang_attest.protocol.signed_values.signer import Signer, Signers
from tang_attest.protocol.signed_values.statement import MAX_STATEMENT, ValueStatement
from tang_attest.protocol.values.pcr import PcrValues

#: Statements of one request, and their characters in all.
MAX_STATEMENTS: Final = 8
MAX_TOTAL: Final = 48 * 1024
#: Codes of statements whose values nobody compared, because of their form, their key or their policy.
_NOT_BELIEVED: Final = frozenset({"statement-malformed", "statement-untrusted", "statement-elsewhere"})
#: Digits of ``pol`` in the label of a ``.pcrsig``'s state.
_LABEL_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class Brought:
    """The basis of signed values: member ``signed_values`` of a request, unverified, and a remembered state.

    ``remembered`` vouched for the boot that still runs; it was verified when the machine unlocked.
    """

    member: Mapping[str, object] | None = None
    remembered: SignedState | None = None


#: Nothing was brought.
NOTHING: Final = Brought()


@dataclass(frozen=True, slots=True)
class Quoted:
    """The facts that statements are compared with: policy, bank and values of the quote, and the time."""

    policy: str
    bank: str
    values: PcrValues
    now: datetime


@dataclass(frozen=True, slots=True)
class Examination:
    """``states`` vouch for quoted values and count; ``reasons`` say why others do not."""

    states: tuple[SignedState, ...] = ()
    reasons: tuple[Reason, ...] = ()


def examine(signers: Signers, brought: Brought, quoted: Quoted) -> Examination:
    """Return the states of *brought*, and of the statements that *signers* keep, which vouch for *quoted*."""
    states: dict[tuple[str, str], SignedState] = {}
    reasons: dict[Reason, None] = {}
    for found in _candidates(signers, brought, quoted):
        judged = found if isinstance(found, Reason) else signers.obstacle(found)
        if judged is not None:
            reasons[judged] = None
        elif isinstance(found, SignedState):
            states[found.signer, found.label] = found
    ordered = sorted(reasons, key=_distance)
    return Examination(tuple(states.values()), tuple(ordered))


def _distance(reason: Reason) -> int:
    """Return the place of *reason* among those of other statements; the smallest explains the boot best.

    First come statements about this very boot, then those that were not believed.  Statements about other images lie
    beside the one that was booted.
    """
    if reason.code == "statement-mismatch":
        return 2
    return int(reason.code in _NOT_BELIEVED)


def _candidates(signers: Signers, brought: Brought, quoted: Quoted) -> Iterable[SignedState | Reason]:
    if (remembered := brought.remembered) is not None:
        values = {pcr: value for pcr, value in remembered.values.items() if pcr in quoted.values}
        if all(quoted.values[pcr] == value for pcr, value in values.items()):
            yield remembered
    member = brought.member or {}
    if member.get("pcrsig") is not None:
        yield from _from_pcrsig(signers, member["pcrsig"], quoted)
    for compact in (*_statements(member.get("statements")), *signers.statements):
        yield compact if isinstance(compact, Reason) else _from_statement(signers, compact, quoted)


def _statements(member: object) -> Iterable[str | Reason]:
    """Return the statements of a request, or the reason that they are not read."""
    if member is None:
        return
    problem = None
    if not isinstance(member, list) or not all(isinstance(each, str) for each in member):
        problem = "'statements' is no list of texts."
    elif len(member) > MAX_STATEMENTS:
        problem = f"The machine sent {len(member)} statements; at most {MAX_STATEMENTS} are read."
    elif sum(map(len, member)) > MAX_TOTAL:
        problem = f"The machine's statements have more than {MAX_TOTAL} characters in all."
    if problem is not None:
        yield Reason("statement-malformed", problem)
    elif isinstance(member, list):
        yield from member


# --- .pcrsig ------------------------------------------------------------------------------------------------


def _from_pcrsig(signers: Signers, member: object, quoted: Quoted) -> Iterable[SignedState | Reason]:
    trusted = {signer.key: signer for signer in signers.signers if signer.form is StatementForm.PCRSIG}
    if not trusted:
        # Every unified kernel image of ukify may have one.
        if any(pcrsig.PCR in signer.pcrs for signer in signers.signers):
            yield Reason(
                "statement-untrusted", "The policy trusts no RSA key, and no other key signs a .pcrsig."
            )
        return
    value = quoted.values.get(pcrsig.PCR)
    if quoted.bank != pcrsig.BANK or value is None:
        yield Reason(
            "statement-mismatch", "A .pcrsig is about PCR 11 of the bank sha256, which is not quoted."
        )
        return
    found = pcrsig.examine(member, value, trusted)
    for key in found.keys:
        yield _signed_pcr(trusted[key], value)
    if found.obstacle is not None:
        yield found.obstacle


def _signed_pcr(signer: Signer, value: bytes) -> SignedState:
    digits = pcrsig.policy_digest(value).hex()[:_LABEL_DIGITS]
    return SignedState(
        signer=signer.name,
        key=signer.key_id,
        label=f"{signer.label or signer.name}/{digits}",
        version=None,
        values={pcrsig.PCR: value},
    )


# --- statements ---------------------------------------------------------------------------------------------


def verify_for(signers: Signers, compact: str, policy: str, bank: str) -> tuple[Signer, ValueStatement]:
    """Return the statement *compact* and its signer, if one of *signers* signed it for *policy*.

    Raises ``statement-malformed``, ``statement-untrusted``, ``statement-elsewhere``.  Not checked here: time, values
    and scope.
    """
    if len(compact) > MAX_STATEMENT:  # before anything looks at it
        raise Malformed("statement-malformed", f"A statement has at most {MAX_STATEMENT} characters.")
    kid = statement.read_kid(compact)
    for signer in signers.signers:
        if signer.form is StatementForm.STATEMENT and statement.thumbprint_of(signer.key) == kid:
            signed = statement.verify(compact, signer.key)
            _check_place(signed, policy, bank)
            return signer, signed
    raise Refused(
        "statement-untrusted",
        f"The statement is signed with a key that the policy does not trust ({kid[:16]}).",
    )


def _check_place(signed: ValueStatement, policy: str, bank: str) -> None:
    if policy not in signed.policies:
        names = ", ".join(f"'{name}'" for name in signed.policies[:4])
        raise Refused(
            "statement-elsewhere", f"Statement '{signed.label}' is for {names}, not for '{policy}'."
        )
    if signed.bank != bank:
        sentence = f"Statement '{signed.label}' is over the bank {signed.bank}; the policy is over {bank}."
        raise Refused("statement-elsewhere", sentence)


def state_of(signer: Signer, signed: ValueStatement) -> SignedState:
    """Return the state that *signer* vouches for with *signed*."""
    return SignedState(
        signer=signer.name,
        key=signer.key_id,
        label=signed.label,
        version=signed.version,
        values=signed.values,
    )


def _from_statement(signers: Signers, compact: str, quoted: Quoted) -> SignedState | Reason:
    try:
        signer, signed = verify_for(signers, compact, quoted.policy, quoted.bank)
    except (Malformed, Refused) as error:
        return error.reasons[0]
    state = state_of(signer, signed)
    if more := sorted(signed.values.keys() - quoted.values.keys()):
        what = ", ".join(map(str, more))
        sentence = f"Statement '{signed.label}' names PCR {what}, which is not quoted."
        return signer.beyond(state) or Reason("statement-mismatch", sentence)
    different = sorted(pcr for pcr, value in signed.values.items() if quoted.values[pcr] != value)
    if different:
        what = ", ".join(map(str, different))
        return Reason("statement-mismatch", f"Statement '{signed.label}' has another value for PCR {what}.")
    return untimely(signed, quoted.now) or state


def untimely(signed: ValueStatement, now: datetime) -> Reason | None:
    """Return the reason that *signed* does not count at *now*, or None."""
    label, clock = signed.label, f"it is {_spelled(now)} UTC now"
    if now < signed.not_before:
        sentence = f"Statement '{label}' counts from {_spelled(signed.not_before)} UTC on; {clock}."
        return Reason("statement-early", sentence)
    if now >= signed.not_after:
        sentence = f"Statement '{label}' was good until {_spelled(signed.not_after)} UTC; {clock}."
        return Reason("statement-expired", sentence)
    return None


def _spelled(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}"
