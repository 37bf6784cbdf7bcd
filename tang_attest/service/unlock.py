"""Unlock: an unlock is five values, each made only from the one before it.

    EnrolledDevice -> Challenge -> VerifiedQuote -> Permit -> Reply

Every decision about a device's key is in the audit record, durably, before the answer leaves.  The numbers are
those of docs/protocol.md, section 3.3.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from tang_attest.errors import Conflict, Malformed, NotFound, Reason, Refused, TangAttestError
from tang_attest.ports import (
    AuditEntry,
    Clock,
    Decision,
    Device,
    KeyStore,
    Randomness,
    RolloutResult,
    Snapshot,
    Store,
)
from tang_attest.protocol.advertisement import thumbprint
from tang_attest.protocol.challenge import Challenge, Purpose, check_nonce, make_nonce, unlock_digest
from tang_attest.protocol.enrollment import EnrolledDevice
from tang_attest.protocol.exchange import Reply, respond
from tang_attest.protocol.points import Point, parse_point
from tang_attest.protocol.policy import Permit, differing_pcrs
from tang_attest.protocol.quote import Evidence, VerifiedQuote, verify_quote
from tang_attest.protocol.reference_state import ReferenceState, learnable
from tang_attest.protocol.tpm import AttestationKey
from tang_attest.service.caller import Caller
from tang_attest.service.device_keys import DeviceKey, find_device_key
from tang_attest.service.suspension import check_admitted, check_not_suspended

#: Refusals whatever was quoted.
_NOT_THE_VALUES: Final = frozenset({"device-suspended", "approval-required", "device-stale"})


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What appraisal came to, and over what."""

    outcome: Permit | Refused
    quoted: Snapshot
    learned: ReferenceState | None = None

    @property
    def observation(self) -> Snapshot | None:
        """What is kept for a person to look at: values that the policy refused."""
        if isinstance(self.outcome, Permit) or self.learned or self.outcome.code in _NOT_THE_VALUES:
            return None
        return self.quoted

    @property
    def met(self) -> ReferenceState | None:
        """The state that permitted."""
        return self.outcome.state if isinstance(self.outcome, Permit) else None


class Unlock:
    """Answers ``POST /rec/{kid}`` for keys that belong to a device."""

    def __init__(
        self,
        store: Store,
        keys: KeyStore,
        clock: Clock,
        random: Randomness,
        nonce_key: bytes,
        ttl_s: int,
        executor: Executor | None = None,
    ) -> None:
        self._store, self._keys, self._clock, self._random = store, keys, clock, random
        self._nonce_key, self._ttl_s, self._executor = nonce_key, ttl_s, executor

    async def challenge(self, kid: str) -> Challenge:
        """What the machine that uses *kid* has to quote.  Raises ``key-unknown``.  Nothing is stored."""
        bound = await find_device_key(self._store, kid)
        nonce = make_nonce(
            self._nonce_key, Purpose.UNLOCK, kid, _milliseconds(self._clock.now()), self._random.bytes(16)
        )
        # The log explains a refusal to the person who has to judge it.
        return Challenge(nonce, bound.policy.selection, self._ttl_s, event_log_wanted=True)

    async def respond(self, kid: str, jwk: Mapping[str, Any], evidence: Evidence, caller: Caller) -> Reply:
        """Y for the X in *jwk*, when *evidence* is good; raises whatever step refuses.

        Raises :class:`Malformed`, :class:`Refused`, ``key-unknown``, and
        :class:`~tang_attest.errors.Conflict` when the store lost a race (``nonce-used``, ``clock-backwards``).
        """
        bound = await find_device_key(self._store, kid)
        entry = AuditEntry(
            at=self._clock.now(),
            event="unlock",
            actor=f"device:{bound.device.name}",
            verdict="refused",
            device=bound.device.name,
            kid=kid,
            address=caller.address,
            request_id=caller.request_id,
        )
        try:
            x = _read_point(bound, jwk)
            expires_ms, quote = self._verify(bound, x, evidence, entry.at)
        except (Malformed, Refused) as error:
            await self._store.audit(replace(entry, code=error.code, details=_details(error)))
            raise
        verdict = _appraise(bound, quote, evidence, entry.at)
        await self._decide(bound, evidence, expires_ms, quote, verdict, entry)
        if isinstance(verdict.outcome, Refused):
            raise verdict.outcome
        # Opened only now: a stranger's request never costs an unsealing.
        key = self._keys.open_exchange(bound.key)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, respond, verdict.outcome, evidence.nonce, key, x)

    async def _decide(
        self,
        bound: DeviceKey,
        evidence: Evidence,
        expires_ms: int,
        quote: VerifiedQuote,
        verdict: _Verdict,
        entry: AuditEntry,
    ) -> None:
        """Write it all, durably.  (10) The nonce is used up here, whatever the verdict."""
        decision = Decision(
            device_id=bound.device.id,
            nonce_digest=hashlib.sha256(evidence.nonce.encode()).digest(),
            nonce_expires_at=datetime.fromtimestamp(expires_ms / 1000, UTC),
            clock=quote.clock,
            audit=_conclude(entry, verdict),
            met=verdict.met,
            observation=verdict.observation,
            learned=verdict.learned,
            evidence=_news(bound.device, verdict),
            rollout=_rollout_result(bound, verdict),
        )
        try:
            await self._store.decide(decision)
        except (Conflict, NotFound) as lost:
            # The store writes the second use of a nonce itself, in the transaction that notices it.
            if lost.code != "nonce-used":
                await self._store.audit(replace(entry, code=lost.code, details=_details(lost)))
            raise

    def _verify(
        self, bound: DeviceKey, x: Point, evidence: Evidence, now: datetime
    ) -> tuple[int, VerifiedQuote]:
        # (3) the nonce is ours, for this purpose and kid, and young
        kid, nonce = bound.key.kid, evidence.nonce
        expires_ms = check_nonce(self._nonce_key, Purpose.UNLOCK, kid, _milliseconds(now), self._ttl_s, nonce)
        # (4) to (9)
        binding = unlock_digest(nonce, kid, thumbprint(x.members()))
        return expires_ms, verify_quote(
            enrolled_device(bound.device), evidence, bound.policy.selection, binding
        )


