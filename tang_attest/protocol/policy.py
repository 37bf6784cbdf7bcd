"""Step 4: a :class:`VerifiedQuote` becomes a :class:`Permit`, or a refusal with every reason.

:func:`ReferencePolicy.appraise` is the only maker of a :class:`Permit` (tests/test_architecture.py keeps it
so), and :func:`tang_attest.protocol.exchange.respond` takes nothing else.  An empty policy refuses.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import datetime
from typing import Final

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.quote import VerifiedQuote, advance
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.protocol.rules import RuleSet
from tang_attest.protocol.signed_values.examine import NOTHING, Brought, Examination, Quoted, examine
from tang_attest.protocol.signed_values.signer import Signers
from tang_attest.protocol.values.pcr import PcrValues, Selection

#: systemd extends the volume key into this PCR; we extend it once the initrd's last volume is open.
DEFAULT_CAP_PCR: Final = 15
#: Firmware, boot loader, kernel, Secure Boot, command line, initrd and the cap.  If nothing is measured into one of them, its value is zero and it costs nothing; leaving out 8 and 9 would leave out the
#: initrd under GRUB.
DEFAULT_SELECTION: Final = "sha256:0,2,4,7,8,9,15"
#: PC Client Platform TPM Profile: 16 (debug) and 23 (application) can be reset by software at any time.
RESETTABLE_PCRS: Final = frozenset({16, 23})


@dataclass(frozen=True, slots=True)
class Permit:
    """The policy's word that Y may be computed once: for the request that ``binding`` names.

    ``state`` is the reference state that the quote met.
    """

    binding: bytes
    state: ReferenceState


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """Permits a quote that equals one of its reference states exactly.

    ``trust_predictions`` lets the values count that machines announce for their next boot; without it they
    wait for the operator (docs/threat-model.md explains the trade).  The PCRs that ``rules`` judge by the
    events of a log are not compared by value; every rule has to pass as well.  A statement of one of ``signers``
    stands for the values of the PCRs that it names; the rest of the quote has to equal a state that counts.
    """

    name: str
    selection: Selection
    cap_pcr: int
    states: tuple[ReferenceState, ...]
    trust_predictions: bool = False
    _: KW_ONLY
    conditions: Conditions = field(default_factory=Conditions)
    rules: RuleSet | None = None
    signers: Signers = field(default_factory=Signers)

    def appraise(
        self, quote: VerifiedQuote, now: datetime, event_log: bytes = b"", brought: Brought = NOTHING
    ) -> Permit:
        """(12) The policy: permit, or raise :class:`Refused` with every PCR that differs from the nearest
        state.

        Codes: ``policy-empty``, ``capped``, ``pcr-mismatch``, and for values of a state that does not count
        at *now* ``state-proposed``, ``state-retired``, ``state-not-rolled-out``, ``state-expired``,
        ``state-used-up``; with rules also those of :meth:`RuleSet.check` over *event_log*, and with signers those
        that begin with ``statement-``.  A quote over another selection is a programming error and raises
        :class:`ValueError`.
        """
        if quote.selection != self.selection:
            raise ValueError("a policy appraises only quotes over its own selection")
        return Permit(
            quote.binding, self.judge(quote.device.name, quote.values, now, event_log, brought=brought)
        )

    def judge(
        self,
        device: str,
        values: PcrValues,
        now: datetime,
        event_log: bytes = b"",
        *,
        brought: Brought = NOTHING,
    ) -> ReferenceState:
        """The state that permits *values* of *device*, which proves nothing: for trying a policy on old
        evidence.

        Its ``signed`` is set if signed values of *brought* took the place of some of its own.  Raises as
        :meth:`appraise`.  *values* are over the policy's selection.
        """
        compared = {pcr: value for pcr, value in values.items() if pcr not in self.judged_pcrs}
        counting = self.counting(device, now)
        met = [
            state
            for state in counting
            if not self._differences(state, compared) and self._superseding(state) is None
        ]
        found = Examination()
        if not met and self.signers:
            # Last: a signature costs more than a comparison.
            found = examine(self.signers, brought, Quoted(self.name, self.selection.bank, values, now))
            met = self._vouched_for(counting, compared, found)
        broken = self._broken_rules(event_log, values)
        if met and not broken:
            # A state without limits first: a use is spent only where nothing else would do.
            return min(met, key=lambda state: state.limits.uses_left is not None)
        reasons = () if met else self._refusal(device, compared, now, found)
        raise Refused.because(*reasons, *broken)

    def _vouched_for(
        self, counting: list[ReferenceState], compared: PcrValues, found: Examination
    ) -> list[ReferenceState]:
        """Return the states that the quote equals once one signed state stands for the PCRs that it names.

        Not two of them: nobody signed their values together.
        """
        return [
            replace(state, signed=signed)
            for signed in found.states
            for state in counting
            if signed.values.keys() >= set(self._differences(state, compared))
            and all(
                signer.name == signed.signer or signed.values.keys() >= set(signer.pcrs)
                for signer in self.signers.superseding(state.created_at)
            )
        ]

    def _superseding(self, state: ReferenceState) -> Reason | None:
        """Return the reason that the values of *state* count only with a signature, or None."""
        for signer in self.signers.superseding(state.created_at):
            sentence = (
                f"State '{state.label}' is older than the newest version of signer '{signer.name}', "
                "which allows no rollback."
            )
            return Reason("statement-rolled-back", sentence)
        return None

    def _refusal(
        self, device: str, compared: PcrValues, now: datetime, found: Examination
    ) -> tuple[Reason, ...]:
        """Return every reason, the most important first.

        A statement's reason comes first where nothing but PCRs that signers may sign differs: there it decides.
        """
        counting = self.counting(device, now)
        states = counting + [
            replace(state, values={**state.values, **signed.values})
            for signed in found.states
            for state in counting
        ]
        superseded = [
            reason
            for state in states
            if not self._differences(state, compared) and (reason := self._superseding(state))
        ]
        reasons = (*found.reasons, *dict.fromkeys(superseded))
        if superseded:
            return reasons
        plain = self._obstacles(device, compared, now) or self._reasons(states, compared)
        signable = {pcr for signer in self.signers.signers for pcr in signer.pcrs}
        decides = any(signable.issuperset(self._differences(state, compared)) for state in states)
        return (*reasons, *plain) if decides else (*plain, *reasons)

    def counting(self, device: str, now: datetime) -> list[ReferenceState]:
        """The states that permit *device* at *now*, in the policy's order."""
        return [state for state in self.states if state.concerns(device) and state.obstacle(now) is None]

    def accepted(self, device: str, now: datetime) -> tuple[BootPart, ...]:
        """Return the parts that nothing covers, and that the operator accepted in states that count for
        *device*.
        """
        chosen = {part for state in self.counting(device, now) for part in state.accepted}
        return tuple(part for part in BootPart if part in chosen)

    @property
    def judged_pcrs(self) -> frozenset[int]:
        """The PCRs that are judged by events, not by value."""
        return frozenset() if self.rules is None else self.rules.judged_pcrs

    def _differences(self, state: ReferenceState, compared: PcrValues) -> tuple[int, ...]:
        return tuple(pcr for pcr in state.differences(compared) if pcr in compared)

    def _broken_rules(self, event_log: bytes, values: PcrValues) -> tuple[Reason, ...]:
        if self.rules is None:
            return ()
        try:
            self.rules.check(event_log, self.selection.bank, values)
        except Refused as refusal:
            return refusal.reasons
        return ()

    def _obstacles(self, device: str, values: PcrValues, now: datetime) -> tuple[Reason, ...]:
        """Return the reasons that states with *values* do not count."""
        equal = (s for s in self.states if s.concerns(device) and not self._differences(s, values))
        return tuple(reason for state in equal if (reason := state.obstacle(now)))

    def _reasons(self, counting: list[ReferenceState], values: PcrValues) -> tuple[Reason, ...]:
        if not counting:
            return (Reason("policy-empty", f"Policy '{self.name}' has no reference state that counts."),)
        nearest = min(counting, key=lambda state: len(self._differences(state, values)))
        different = self._differences(nearest, values)
        mismatches = tuple(_mismatch(pcr, values[pcr], counting) for pcr in different)
        if different == (self.cap_pcr,) and not any(nearest.values[self.cap_pcr]):
            capped = Reason(
                "capped", f"PCR {self.cap_pcr} is extended: this system's disks were opened already."
            )
            return (capped, *mismatches)
        return (Reason("pcr-mismatch", f"{spell_pcrs(different)} not as approved."), *mismatches)


