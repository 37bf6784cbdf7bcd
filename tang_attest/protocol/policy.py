"""Step 4: a :class:`VerifiedQuote` becomes a :class:`Permit`, or a refusal with every reason.

:func:`ReferencePolicy.appraise` is the only maker of a :class:`Permit` (tests/test_architecture.py keeps it so),
and :func:`tang_attest.protocol.exchange.respond` takes nothing else.  An empty policy refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol.pcr import PcrValues, Selection, check_values, nothing_measured
from tang_attest.protocol.quote import VerifiedQuote

#: systemd extends the volume key into this PCR; we extend it once the initrd's last volume is open.
DEFAULT_CAP_PCR: Final = 15
#: Firmware, boot loader, kernel, Secure Boot, command line, initrd and the cap.  Where something measures nothing into
#: one of them, its value is zero and it costs nothing; leaving out 8 and 9 would leave out the initrd under GRUB.
DEFAULT_SELECTION: Final = "sha256:0,2,4,7,8,9,15"
#: PC Client Platform TPM Profile: 16 (debug) and 23 (application) can be reset by software at any time.
RESETTABLE_PCRS: Final = frozenset({16, 23})
#: What moves between the initrd and the running system besides the cap: IMA's list and systemd's boot phases.
MOVING_PCRS: Final = frozenset({10, 11})


@dataclass(frozen=True, slots=True)
class ReferenceState:
    """One set of values that is approved: what the machine's software looks like to its TPM.

    ``origin`` says where the values came from: ``recorded`` at enrollment, ``learned`` by the one armed use,
    ``observed`` (an approved observation) or ``imported`` from a file.
    """

    label: str
    values: PcrValues
    origin: str

    def differences(self, values: PcrValues) -> tuple[int, ...]:
        """The PCRs, ascending, in which *values* is not this state."""
        return tuple(pcr for pcr, value in sorted(self.values.items()) if values.get(pcr) != value)


@dataclass(frozen=True, slots=True)
class Permit:
    """The policy's word that Y may be computed once: for the request that ``binding`` names.

    ``state`` is the label of the reference state that the quote met.
    """

    binding: bytes
    state: str


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """Permits a quote that equals one of its reference states exactly."""

    name: str
    selection: Selection
    cap_pcr: int
    states: tuple[ReferenceState, ...]

    def appraise(self, quote: VerifiedQuote) -> Permit:
        """(12) The policy: permit, or raise :class:`Refused` with every PCR that differs from the nearest state.

        Codes: ``policy-empty``, ``capped``, ``pcr-mismatch``.  A quote over another selection is a programming
        error and raises :class:`ValueError`.
        """
        if quote.selection != self.selection:
            raise ValueError("a policy appraises only quotes over its own selection")
        if not self.states:
            raise Refused("policy-empty", f"Policy '{self.name}' has no reference state yet.")
        for state in self.states:
            if not state.differences(quote.values):
                return Permit(quote.binding, state.label)
        raise Refused.because(*self._reasons(quote.values))

    def _reasons(self, values: PcrValues) -> tuple[Reason, ...]:
        nearest = min(self.states, key=lambda state: len(state.differences(values)))
        different = nearest.differences(values)
        mismatches = tuple(self._mismatch(pcr, values) for pcr in different)
        if different == (self.cap_pcr,) and not any(nearest.values[self.cap_pcr]):
            capped = Reason(
                "capped", f"PCR {self.cap_pcr} is extended: this system's disks were opened already."
            )
            return (capped, *mismatches)
        return (Reason("pcr-mismatch", f"{spell_pcrs(different)} not as approved."), *mismatches)

    def _mismatch(self, pcr: int, values: PcrValues) -> Reason:
        got = values[pcr].hex()
        expected = sorted({state.values[pcr].hex() for state in self.states})
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


def reference_state(
    selection: Selection, label: str, values: PcrValues, origin: str, *, cap_pcr: int, force: bool = False
) -> ReferenceState:
    """A reference state of *values*, checked against *selection*.

    Raises :class:`Malformed` ``values-invalid``, and ``values-all-zero`` (unless *force*) when nothing but the
    cap PCR was ever extended: then nothing measures this machine's boot, and every software looks the same.
    """
    check_values(selection, values)
    measured = {pcr: value for pcr, value in values.items() if pcr != cap_pcr}
    if not force and nothing_measured(measured):
        raise Malformed(
            "values-all-zero", "All values are as a reset leaves them: nothing measured this boot."
        )
    return ReferenceState(label, dict(values), origin)


# --- recording ------------------------------------------------------------------------------------------------------


def unlock_phase_values(quote: VerifiedQuote, cap_pcr: int) -> dict[int, bytes]:
    """The values of a quote made in the running system, as the initrd will show them: the cap PCR is zero then."""
    return {pcr: bytes(len(value)) if pcr == cap_pcr else value for pcr, value in quote.values.items()}


def moving_pcrs(selection: Selection) -> tuple[int, ...]:
    """The selected PCRs whose running value is not the initrd's, and which therefore have to be *learned*."""
    return tuple(pcr for pcr in selection.pcrs if pcr in MOVING_PCRS)


def learnable(stable: Mapping[int, bytes], values: PcrValues) -> bool:
    """True when *values* agrees with everything that was *stable* at enrollment: only moving PCRs are learned."""
    return all(values.get(pcr) == value for pcr, value in stable.items())
