"""(11), (12) Appraisal: the policy applied to a verified quote, and the records that follow from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.ports.decisions import NewEvidence, RolloutResult, Snapshot
from tang_attest.ports.machines import Device
from tang_attest.protocol import eventlog
from tang_attest.protocol.coverage import BootPart, acceptance, assess, require_covered
from tang_attest.protocol.eventlog.phases import unexplained
from tang_attest.protocol.grade import grade, unmeasured_inputs
from tang_attest.protocol.policy import DEFAULT_CAP_PCR, Permit, differing_pcrs, learned_now
from tang_attest.protocol.quote import Evidence, VerifiedQuote
from tang_attest.protocol.reference_state import ReferenceState, learnable
from tang_attest.protocol.signed_values.examine import Brought
from tang_attest.protocol.verification import blames_the_log_only
from tang_attest.service.unlock.device_keys import DeviceKey
from tang_attest.service.unlock.suspension import check_admitted, check_not_retired, check_not_suspended

#: Refusals that do not depend on the quoted values, or that concern approved values.
NOT_THE_VALUES: Final = frozenset(
    {"device-suspended", "key-retired", "approval-required", "device-stale", "state-learned"}
)


@dataclass(frozen=True, slots=True)
class AppraisalResult:
    """Result of an appraisal, and the records of it for the store.

    ``observation`` is the refused evidence that an operator may approve, ``learned`` the state that an armed
    learning use made, ``news`` the evidence if the store has another, ``rollout`` the effect on the rollout
    of the policy.
    """

    outcome: Permit | Refused
    observation: Snapshot | None = None
    learned: ReferenceState | None = None
    news: NewEvidence | None = None
    rollout: RolloutResult | None = None

    @property
    def met(self) -> ReferenceState | None:
        """Return the state that the values met; None for a refusal."""
        return self.outcome.state if isinstance(self.outcome, Permit) else None


def appraise(bound: DeviceKey, quote: VerifiedQuote, evidence: Evidence, now: datetime) -> AppraisalResult:
    """Apply the policy.  It takes milliseconds when there is an event log or a statement, so run it outside the
    event loop.
    """
    outcome, learned = _judge(bound, quote, evidence, now)
    quoted = Snapshot(quote.selection, quote.values, evidence.event_log)
    odd_values = isinstance(outcome, Refused) and not learned and outcome.code not in NOT_THE_VALUES
    return AppraisalResult(
        outcome,
        observation=quoted if odd_values else None,
        learned=learned,
        news=_news(bound, quoted, outcome),
        rollout=_rollout_result(bound, outcome),
    )


def _judge(
    bound: DeviceKey, quote: VerifiedQuote, evidence: Evidence, now: datetime
) -> tuple[Permit | Refused, ReferenceState | None]:
    event_log = evidence.event_log
    try:
        check_not_suspended(bound.device)
        check_not_retired(bound.key)
        permit = bound.policy.appraise(quote, now, event_log, Brought(evidence.signed_values))
        _check_learned(bound.device, permit, quote)
        check_admitted(bound.policy, bound.device, now)
    except Refused as refusal:
        if refusal.code in NOT_THE_VALUES:
            return refusal, None
        # Values of an approved state need not be learned, with any log.
        if not blames_the_log_only(refusal) and (learned := _learn(bound, quote, event_log, now)):
            if isinstance(learned, Refused):
                return learned, None
            # Refused all the same: somebody with the passphrase has to be present when a state is learned.
            return Refused("state-learned", "This boot's state was recorded as the one to expect."), learned
        return _explain(refusal, bound.device, quote), None
    return permit, None


def _check_learned(device: Device, permit: Permit, quote: VerifiedQuote) -> None:
    """Raise ``state-learned`` in the boot that was learned."""
    if reason := learned_now(permit.state, device.learned_reset_count, quote.clock.reset_count):
        raise Refused.because(reason)


def _learn(
    bound: DeviceKey, quote: VerifiedQuote, event_log: bytes, now: datetime
) -> ReferenceState | Refused | None:
    """Return the state that an armed learning use makes of this boot; the refusal of a boot that nobody
    covers, for which the use stays armed.
    """
    device, learning = bound.device, bound.device.learning
    if learning is None or now >= learning.until or not learnable(learning.stable, quote.values):
        return None
    label = f"learned {now:%Y-%m-%d %H:%M:%S}"
    actor = f"device:{device.name}"
    found = assess(event_log, quote.selection, quote.values, loose={bound.policy.cap_pcr})
    try:
        require_covered(found, learning.accepted)
    except Refused as refusal:
        return refusal
    state = ReferenceState(label, dict(quote.values), "learned", created_at=now, created_by=actor)
    return replace(state, accepted=acceptance(found, learning.accepted))


def _explain(refusal: Refused, device: Device, quote: VerifiedQuote) -> Refused:
    """Name the usual cause of values that no boot has: PCRs that still hold the values of an earlier boot.

    Boards without a wire from reset to the TPM keep their PCRs over a warm reboot.  Then every extended PCR
    differs, and the reset counter is the same as when the disks were last open.
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


