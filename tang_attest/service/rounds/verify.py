"""Verify: one round of verification of a running machine (docs/protocol.md, 10).

Only evidence that the device's own TPM signed over our fresh nonce can change its status.  A client that
sends other bytes under a device's ``kid`` gets the reason of the refusal, and changes nothing.

A nonce may be answered twice, by an agent that lost the answer to the first evidence.  Each quote counts
once: it is stored for as long as its nonce is good.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final, Protocol

from tang_attest.errors import Conflict, Malformed, NotFound, Reason, Refused
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.machines import Device, OpenedReport, Suspension
from tang_attest.ports.rounds import PastRound, RoundEffect, RoundRecord
from tang_attest.ports.store import HasDecisions, HasDevices, HasPolicies, HasRounds
from tang_attest.protocol.cap import Opened
from tang_attest.protocol.challenge import Challenge, Mark, Purpose, verify_digest
from tang_attest.protocol.policy import ReferencePolicy, check_policy_selection
from tang_attest.protocol.quote import Evidence, VerifiedQuote, verify_quote
from tang_attest.protocol.reference_state import reference_state
from tang_attest.protocol.signed_values.examine import Brought
from tang_attest.protocol.values.pcr import PcrValues, Selection
from tang_attest.protocol.verification import (
    UNPROVEN,
    VERDICTS,
    RoundOutcome,
    as_capped,
    blames_the_log_only,
    cap_missing,
    read_cap,
    recordable,
    recorded_policy,
    running_policy,
    running_selection,
    with_cap,
    with_cause,
)
from tang_attest.service.audit.refusals import with_log_size
from tang_attest.service.rounds.ima import ImaLists, with_ima
from tang_attest.service.unlock.challenges import Challenges, Fresh
from tang_attest.service.unlock.device_keys import JudgedDevice, find_device_key

#: The actor of changes without an operator.
SERVER: Final = "server"


@dataclass(frozen=True, slots=True)
class Round:
    """Outcome of one round of *device*; *reasons* are empty when it was verified."""

    device: str
    outcome: RoundOutcome
    reasons: tuple[Reason, ...] = ()
    change: RoundEffect | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    """Evidence of one round, and the policy and nonce that it is appraised by."""

    bound: JudgedDevice
    policy: ReferencePolicy
    evidence: Evidence
    fresh: Fresh

    @property
    def digest(self) -> bytes:
        """Return 32 bytes that identify a quote over a nonce, whatever the encoding of its signature."""
        return hashlib.sha256(self.evidence.nonce.encode() + b"\n" + self.evidence.quote).digest()


class VerifyingStore(HasDecisions, HasDevices, HasPolicies, HasRounds, Protocol):
    """The roles of the store that a round needs."""


class RoundVerifier:
    """Makes challenges for running machines, and appraises their evidence."""

    def __init__(self, store: VerifyingStore, challenges: Challenges) -> None:
        self._store, self._challenges = store, challenges
        self._ima = ImaLists(store.rounds)

    async def challenge(self, kid: str) -> Challenge:
        """Return a challenge for the machine that uses *kid*.  Raises ``key-unknown``.  Nothing is stored."""
        return await self.challenge_for(await find_device_key(self._store.decisions, kid))

    async def challenge_for(self, bound: JudgedDevice, selection: Selection | None = None) -> Challenge:
        """Return a challenge for *bound*; it is over *selection* when the values are to be recorded."""
        rules, offset = False, None
        if selection is None:
            policy = await self._policy(bound)
            selection, rules = _quoted(bound, policy), policy.rules is not None
            offset = await self._ima.offset(bound.device) if bound.policy.conditions.ima else None
        nonce = self._challenges.make(Purpose.VERIFY, _subject(bound, selection), Mark(bound.device.clock))
        cap_pcr = bound.policy.cap_pcr if bound.policy.cap_pcr in selection.pcrs else None
        return Challenge(nonce, selection, self._challenges.ttl_s, rules, offset, cap_pcr=cap_pcr)

    async def respond(self, kid: str, evidence: Evidence, *, fetched: bool = False) -> Round:
        """Appraise *evidence*; return the :class:`Round` of a verdict, and raise any other refusal.

        Every refusal of evidence that we *fetched* from the machine's TPM ourselves is a verdict.  Raises
        :class:`Malformed`, :class:`Refused`, ``key-unknown``, and :class:`Conflict`: ``nonce-used`` for
        evidence that counted before, ``clock-backwards`` for that of a boot that is over.
        """
        return await self.respond_for(
            await find_device_key(self._store.decisions, kid), evidence, fetched=fetched
        )

    async def respond_for(self, bound: JudgedDevice, evidence: Evidence, *, fetched: bool = False) -> Round:
        """Appraise *evidence* of a device that was looked up; see :meth:`respond`."""
        now, policy = self._challenges.now(), await self._policy(bound)
        selection = _quoted(bound, policy)
        fresh = self._challenges.check(Purpose.VERIFY, _subject(bound, selection), evidence.nonce, now)
        answer = _Answer(bound, policy, evidence, fresh)
        try:
            quote = _verify(bound, selection, evidence, fresh)
        except Refused as refusal:
            if not (fetched or _is_verdict(refusal, fresh)):
                raise
            return await self._conclude(answer, None, refusal)
        opened = _opened(bound, quote, evidence)
        believed = opened.doubted("what it runs is not approved")
        try:
            await self._judge_values(bound, policy, quote, evidence.event_log, opened)
            believed = opened
            await self._judge_conditions(bound, quote, evidence, opened)
        except Refused as refusal:
            if {reason.code for reason in refusal.reasons} <= UNPROVEN or (
                blames_the_log_only(refusal)
                and await self._is_permitted_by_kept_log(bound, policy, quote, opened)
            ):
                raise with_log_size(refusal, evidence.event_log_size) from None
            return await self._conclude(answer, quote, refusal, believed)
        return await self._conclude(answer, quote, None, believed)

    async def _judge_values(
        self,
        bound: JudgedDevice,
        policy: ReferencePolicy,
        quote: VerifiedQuote,
        event_log: bytes,
        opened: Opened,
    ) -> None:
        """Raise :class:`Refused` unless the policy permits the values; any cap is as good as another."""
        # Not appraise(): nothing here may become a permit.
        quoted = {pcr: quote.values[pcr] for pcr in policy.selection.pcrs}
        judged = (bound.device.name, as_capped(policy, quoted, opened), self._challenges.now(), event_log)
        judge = partial(policy.judge, *judged, brought=_vouched(bound, quote))
        try:
            if policy.rules is None:
                judge()
            else:  # a log takes milliseconds
                await asyncio.to_thread(judge)
        except Refused as refusal:
            required = bound.policy.conditions.attested_root
            raise with_cause(refusal, policy, quoted, opened, required=required) from None

    async def _judge_conditions(
        self, bound: JudgedDevice, quote: VerifiedQuote, evidence: Evidence, opened: Opened
    ) -> None:
        """Raise :class:`Refused` unless the disks, and the measurements since boot, meet the policy's
        conditions.
        """
        conditions = bound.policy.conditions
        if conditions.attested_root and (reason := opened.obstacle()):
            raise Refused.because(reason)
        if conditions.ima is None:
            return
        if reasons := await self._ima.judge(bound.policy, bound.device, quote, evidence):
            raise Refused.because(*reasons)

    async def _is_permitted_by_kept_log(
        self, bound: JudgedDevice, policy: ReferencePolicy, quote: VerifiedQuote, opened: Opened
    ) -> bool:
        """Return True if a log that the machine sent before leads to the quoted values, and keeps the rules.

        The values are then good, and only the log of this round is wrong.
        """
        quoted = {pcr: quote.values[pcr] for pcr in policy.selection.pcrs}
        values = as_capped(policy, quoted, opened)
        for permitted in (True, False):
            kept = await self._store.policies.get_evidence(bound.device.name, permitted=permitted)
            if kept is None or not kept.snapshot.event_log:
                continue
            judged = (bound.device.name, values, self._challenges.now(), kept.snapshot.event_log)
            with contextlib.suppress(Refused):
                await asyncio.to_thread(policy.judge, *judged, brought=_vouched(bound, quote))
                return True
        return False

    async def record(
        self, bound: JudgedDevice, selection: Selection, evidence: Evidence, actor: str
    ) -> ReferencePolicy:
        """Make the quoted values the running policy of a device that has none, and that policy."""
        fresh = self._challenges.check(
            Purpose.VERIFY, _subject(bound, selection), evidence.nonce, self._challenges.now()
        )
        quote = _verify(bound, selection, evidence, fresh)
        opened = _opened(bound, quote, evidence)
        values = recordable(quote.values, selection, bound.policy.cap_pcr, explained=opened.explained)
        return await self.record_values(bound.device, selection, values, actor)

    async def record_values(
        self, device: Device, selection: Selection, values: PcrValues, actor: str
    ) -> ReferencePolicy:
        """Make verified values the running policy of a device; a policy that was recorded before gets a
        further state.

        Raises ``selection-invalid``, ``name-taken`` when that policy is over other PCRs, and ``cap-missing`` for
        a machine with a disk that did not extend its cap: its next good boot would be refused.
        """
        now = self._challenges.now()
        boot = await self._store.policies.get_policy(device.policy)
        if device.origin == "enrolled" and (missing := cap_missing(boot.cap_pcr, values)) is not None:
            raise Refused.because(missing)
        state = reference_state(
            check_policy_selection(selection),
            f"running {now:%Y-%m-%d %H:%M:%S.%f}",
            values,
            "recorded",
            cap_pcr=boot.cap_pcr,
            force=True,  # a cap alone proves that the initrd ended as it should
        )
        state = replace(state, created_at=now, created_by=actor)
        name = f"{device.name[: 63 - len('-running')]}-running"
        policy = ReferencePolicy(name, selection, boot.cap_pcr, (state,))
        details = {"policy": name, "values": {str(pcr): value.hex() for pcr, value in sorted(values.items())}}
        entry = AuditEntry(now, "device running-policy", actor, "done", device=device.name, details=details)
        try:
            recorded = await self._store.policies.get_policy(name)
        except NotFound:
            await self._store.rounds.record_running(device.name, policy, entry)
            return policy
        if recorded.selection != selection:
            sentence = f"Policy '{name}' is over {recorded.selection}; it was recorded before."
            raise Conflict("name-taken", sentence)
        if all(known.values != state.values for known in recorded.states):
            await self._store.policies.add_state(name, state, entry)
        await self._store.devices.set_running_policy(device.name, name, entry)
        return recorded

    async def unreachable(self, device: Device, policy: ReferencePolicy, silent_since: datetime) -> Round:
        """Record that no authentic evidence came since *silent_since*, unless it came meanwhile."""
        now = self._challenges.now()
        reason = Reason("device-unreachable", f"No evidence of '{device.name}' that counts came in time.")
        verification = self._verification(device, policy, RoundOutcome.UNREACHABLE, (reason,), now)
        change = await self._store.rounds.record_round(replace(verification, silent_since=silent_since))
        return Round(device.name, RoundOutcome.UNREACHABLE, (reason,), change)

    async def _policy(self, bound: JudgedDevice) -> ReferencePolicy:
        if bound.device.running_policy is None:
            return running_policy(bound.policy)
        chosen = await self._store.policies.get_policy(bound.device.running_policy)
        return recorded_policy(chosen, bound.policy)

    async def _conclude(
        self,
        answer: _Answer,
        quote: VerifiedQuote | None,
        refusal: Refused | None,
        opened: Opened | None = None,
    ) -> Round:
        bound, fresh = answer.bound, answer.fresh
        outcome = RoundOutcome.VERIFIED if refusal is None else RoundOutcome.REFUSED
        reasons = () if refusal is None else refusal.reasons
        now = self._challenges.now()
        verification = replace(
            self._verification(bound.device, bound.policy, outcome, reasons, now),
            answer_digest=answer.digest,
            answer_expires_at=fresh.expires_at,
        )
        if quote is not None:
            # Only PCRs that can be in a policy: PCR 10, quoted for IMA's list, keeps changing.
            selection = answer.policy.selection
            values = {str(pcr): quote.values[pcr].hex() for pcr in selection.pcrs}
            details = {**verification.details, "selection": str(selection), "values": values}
            told = None
            if opened is not None:
                told = OpenedReport(now, quote.clock.reset_count, opened)
                details["disks"] = opened.as_json()
            verification = replace(
                verification, clock=quote.clock, behind_ms=fresh.behind_ms, details=details, told=told
            )
        else:
            # Its clock is not stored, so nothing else shows that it is not older than evidence that counted
            # since.
            verification = replace(verification, silent_since=fresh.made_at)
        change = await self._store.rounds.record_round(verification)
        if change is None:
            raise Conflict("clock-backwards", "Newer evidence of this device was accepted meanwhile.")
        return Round(bound.device.name, outcome, reasons, change)

    def _verification(
        self,
        device: Device,
        policy: ReferencePolicy,
        outcome: RoundOutcome,
        reasons: Sequence[Reason],
        now: datetime,
    ) -> RoundRecord:
        code = reasons[0].code if reasons else "ok"
        actions = _actions(device, policy, outcome)
        suspend = None
        if "suspend" in actions and outcome is not RoundOutcome.VERIFIED:
            suspend = Suspension(now, SERVER, f"{outcome} ({code}): {reasons[0].sentence}")
        return RoundRecord(
            device_id=device.id,
            at=now,
            outcome=outcome,
            code=code,
            details={"reasons": [reason.as_json() for reason in reasons]},
            suspend=suspend,
            notify=tuple(action for action in actions if action.startswith(("hook:", "webhook:"))),
        )


def _subject(bound: JudgedDevice, selection: Selection) -> str:
    """Subject of a nonce.  With the selection, so that an answer during its change is not refused for it."""
    return f"{bound.identity} {selection}"


def _quoted(bound: JudgedDevice, policy: ReferencePolicy) -> Selection:
    """Return the selection that a running machine has to quote."""
    selection, conditions = policy.selection, bound.policy.conditions
    if conditions.attested_root:
        selection = with_cap(selection, bound.policy.cap_pcr)
    return with_ima(selection) if conditions.ima else selection


def _opened(bound: JudgedDevice, quote: VerifiedQuote, evidence: Evidence) -> Opened:
    """Return the statements of the cap's texts about the disks: those sent now, or earlier ones that lead to
    the same value.
    """
    kept = bound.device.told.opened.texts if bound.device.told else b""
    cap_pcr = bound.policy.cap_pcr
    sent = read_cap(evidence.cap_events, quote.selection, quote.values, cap_pcr)
    if sent.volumes or not kept:
        return sent
    known = read_cap(kept, quote.selection, quote.values, cap_pcr)
    return known if known.volumes else sent


def _vouched(bound: JudgedDevice, quote: VerifiedQuote) -> Brought:
    """Return the signed values that permitted this very boot, if any did."""
    device = bound.device
    return Brought(remembered=device.signed if device.opened_reset_count == quote.clock.reset_count else None)


def _verify(bound: JudgedDevice, selection: Selection, evidence: Evidence, fresh: Fresh) -> VerifiedQuote:
    binding = verify_digest(evidence.nonce, bound.identity)
    return verify_quote(fresh.enrolled(bound.device), evidence, selection, binding)


def _is_verdict(refusal: Refused, fresh: Fresh) -> bool:
    """Return True if *refusal* is a verdict on the machine.

    A clock or a counter that went back is one if the nonce was made after the evidence that it is compared
    with: then no two rounds overtook each other, and the TPM's state was set back (a virtual machine's
    snapshot).
    """
    if refusal.code in ("clock-backwards", "reset-count-backwards"):
        return fresh.mark is not None
    return refusal.code in VERDICTS


def _actions(device: Device, policy: ReferencePolicy, outcome: RoundOutcome) -> tuple[str, ...]:
    """Return the actions of *policy*; a receiver of a failure is also notified of its end."""
    watch = policy.conditions.watch
    if watch is None:
        return ()
    before = device.standing.outcome if outcome is RoundOutcome.VERIFIED else outcome
    match before:
        case RoundOutcome.REFUSED:
            return watch.on_refused
        case RoundOutcome.UNREACHABLE:
            return watch.on_unreachable
        case _:
            return ()


def parse_values(past: PastRound) -> tuple[Selection, PcrValues]:
    """Return the values that a stored round quoted.  Raises ``observation-missing`` when it has none."""
    selection, values = past.details.get("selection"), past.details.get("values")
    if not isinstance(selection, str) or not isinstance(values, dict):
        raise Malformed("observation-missing", f"The last round of '{past.device}' has no quoted values.")
    return Selection.parse(selection), {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}


def default_selection(policy: ReferencePolicy) -> Selection:
    """Return the default selection to record of a running machine."""
    return running_selection(policy.selection)
