"""Rollouts: a change of a policy that counts for some devices first, and stops by itself when it hurts.

    running --refusals pass the limit, or an operator--> stopped --operator--> running
    running --> finished (the change counts for everybody)
    running, stopped --> abandoned (it counts for nobody)

Rules of this module:

* The policy that a device is appraised by follows from policy, rollout and device alone: :func:`judged_by`.  Unlock, dry
  run and status ask it, so they agree.
* A device that passed under the rollout keeps the change when the rollout stops: its next boot must not be
  refused.
* The audience only grows: a device is in it by its place in [0, 10,000), which its name and the rollout's
  salt give.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life
from tang_attest.protocol.signed_values.signer import Signers, covers

#: A share is a number of this many: hundredths of a percent.
WHOLE: Final = 10_000

#: Refusals that say nothing about the change: a running system asks, one boot was there to be learned, or the
#: device gets nothing whatever it boots.
_NOT_THE_CHANGE: Final = frozenset(
    {"capped", "state-learned", "device-suspended", "key-retired", "approval-required", "device-stale"}
)


class RolloutPhase(StrEnum):
    """Phase of a rollout."""

    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"
    ABANDONED = "abandoned"


class RolloutOutcome(StrEnum):
    """Outcome of a device of the audience with the change.  A device that passed once has passed."""

    PASSED = "passed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class RolloutSubject:
    """The device that is appraised: its name and labels, and its outcome under the unfinished rollout."""

    name: str
    labels: tuple[str, ...] = ()
    outcome: RolloutOutcome | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A change on its way.

    The audience is every device that has ``label``, and the ``share`` (of :data:`WHOLE`) of all.  ``limit``
    is how many of its devices may be refused; one more stops the rollout.  ``ended_by`` and ``why`` tell of
    the last stop too.
    """

    id: int = 0
    policy: str
    name: str
    change: PolicyChange
    salt: str
    share: int = 0
    label: str | None = None
    limit: int
    status: RolloutPhase = RolloutPhase.RUNNING
    started_at: datetime
    started_by: str
    ended_at: datetime | None = None
    ended_by: str | None = None
    why: str | None = None

    def as_json(self) -> dict[str, object]:
        """Everything but its id, JSON-compatible except for the times."""
        return {
            "policy": self.policy,
            "name": self.name,
            "status": self.status.value,
            "share": self.share / WHOLE,
            "label": self.label,
            "salt": self.salt,
            "limit": self.limit,
            "change": self.change.dump(),
            "started_at": self.started_at,
            "started_by": self.started_by,
            "ended_at": self.ended_at,
            "ended_by": self.ended_by,
            "why": self.why,
        }

    @property
    def over(self) -> bool:
        """True when it is finished or abandoned."""
        return self.status in (RolloutPhase.FINISHED, RolloutPhase.ABANDONED)

    def stage(self, policy: ReferencePolicy) -> ReferencePolicy:
        """*policy* with the states that this rollout adds, which count for nobody yet."""
        states = (
            replace(state, limits=replace(state.limits, rollout=self.name)) for state in self.change.states()
        )
        return replace(policy, states=(*policy.states, *states))

    def holds(self, label: str) -> bool:
        """Return True if signed values with *label* wait for this rollout."""
        return any(covers(wider, label) for wider in self.change.signed)

    def includes(self, subject: RolloutSubject) -> bool:
        """True when *subject* is in the audience."""
        return self.label in subject.labels or place(self.salt, subject.name) < self.share

    def applies_to(self, subject: RolloutSubject) -> bool:
        """True when *subject* is judged with the change."""
        if self.over:
            return False
        if subject.outcome is RolloutOutcome.PASSED:
            return True
        return self.status is RolloutPhase.RUNNING and self.includes(subject)

    def outcome(
        self, subject: RolloutSubject, *, met: str | None, code: str, signed: str | None = None
    ) -> RolloutOutcome | None:
        """Return the outcome of *subject* with the change, or None if an appraisal adds nothing new.

        *met* is the label of the state that permitted, ``None`` for a refusal with *code*; *signed* that of the signed
        values which took part.  A device that still boots what it booted before says nothing, unless the change brings
        no values.
        """
        if (
            self.status is not RolloutPhase.RUNNING
            or subject.outcome is RolloutOutcome.PASSED
            or not self.includes(subject)
        ):
            return None
        if met is not None:
            change = self.change
            new_values = met in change.added or (signed is not None and self.holds(signed))
            return RolloutOutcome.PASSED if new_values or not (change.added or change.signed) else None
        new = subject.outcome is None and code not in _NOT_THE_CHANGE
        return RolloutOutcome.REFUSED if new else None


def place(salt: str, name: str) -> int:
    """Return the place of the device *name*, from 0 to 9,999: pseudo-random, and constant for one salt."""
    digest = hashlib.sha256(f"{salt}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % WHOLE


def judged_by(policy: ReferencePolicy, rollout: Rollout | None, subject: RolloutSubject) -> ReferencePolicy:
    """The policy as it is for *subject*.

    *rollout* is the newest of *policy*; one that is over changes nothing.  States of a rollout that does not
    apply keep their limit, which is an obstacle (``state-not-rolled-out``), and so do its labels of signed values.
    """
    if rollout is None or rollout.over:
        return policy
    if not rollout.applies_to(subject):
        held = rollout.change.signed
        return replace(policy, signers=replace(policy.signers, held=held)) if held else policy
    return rollout.change.narrow(_unlimited(policy, rollout.name))


def finished(policy: ReferencePolicy, rollout: Rollout) -> ReferencePolicy:
    """*policy* as it is for everybody once *rollout* is finished."""
    return rollout.change.narrow(_unlimited(policy, rollout.name))


def abandoned(policy: ReferencePolicy, rollout: Rollout) -> ReferencePolicy:
    """*policy* as it is for everybody once *rollout* is abandoned."""
    states = tuple(
        replace(state, life=Life.RETIRED) if state.limits.rollout == rollout.name else state
        for state in policy.states
    )
    return replace(policy, states=states, signers=withdrawn(policy.signers, rollout))


def withdrawn(signers: Signers, rollout: Rollout) -> Signers:
    """Return *signers* once *rollout* is abandoned: the labels that it held are retired."""
    for label in rollout.change.signed:
        signers = signers.with_retired(label)
    return signers


def _unlimited(policy: ReferencePolicy, name: str) -> ReferencePolicy:
    states = tuple(
        replace(state, limits=replace(state.limits, rollout=None)) if state.limits.rollout == name else state
        for state in policy.states
    )
    return replace(policy, states=states)