def learned_now(state: ReferenceState, learned_reset_count: int | None, reset_count: int) -> Reason | None:
    """The reason that a learned *state* does not count in the boot that it was learned of; ``None``: it
    counts.

    *learned_reset_count* is the TPM's reset counter in that boot (``None``: the device learned nothing),
    *reset_count* the one of the quote.  A person with the passphrase has to be there in a boot that is
    learned, however often it asks.
    """
    if state.origin != "learned" or learned_reset_count is None:
        return None
    if advance(learned_reset_count, reset_count) > 0:
        return None
    return Reason(
        "state-learned", f"State '{state.label}' was learned in this boot, and counts from the next on."
    )


def _mismatch(pcr: int, value: bytes, counting: list[ReferenceState]) -> Reason:
    got = value.hex()
    expected = sorted({state.values[pcr].hex() for state in counting})
    sentence = f"PCR {pcr} does not match (got {got}, expected {' or '.join(expected)})."
    return Reason("pcr-mismatch", sentence, (("pcr", pcr), ("got", got), ("expected", expected)))


def spell_pcrs(pcrs: tuple[int, ...]) -> str:
    """``PCR 4 is`` or ``PCR 4 and PCR 7 are``: the subject and verb of a sentence about *pcrs*."""
    names = [f"PCR {pcr}" for pcr in pcrs]
    if len(names) == 1:
        return f"{names[0]} is"
    return f"{', '.join(names[:-1])} and {names[-1]} are"


def differing_pcrs(refusal: Refused) -> tuple[int, ...]:
    """The PCR numbers that a refusal names, ascending; empty when it is not about PCRs."""
    numbers = [dict(reason.data).get("pcr") for reason in refusal.reasons]
    return tuple(sorted(number for number in numbers if isinstance(number, int)))


def check_policy_selection(selection: Selection) -> Selection:
    """*selection*, when a policy over it means something.  Raises ``selection-invalid`` for PCR 16 and 23."""
    if resettable := RESETTABLE_PCRS & set(selection.pcrs):
        raise Malformed(
            "selection-invalid",
            f"PCR {', '.join(map(str, sorted(resettable)))} can be reset by software, so it proves nothing.",
        )
    return selection


def check_rules(policy: ReferencePolicy, rules: RuleSet) -> RuleSet:
    """*rules*, when *policy* can ask them.  Raises :class:`Malformed` ``rules-invalid``.

    Every PCR that a rule reads has to be quoted, and the cap is compared by value: nothing logs it.
    """
    if missing := sorted(rules.pcrs - set(policy.selection.pcrs)):
        what = ", ".join(map(str, missing))
        raise Malformed(
            "rules-invalid", f"The rules read PCR {what}, which {policy.selection} does not quote."
        )
    if policy.cap_pcr in rules.judged_pcrs:
        raise Malformed("rules-invalid", f"PCR {policy.cap_pcr} is the cap and is not judged by events.")
    return rules
