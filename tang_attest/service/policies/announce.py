"""Announce: a machine sends the values of its next boot, with a quote of the running system.

An attacker with root on a running, approved machine can announce their own software.  Announced values
therefore wait for the operator, unless the policy trusts predictions; then they count for the machine that
announced them, and no other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from tang_attest.errors import Conflict, Malformed, NotFound, Refused, Unavailable
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import Decision
from tang_attest.ports.store import HasDecisions, HasPolicies
from tang_attest.protocol.challenge import Challenge, Mark, Purpose, announce_digest
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.quote import Evidence, VerifiedQuote, verify_quote
from tang_attest.protocol.reference_state import (
    COUNTING,
    MAX_LABEL,
    MOVING_PCRS,
    Life,
    ReferenceState,
    StateLimits,
    check_label,
    reference_state,
)
from tang_attest.service.audit.actors import Caller
from tang_attest.service.audit.refusals import Refusals, describe_refusal
from tang_attest.service.policies.reference_values import describe_state
from tang_attest.service.unlock.challenges import Challenges, Fresh
from tang_attest.service.unlock.device_keys import DeviceKey, find_device_key
from tang_attest.service.unlock.suspension import check_not_suspended

#: The most announced states of one policy that wait or were never booted, so that no machine fills the
#: operator's list.
MAX_ANNOUNCED: Final = 64
#: Labels that are tried for one state.
_LABELS: Final = 5


@dataclass(frozen=True, slots=True)
class Announcement:
    """A machine's announcement: ``label`` of a state, ``values`` as in :attr:`Evidence.pcrs`, ``notes`` sentences for
    the operator's eyes.  Raises ``request-malformed`` for a label that is none.
    """

    label: str
    values: bytes
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_label(self.label)


class AnnouncementStore(HasDecisions, HasPolicies, Protocol):
    """The roles of the store that an announcement needs."""


class Announce:
    """Answers ``POST /attest/announce/{kid}``."""

    def __init__(self, store: AnnouncementStore, challenges: Challenges, refusals: Refusals) -> None:
        self._store, self._challenges, self._refusals = store, challenges, refusals

    async def challenge(self, kid: str) -> Challenge:
        """Return a challenge for the machine that uses *kid*.  Raises ``key-unknown``.  Nothing is stored."""
        bound = await find_device_key(self._store.decisions, kid)
        nonce = self._challenges.make(Purpose.ANNOUNCE, kid, Mark(bound.device.clock))
        policy = bound.policy
        return Challenge(nonce, policy.selection, self._challenges.ttl_s, cap_pcr=policy.cap_pcr)

    async def announce(
        self, kid: str, announcement: Announcement, evidence: Evidence, caller: Caller
    ) -> tuple[ReferenceState, bool]:
        """Return the state that has the announced values, and True if it is new.

        Raises what verification raises, ``pcr-mismatch`` when the machine itself runs nothing approved,
        ``values-invalid``, ``values-all-zero``, ``announcements-full``.
        """
        bound, now = await find_device_key(self._store.decisions, kid), self._challenges.now()
        entry = caller.entry(now, "announce", bound.device.name, kid)
        try:
            fresh, quote = self._verify(bound, announcement, evidence, now)
        except (Malformed, Refused) as error:
            await self._refusals.note(replace(entry, code=error.code, details=describe_refusal(error)))
            raise
        try:
            state, known = _judge(bound, announcement, quote, now)
        except (Malformed, Refused) as error:
            refused = replace(entry, code=error.code, details=describe_refusal(error))
            await self._spend(bound, evidence, fresh, quote, refused)
            raise
        await self._spend(bound, evidence, fresh, quote, replace(entry, verdict="done"))
        if known:
            return known, False
        return await self._add(bound, state, replace(entry, verdict="done", event="policy state add")), True

    def _verify(
        self, bound: DeviceKey, announcement: Announcement, evidence: Evidence, now: datetime
    ) -> tuple[Fresh, VerifiedQuote]:
        kid, nonce = bound.key.kid, evidence.nonce
        fresh = self._challenges.check(Purpose.ANNOUNCE, kid, nonce, now)
        binding = announce_digest(nonce, kid, announcement.values, announcement.label)
        device = fresh.enrolled(bound.device)
        return fresh, verify_quote(device, evidence, bound.policy.selection, binding)

    async def _spend(
        self, bound: DeviceKey, evidence: Evidence, fresh: Fresh, quote: VerifiedQuote, entry: AuditEntry
    ) -> None:
        """Use the nonce up and move the TPM's clock, as every authentic quote does."""
        decision = Decision(
            device_id=bound.device.id,
            nonce_digest=hashlib.sha256(evidence.nonce.encode()).digest(),
            nonce_expires_at=fresh.expires_at,
            clock=quote.clock,
            behind_ms=fresh.behind_ms,
            audit=entry,
            replay_in_full=self._refusals.has_room(bound.key.kid),
        )
        try:
            await self._store.decisions.decide(decision)
        except (Conflict, NotFound) as lost:
            await self._refusals.note_lost(replace(entry, verdict="refused", code=lost.code), decision)
            raise

    async def _add(self, bound: DeviceKey, state: ReferenceState, entry: AuditEntry) -> ReferenceState:
        policy, label = bound.policy, state.label
        if any(known.label == label for known in policy.states):
            state = replace(state, label=self._with_time(label))
        for later_s in range(_LABELS):
            try:
                await self._keep(policy, state, entry)
            except Conflict as lost:
                if lost.code == "policy-changed":
                    # Predictions are not trusted any more: it waits for the operator, as it would now.
                    state = replace(state, life=Life.PROPOSED, limits=StateLimits())
                elif lost.code == "name-taken":  # by a machine that announces the same update now
                    state = replace(state, label=self._with_time(label, later_s))
                else:
                    raise
            else:
                return state
        raise Unavailable("unavailable", "Too many machines announce this label now.", retry_after=1)

    def _with_time(self, label: str, later_s: int = 0) -> str:
        """Return another label for a state, because no operator is present to choose one."""
        suffix = f" {self._challenges.now() + timedelta(seconds=later_s):%Y%m%d%H%M%S}"
        return label[: MAX_LABEL - len(suffix)] + suffix

    async def _keep(self, policy: ReferencePolicy, state: ReferenceState, entry: AuditEntry) -> None:
        details = describe_state(policy.name, state)
        await self._store.policies.add_state(policy.name, state, replace(entry, details=details))


