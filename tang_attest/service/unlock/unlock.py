"""Unlock: an unlock is five values, each made only from the one before it.

    EnrolledDevice -> Challenge -> VerifiedQuote -> Permit -> Reply

Every decision about a device's key is in the audit record, durably, before the answer leaves.  The numbers
are those of docs/protocol.md, section 3.3.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Protocol

from tang_attest.errors import Conflict, Malformed, NotFound, Refused, Unavailable
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import Decision
from tang_attest.ports.keys import KeyStore
from tang_attest.ports.store import HasAudit, HasDecisions
from tang_attest.protocol.challenge import Challenge, Mark, Purpose, unlock_digest
from tang_attest.protocol.exchange import Multiplier, Reply, respond
from tang_attest.protocol.policy import Permit
from tang_attest.protocol.quote import Evidence, VerifiedQuote, verify_quote
from tang_attest.protocol.signed_values.keys import StatementForm
from tang_attest.protocol.values.points import Point, parse_point
from tang_attest.service.audit.actors import Caller
from tang_attest.service.audit.refusals import Refusals, describe_refusal, with_log_size
from tang_attest.service.unlock.appraisal import AppraisalResult, appraise
from tang_attest.service.unlock.challenges import Challenges, Fresh
from tang_attest.service.unlock.device_keys import (
    DeviceKey,
    find_device_key,
    find_question,
    recall_device_key,
)
from tang_attest.service.unlock.exchanging import run_in_tpm, run_where

#: Appraisals of one request by fresh rows when the policy is changed meanwhile.
_TRIES: Final = 5


class _LookAgain(Exception):
    """Nothing was decided: the evidence has to be appraised by the rows of now."""


class UnlockStore(HasAudit, HasDecisions, Protocol):
    """The roles of the store that an unlock needs."""


class Unlock:
    """Answers ``POST /rec/{kid}`` for keys that belong to a device."""

    def __init__(
        self,
        store: UnlockStore,
        keys: KeyStore,
        challenges: Challenges,
        refusals: Refusals,
    ) -> None:
        self._store, self._keys, self._challenges = store, keys, challenges
        self._refusals = refusals
        #: Permits in which signed values took part, by the form of the signature.
        self.signed_permits: Counter[str] = Counter()

    async def challenge(self, kid: str) -> Challenge:
        """Return a challenge for the machine that uses *kid*.  Raises ``key-unknown``.  Nothing is stored."""
        pcrs, newest = await find_question(self._store.decisions, kid)
        # The log explains a refusal to the operator who decides about it.
        return Challenge(
            self._challenges.make(Purpose.UNLOCK, kid, Mark(newest)),
            pcrs.selection,
            self._challenges.ttl_s,
            event_log_wanted=True,
            cap_pcr=pcrs.cap_pcr,
        )

    async def check_known(self, kid: str) -> None:
        """Raise ``key-unknown`` unless *kid* is the key of a device."""
        await find_question(self._store.decisions, kid)

    async def respond(self, kid: str, jwk: Mapping[str, Any], evidence: Evidence, caller: Caller) -> Reply:
        """Return Y for the X in *jwk*, when *evidence* is good; raise the error of the step that refuses.

        Raises :class:`Malformed`, :class:`Refused`, ``key-unknown``, and
        :class:`~tang_attest.errors.Conflict` when the store lost a race (``nonce-used``,
        ``clock-backwards``).
        """
        bound = recall_device_key(self._store.decisions, kid)
        if bound is not None:
            with suppress(_LookAgain):
                return await self._respond(bound, jwk, evidence, caller)
        for _ in range(_TRIES):
            bound = await self._find(kid, bound, caller)
            with suppress(_LookAgain):
                return await self._respond(bound, jwk, evidence, caller)
        # The policy changed too often meanwhile; the nonce is still good.
        raise Unavailable("unavailable", "The policy is being changed.")

    async def _find(self, kid: str, before: DeviceKey | None, caller: Caller) -> DeviceKey:
        """Return the device's key, as it is now.  Raises ``key-unknown``.

        The refusal is recorded if evidence was appraised *before*, and the device went away meanwhile.
        """
        try:
            return await find_device_key(self._store.decisions, kid)
        except NotFound as gone:
            if before is not None:
                entry = caller.entry(self._challenges.now(), "unlock", before.device.name, kid)
                await self._refusals.note(replace(entry, code=gone.code, details=describe_refusal(gone)))
            raise

    async def _respond(
        self, bound: DeviceKey, jwk: Mapping[str, Any], evidence: Evidence, caller: Caller
    ) -> Reply:
        """Answer by *bound*.

        Raises :class:`_LookAgain` when the policy changed meanwhile, and in place of any refusal by recalled rows:
        only a permit may rest on them, because the store compares these.
        """
        entry = caller.entry(self._challenges.now(), "unlock", bound.device.name, bound.key.kid)
        try:
            x = _read_point(bound, jwk)
            fresh, quote = self._verify(bound, x, evidence, entry.at)
        except (Malformed, Refused) as error:
            _look_again_if_recalled(bound)
            await self._refusals.note(replace(entry, code=error.code, details=describe_refusal(error)))
            raise
        verdict = await self._appraise(bound, quote, evidence, entry.at)
        if isinstance(verdict.outcome, Refused):
            _look_again_if_recalled(bound)
            refusal = with_log_size(verdict.outcome, evidence.event_log_size)
            await self._decide(bound, evidence, fresh, quote, replace(verdict, outcome=refusal), entry)
            raise refusal
        # Decrypted only now, so that an unauthenticated request never costs that, and before the record says
        # "permitted".
        key = await self._open(bound, entry)
        await self._decide(bound, evidence, fresh, quote, verdict, entry)
        if (signed := verdict.outcome.state.signed) is not None:
            self.signed_permits[
                StatementForm.PCRSIG if signed.version is None else StatementForm.STATEMENT
            ] += 1
        return await self._exchange(verdict.outcome, evidence.nonce, key, x, entry)

    async def _open(self, bound: DeviceKey, entry: AuditEntry) -> Multiplier:
        """Return the decrypted key; a key in the TPM was checked, so it can probably be used."""
        try:
            key = self._keys.open_exchange(bound.key)
            if key.place is not None:
                await run_in_tpm(key.place, key.check)
        except Unavailable as error:
            _look_again_if_recalled(bound)
            await self._refusals.note(replace(entry, code=error.code, details=describe_refusal(error)))
            raise
        return key

    async def _exchange(
        self, permit: Permit, nonce: str, key: Multiplier, x: Point, entry: AuditEntry
    ) -> Reply:
        """Return Y.  The record says "permitted" already; a failing key adds that nothing was released."""
        try:
            return await run_where(key.place, respond, permit, nonce, key, x)
        except Unavailable as error:
            details = {**describe_refusal(error), "released": False}
            await self._store.audit.append(
                replace(entry, at=self._challenges.now(), verdict="refused", code=error.code, details=details)
            )
            raise

    async def _appraise(
        self, bound: DeviceKey, quote: VerifiedQuote, evidence: Evidence, now: datetime
    ) -> AppraisalResult:
        """(11), (12) Appraise the quote, in a thread if there is an event log or a statement: reading one takes
        milliseconds.
        """
        if not (evidence.event_log or evidence.signed_values):
            return appraise(bound, quote, evidence, now)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, appraise, bound, quote, evidence, now)

    async def _decide(
        self,
        bound: DeviceKey,
        evidence: Evidence,
        fresh: Fresh,
        quote: VerifiedQuote,
        verdict: AppraisalResult,
        entry: AuditEntry,
    ) -> None:
        """Write the decision, durably.  (10) The nonce is used up here, also by a refusal.

        Raises the error of a lost race, recorded, or :class:`_LookAgain`.
        """
        decision = Decision(
            device_id=bound.device.id,
            nonce_digest=hashlib.sha256(evidence.nonce.encode()).digest(),
            nonce_expires_at=fresh.expires_at,
            clock=quote.clock,
            behind_ms=fresh.behind_ms,
            audit=_conclude(entry, verdict),
            met=verdict.met,
            observation=verdict.observation,
            learned=verdict.learned,
            evidence=verdict.news,
            rollout=verdict.rollout,
            basis=bound.basis,
            reading=bound.reading,
            replay_in_full=self._refusals.has_room(bound.key.kid),
        )
        try:
            await self._store.decisions.decide(decision)
        except (Conflict, NotFound) as lost:
            if lost.code == "policy-changed":
                raise _LookAgain from lost
            lost_entry = replace(entry, code=lost.code, details=describe_refusal(lost))
            await self._refusals.note_lost(lost_entry, decision)
            raise

    def _verify(
        self, bound: DeviceKey, x: Point, evidence: Evidence, now: datetime
    ) -> tuple[Fresh, VerifiedQuote]:
        # (3) the nonce is ours, for this purpose and kid, and young
        kid, nonce = bound.key.kid, evidence.nonce
        fresh = self._challenges.check(Purpose.UNLOCK, kid, nonce, now)
        # (4) to (9)
        binding = unlock_digest(nonce, kid, x.thumbprint())
        return fresh, verify_quote(fresh.enrolled(bound.device), evidence, bound.policy.selection, binding)


def _look_again_if_recalled(bound: DeviceKey) -> None:
    if bound.reading is not None:
        raise _LookAgain


def _read_point(bound: DeviceKey, jwk: Mapping[str, Any]) -> Point:
    # (2) X is a point of the key's curve
    x = parse_point(jwk)
    if x.curve.name != bound.key.curve:
        raise Malformed("curve-mismatch", f"X is on {x.curve.name}, the key on {bound.key.curve}.")
    return x


def _conclude(entry: AuditEntry, verdict: AppraisalResult) -> AuditEntry:
    if isinstance(verdict.outcome, Permit):
        state = verdict.outcome.state
        signed = {} if state.signed is None else {"signed": state.signed.named()}
        return replace(entry, verdict="permitted", details={"state": state.label, **signed})
    return replace(entry, code=verdict.outcome.code, details=describe_refusal(verdict.outcome))