def _read_point(bound: DeviceKey, jwk: Mapping[str, Any]) -> Point:
    # (2) X is a point of the key's curve
    x = parse_point(jwk)
    if x.curve.name != bound.key.curve:
        raise Malformed("curve-mismatch", f"X is on {x.curve.name}, the key on {bound.key.curve}.")
    return x


def _appraise(bound: DeviceKey, quote: VerifiedQuote, evidence: Evidence, now: datetime) -> _Verdict:
    """(12) The policy; what it refuses is kept for a person to look at, or learned when that was armed."""
    quoted = Snapshot(quote.selection, quote.values, evidence.event_log)
    try:
        check_not_suspended(bound.device)
        permit = bound.policy.appraise(quote, now)
        check_admitted(bound.policy, bound.device, now)
        return _Verdict(permit, quoted)
    except Refused as refusal:
        if refusal.code in _NOT_THE_VALUES:
            return _Verdict(refusal, quoted)
        learning = bound.device.learning
        if learning is not None and now < learning.until and learnable(learning.stable, quote.values):
            label = f"learned {now:%Y-%m-%d %H:%M:%S}"
            actor = f"device:{bound.device.name}"
            state = ReferenceState(label, dict(quote.values), "learned", created_at=now, created_by=actor)
            # Refused all the same: a person with the passphrase has to be there when a state is learned.
            told = Refused("state-learned", "This boot's state was recorded as the one to expect.")
            return _Verdict(told, quoted, learned=state)
        return _Verdict(_explain(refusal, bound.device, quote), quoted)


def _news(device: Device, verdict: _Verdict) -> Snapshot | None:
    """What was quoted, unless the store has it.  Not of a running system, whose PCRs are not those of a boot."""
    capped = isinstance(verdict.outcome, Refused) and verdict.outcome.code == "capped"
    return None if capped or verdict.quoted.digest() == device.evidence_digest else verdict.quoted


def _rollout_result(bound: DeviceKey, verdict: _Verdict) -> RolloutResult | None:
    """What the verdict says about the rollout of the device's policy."""
    if bound.rollout is None:
        return None
    if isinstance(verdict.outcome, Permit):
        about = met = verdict.outcome.state.label
    else:
        about, met = verdict.outcome.code, None
    outcome = bound.rollout.outcome(bound.subject, met=met, code=about)
    return None if outcome is None else RolloutResult(bound.rollout, outcome, about)


def _explain(refusal: Refused, device: Device, quote: VerifiedQuote) -> Refused:
    """Name the usual cause of values that no boot has: PCRs that an earlier boot's values are still in.

    Boards without a wire from reset to the TPM keep their PCRs over a warm reboot.  Then every PCR that anything
    measured differs, and the reset counter says the same as when the disks were last open.
    """
    measured = {pcr for pcr, value in quote.values.items() if any(value)}
    if (
        refusal.code != "pcr-mismatch"
        or quote.clock.reset_count != device.opened_reset_count
        or not measured <= set(differing_pcrs(refusal))
    ):
        return refusal
    sentence = "The TPM was not reset since its disks were last open, so its PCRs still hold that boot."
    return Refused.because(Reason("tpm-not-reset", sentence), *refusal.reasons)


def _conclude(entry: AuditEntry, verdict: _Verdict) -> AuditEntry:
    if isinstance(verdict.outcome, Permit):
        return replace(entry, verdict="permitted", details={"state": verdict.outcome.state.label})
    return replace(entry, code=verdict.outcome.code, details=_details(verdict.outcome))


def _details(error: TangAttestError) -> dict[str, object]:
    details: dict[str, object] = {"reasons": [reason.as_json() for reason in error.reasons]}
    if isinstance(error, Refused) and (pcrs := differing_pcrs(error)):
        details["pcrs"] = list(pcrs)
    return details


def enrolled_device(device: Device) -> EnrolledDevice:
    """*device* as verification takes it."""
    key = AttestationKey(
        device.ak_public, device.ak_name, device.ak_spki, device.ak_scheme, device.ak_hash, no_da=False
    )
    return EnrolledDevice(device.name, key, device.clock)


def _milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)