def _judge(
    bound: DeviceKey, announcement: Announcement, quote: VerifiedQuote, now: datetime
) -> tuple[ReferenceState, ReferenceState | None]:
    """Return the announced state, and the one that makes it superfluous.  Raises as
    :meth:`Announce.announce`.
    """
    check_not_suspended(bound.device)
    _check_approved(bound.policy, quote, now)
    state = _announced(bound, announcement, now)
    known = _known(bound, state)
    if known is None:
        _check_room(bound.policy)
    return state, known


def _check_approved(policy: ReferencePolicy, quote: VerifiedQuote, now: datetime) -> None:
    """Raise ``pcr-mismatch`` unless the machine runs a state that counts, as far as a running system shows
    that.
    """
    settled = set(policy.selection.pcrs) - MOVING_PCRS - {policy.cap_pcr}
    counting = policy.counting(quote.device.name, now)
    if any(not settled & set(state.differences(quote.values)) for state in counting):
        return
    raise Refused("pcr-mismatch", "The machine that announces values runs nothing approved itself.")


def _announced(bound: DeviceKey, announcement: Announcement, now: datetime) -> ReferenceState:
    policy, name = bound.policy, bound.device.name
    values = policy.selection.split(announcement.values)
    if any(values.get(policy.cap_pcr, b"")):
        raise Malformed("values-invalid", f"PCR {policy.cap_pcr}, the cap, is zero while a machine boots.")
    state = reference_state(policy.selection, announcement.label, values, "predicted", cap_pcr=policy.cap_pcr)
    trusted = policy.trust_predictions and policy.conditions.operators == 1
    life = Life.STAGED if trusted else Life.PROPOSED
    # Values that no operator approves count only for the machine that announced them.
    limits = StateLimits(device=name) if trusted else StateLimits()
    return replace(
        state,
        life=life,
        limits=limits,
        created_at=now,
        created_by=f"device:{name}",
        notes=announcement.notes,
        # An update changes the values, and not the software that measures them.
        accepted=policy.accepted(name, now),
    )


def _known(bound: DeviceKey, announced: ReferenceState) -> ReferenceState | None:
    """Return a state that makes the announcement superfluous: it has the values, and counts or waits
    already.
    """
    for state in bound.policy.states:
        usable = state.life in COUNTING and state.limits in (
            StateLimits(),
            StateLimits(device=bound.device.name),
        )
        if state.values == announced.values and (usable or state.life is announced.life):
            return state
    return None


def _check_room(policy: ReferencePolicy) -> None:
    """Raise ``announcements-full`` when too many announced states wait."""
    unseen = (Life.PROPOSED, Life.STAGED)
    waiting = sum(state.origin == "predicted" and state.life in unseen for state in policy.states)
    if waiting >= MAX_ANNOUNCED:
        raise Refused("announcements-full", f"Policy '{policy.name}' has {waiting} announced states already.")