def _news(bound: DeviceKey, quoted: Snapshot, outcome: Permit | Refused) -> NewEvidence | None:
    """New evidence to store, or None if it is unchanged or was quoted after the boot."""
    if isinstance(outcome, Refused) and outcome.code == "capped":
        return None
    new = NewEvidence(quoted, isinstance(outcome, Permit))
    if new.digest == bound.device.evidence_digest:
        return None
    accepted = outcome.state.accepted if isinstance(outcome, Permit) else ()
    cap_pcr, ek_verified = bound.policy.cap_pcr, bound.device.ek_verified
    found = grade_of(quoted, ek_verified=ek_verified, cap_pcr=cap_pcr, accepted=accepted)
    return NewEvidence(quoted, new.permitted, found)


def grade_of(
    quoted: Snapshot,
    *,
    ek_verified: bool,
    cap_pcr: int = DEFAULT_CAP_PCR,
    accepted: Collection[BootPart] = (),
) -> Mapping[str, object]:
    """Return the grade of the quoted measurements, in the form of
    :meth:`~tang_attest.protocol.grade.Grade.as_json`.

    It has ``coverage`` (:meth:`~tang_attest.protocol.coverage.Assessment.as_json`), and ``unmeasured``, a
    list of sentences, where unmeasured inputs may steer the boot.
    """
    log, replayed = None, False
    if quoted.event_log:
        try:
            log = eventlog.parse(quoted.event_log)
            replayed = not _contradictions(log, quoted)
        except Malformed:
            log = None
    assessed = assess(quoted.event_log, quoted.selection, quoted.values, loose={cap_pcr})
    found = grade(
        ek_verified=ek_verified,
        log=log,
        replayed=replayed,
        values=quoted.values,
        coverage=assessed.coverage,
        accepted=accepted,
    ).as_json()
    inputs = unmeasured_inputs(log, quoted.selection.bank, replayed=replayed)
    found |= {"coverage": {**assessed.as_json(), "accepted": [part.value for part in accepted]}}
    return {**found, "unmeasured": list(inputs)} if inputs else found


def _contradictions(log: eventlog.EventLog, quoted: Snapshot) -> tuple[eventlog.Mismatch, ...]:
    bank = quoted.selection.bank
    extended = set(eventlog.replay(log, bank))
    values = {pcr: value for pcr, value in quoted.values.items() if pcr in extended}
    return unexplained(log, bank, values)


def _rollout_result(bound: DeviceKey, outcome: Permit | Refused) -> RolloutResult | None:
    """Return the outcome's effect on the rollout of the device's policy."""
    if bound.rollout is None:
        return None
    if isinstance(outcome, Refused):
        result, about = bound.rollout.outcome(bound.subject, met=None, code=outcome.code), outcome.code
    else:
        met, signed = outcome.state.label, outcome.state.signed
        vouched = None if signed is None else signed.label
        result, about = (
            bound.rollout.outcome(bound.subject, met=met, code=met, signed=vouched),
            vouched or met,
        )
    return None if result is None else RolloutResult(bound.rollout, result, about)
