"""One policy: its states with the machines that boot them, and its rollout as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tang_attest.ports.attention import StateUsers
from tang_attest.protocol.changes.rollout import WHOLE, Rollout, RolloutPhase
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.web.console.views.common import counted, listed

#: States on the page: those that count or wait, and the newest of the others.
MOST_STATES: Final = 60


@dataclass(frozen=True, slots=True)
class StateRow:
    """A state: the machines that booted it last, its limits, and ``note``: for whom it does not count, and why."""

    state: ReferenceState
    users: str
    limits: str
    note: str


def shown_states(policy: ReferencePolicy) -> list[ReferenceState]:
    """Return the states of the page, newest first, retired ones last."""
    newest = list(reversed(policy.states))
    return sorted(newest, key=lambda state: state.life is Life.RETIRED)[:MOST_STATES]


def rows(
    states: Sequence[ReferenceState],
    users: Mapping[str | None, StateUsers],
    rollout: Rollout | None,
    now: datetime,
) -> list[StateRow]:
    """Return the rows of *states*; *rollout* is the newest one of their policy."""
    return [
        StateRow(state, _users(users.get(state.label)), _limits(state), _note(state, rollout, now))
        for state in states
    ]


def _note(state: ReferenceState, rollout: Rollout | None, now: datetime) -> str:
    """Return the audience of a state that belongs to *rollout*, or the reason that it counts for nobody."""
    obstacle = state.obstacle(now)
    if obstacle is None:
        return ""
    if obstacle.code != "state-not-rolled-out" or rollout is None or state.limits.rollout != rollout.name:
        return obstacle.sentence
    if rollout.status is RolloutPhase.STOPPED:
        return f"Rollout {rollout.name} is stopped: the state counts for machines that passed under it only."
    return f"It counts for the machines that rollout {rollout.name} has reached."


def _users(users: StateUsers | None) -> str:
    if users is None or not users.count:
        return "no machine"
    if users.count > len(users.names):
        return f"{counted(users.count, 'machine', 'machines')}, among them {listed(users.names)}"
    return listed(users.names)


def _limits(state: ReferenceState) -> str:
    limits, parts = state.limits, []
    if limits.device is not None:
        parts.append(f"only {limits.device}")
    if limits.uses_left is not None:
        parts.append("one more boot" if limits.uses_left == 1 else f"{limits.uses_left} more boots")
    if limits.expires_at is not None:
        parts.append(f"until {limits.expires_at:%Y-%m-%d %H:%M} UTC")
    if limits.rollout is not None:
        parts.append(f"rollout {limits.rollout}")
    return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Picture:
    """A rollout: ``share`` (of 10,000) for the width of its bar, and the same in words."""

    rollout: Rollout
    share: int
    passed: int
    refused: int
    sentence: str

    @property
    def mark(self) -> int:
        """Return the place of the share on a bar of 1,000."""
        return self.share * 1000 // WHOLE

    @property
    def stopped(self) -> bool:
        """Return True if it reaches no further machine."""
        return self.rollout.status is RolloutPhase.STOPPED


def picture(rollout: Rollout, counts: Mapping[str, int]) -> Picture:
    """Return the picture of *rollout*, whose devices *counts* has by outcome."""
    passed, refused = counts["passed"], counts["refused"]
    audience = [f"{rollout.share * 100 / WHOLE:g} % of the machines"] if rollout.share else []
    if rollout.label is not None:
        audience.append(f"those with label {rollout.label}")
    beginning = "Stopped at " if rollout.status is RolloutPhase.STOPPED else "For "
    outcome = (
        f"{counted(passed, 'machine', 'machines')} passed, {counted(refused, 'was', 'were')} refused; "
        f"more than {rollout.limit} refusals stop it"
    )
    return Picture(
        rollout, rollout.share, passed, refused, f"{beginning}{', and '.join(audience)}: {outcome}."
    )
