"""Reference values over their life: one approved set of PCR values, and whether it counts just now.

    proposed --operator--> staged --first pass--> active --operator--> retired
                recorded, learned, observed ------^

Staged and active states count; several may at once, so that an update and the software before it overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from tang_attest.errors import Malformed, Reason
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.signed_values.signed_state import SignedState
from tang_attest.protocol.values.pcr import PcrValues, Selection, as_reset, check_values, nothing_measured

#: PCRs that move between the initrd and the running system besides the cap: IMA's list and systemd's boot
#: phases.
MOVING_PCRS: Final = frozenset({10, 11})


class Life(StrEnum):
    """Life of a reference state."""

    PROPOSED = "proposed"  # announced by a machine; waits for the operator
    STAGED = "staged"  # approved before any machine showed it
    ACTIVE = "active"
    RETIRED = "retired"


#: Characters of a label.
MAX_LABEL: Final = 64

#: States that permit.
COUNTING: Final = frozenset({Life.STAGED, Life.ACTIVE})


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLimits:
    """Limits of a state; ``None`` everywhere is a state for every device of the policy, for good.

    ``device`` is the only device it is for, ``expires_at`` an aware UTC time, ``uses_left`` how many unlocks
    it still permits, ``rollout`` the rollout that decides which devices it is for: for those,
    :func:`tang_attest.protocol.changes.rollout.judged_by` takes this limit away.
    """

    device: str | None = None
    expires_at: datetime | None = None
    uses_left: int | None = None
    rollout: str | None = None


@dataclass(frozen=True, slots=True)
class ReferenceState:
    """One set of values that is approved: what the machine's software looks like to its TPM.

    ``origin`` says where the values came from: ``recorded`` at enrollment, ``learned`` by the one armed use,
    ``observed`` (an approved observation), ``predicted`` by a machine for its next boot, or ``imported`` by
    the operator or a pipeline.  ``created_by`` is an audit actor; ``notes`` are sentences from the maker of
    the values. ``accepted`` are parts of the boot that nothing covers, which the operator accepted.  ``signed`` is in
    the result of an appraisal only: the signed values that took the place of some of the state's own.
    """

    label: str
    values: PcrValues
    origin: str
    life: Life = Life.ACTIVE
    limits: StateLimits = StateLimits()
    _: KW_ONLY
    created_at: datetime | None = None
    created_by: str | None = None
    notes: tuple[str, ...] = ()
    accepted: tuple[BootPart, ...] = ()
    signed: SignedState | None = None

    def differences(self, values: PcrValues) -> tuple[int, ...]:
        """The PCRs, ascending, in which *values* is not this state."""
        return tuple(sorted([pcr for pcr, value in self.values.items() if values.get(pcr) != value]))

    def concerns(self, device: str) -> bool:
        """False for a state that is for another device only."""
        return self.limits.device in (None, device)

    @property
    def changes_when_met(self) -> bool:
        """True when a permit has to be written into the state: it becomes active, or has a use less."""
        return self.life is not Life.ACTIVE or self.limits.uses_left is not None

    def obstacle(self, now: datetime) -> Reason | None:
        """Return the reason that this state does not count at *now*, or ``None`` if it counts."""
        match self.life:
            case Life.PROPOSED:
                return Reason("state-proposed", f"State '{self.label}' was announced and waits for approval.")
            case Life.RETIRED:
                return Reason("state-retired", f"State '{self.label}' is retired.")
        if self.limits.rollout is not None:
            sentence = f"State '{self.label}' belongs to rollout '{self.limits.rollout}', which has not reached this machine."
            return Reason("state-not-rolled-out", sentence)
        if self.limits.expires_at is not None and now >= self.limits.expires_at:
            when = f"{self.limits.expires_at:%Y-%m-%d %H:%M:%S}"
            return Reason("state-expired", f"State '{self.label}' was approved until {when} UTC.")
        if self.limits.uses_left == 0:
            return Reason("state-used-up", f"State '{self.label}' was approved for fewer boots than this.")
        return None


def check_label(label: str) -> str:
    """*label*, when it names a state: 1 to 64 characters, printable.  Raises ``request-malformed``."""
    if not 1 <= len(label) <= MAX_LABEL or not label.isprintable() or label != label.strip():
        raise Malformed("request-malformed", f"A label has 1 to {MAX_LABEL} printable characters.")
    return label


def reference_state(
    selection: Selection, label: str, values: PcrValues, origin: str, *, cap_pcr: int, force: bool = False
) -> ReferenceState:
    """An active reference state of *values*, checked against *selection*.

    Raises :class:`Malformed` ``values-invalid``, and ``values-all-zero`` (unless *force*) when nothing but
    the cap PCR was extended with more than constants: nothing measures this boot, and every software looks
    the same.
    """
    check_values(selection, values)
    measured = {pcr: value for pcr, value in values.items() if pcr != cap_pcr}
    if not force and nothing_measured(measured):
        how = (
            "as a reset leaves them"
            if as_reset(measured)
            else "those of separators and other constants alone"
        )
        raise Malformed("values-all-zero", f"All values are {how}: nothing measured this boot.")
    return ReferenceState(label, dict(values), origin)


# --- recording ----------------------------------------------------------------------------------------------


def uncapped(values: PcrValues, cap_pcr: int) -> dict[int, bytes]:
    """Values of the running system as the initrd will show them: the cap PCR is zero then."""
    return {pcr: bytes(len(value)) if pcr == cap_pcr else value for pcr, value in values.items()}


def moving_pcrs(selection: Selection) -> tuple[int, ...]:
    """The selected PCRs whose running value is not the initrd's, and which therefore have to be *learned*."""
    return tuple(pcr for pcr in selection.pcrs if pcr in MOVING_PCRS)


def learnable(stable: Mapping[int, bytes], values: PcrValues) -> bool:
    """True when *values* agrees with everything that was *stable* at enrollment: only moving PCRs are
    learned.
    """
    return all(values.get(pcr) == value for pcr, value in stable.items())
