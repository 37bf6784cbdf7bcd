"""Rollouts: who is in the audience, what a device is judged by, and what a boot says about the change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol.changes.change import AddedState, PolicyChange
from tang_attest.protocol.changes.rollout import (
    WHOLE,
    Rollout,
    RolloutOutcome,
    RolloutPhase,
    RolloutSubject,
    abandoned,
    finished,
    judged_by,
    place,
)
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.rules import parse_rules
from tang_attest.protocol.values.labels import check_labels
from tang_attest.protocol.values.pcr import PcrValues, Selection

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OLD, NEW = {0: b"\x01" * 32}, {0: b"\x02" * 32}
POLICY = ReferencePolicy("web", Selection("sha256", (0,)), 15, (ReferenceState("old", OLD, "recorded"),))
NAMES = [f"pi-{number}" for number in range(2000)]

PASSED, REFUSED = RolloutOutcome.PASSED, RolloutOutcome.REFUSED


def make(**fields) -> Rollout:
    """A rollout that adds ``new`` for those labeled canary."""
    known: dict[str, Any] = {
        "policy": "web",
        "name": "r",
        "change": PolicyChange((AddedState("new", NEW),)),
        "salt": "salt",
        "label": "canary",
        "limit": 1,
        "started_at": NOW,
        "started_by": "operator:alice",
    }
    return Rollout(**(known | fields))


CANARY, OTHER = RolloutSubject("a", ("canary",)), RolloutSubject("b", ("prod",))


def verdict(rollout: Rollout, subject: RolloutSubject, values: PcrValues) -> str:
    """The state that permits, or the code of the refusal, once the rollout's states are staged."""
    try:
        judged = judged_by(rollout.stage(POLICY), rollout, subject)
        return judged.judge(subject.name, values, NOW).label
    except Refused as refusal:
        return refusal.code


# --- the audience ---------------------------------------------------------------------------------------------------


def test_a_share_is_a_share() -> None:
    """A tenth of many devices is about a tenth; another salt draws others."""
    chosen = [name for name in NAMES if make(share=WHOLE // 10, label=None).includes(RolloutSubject(name))]
    assert 150 < len(chosen) < 250
    assert chosen != [
        n for n in NAMES if make(share=WHOLE // 10, label=None, salt="s").includes(RolloutSubject(n))
    ]


@given(st.text(max_size=20), st.integers(0, WHOLE), st.integers(0, WHOLE))
def test_the_audience_only_grows(name: str, first: int, second: int) -> None:
    """A device in a share is in every larger one; everybody is in the whole, nobody in none."""
    smaller, larger = (make(share=share, label=None) for share in sorted((first, second)))
    subject = RolloutSubject(name)
    assert larger.includes(subject) or not smaller.includes(subject)
    assert make(share=WHOLE, label=None).includes(subject)
    assert not make(share=0, label=None).includes(subject)
    assert 0 <= place("salt", name) < WHOLE


def test_a_label_and_a_share() -> None:
    """A rollout that began with a label and was widened reaches both."""
    widened = make(share=WHOLE // 2)
    assert widened.includes(CANARY)
    reached = [name for name in NAMES if widened.includes(RolloutSubject(name))]
    assert 900 < len(reached) < 1100


# --- judging --------------------------------------------------------------------------------------------------------


def test_only_the_audience_gets_the_new_state() -> None:
    """The others hear that it has not reached them; what counted before counts for all."""
    rollout = make()
    assert verdict(rollout, CANARY, NEW) == "new"
    assert verdict(rollout, OTHER, NEW) == "state-not-rolled-out"
    assert verdict(rollout, CANARY, OLD) == verdict(rollout, OTHER, OLD) == "old"


def test_retiring_is_rolled_out_too() -> None:
    """The old state counts no more for the audience, and for the others it does."""
    rollout = make(change=PolicyChange((AddedState("new", NEW),), ("old",)))
    assert verdict(rollout, CANARY, OLD) == "state-retired"
    assert verdict(rollout, OTHER, OLD) == "old"


def test_rules_are_rolled_out_too() -> None:
    """Only the audience is asked for its event log, and whoever passed still is after a stop."""
    rules = parse_rules(
        {"judge-by-events": [0], "rules": [{"events": {"pcr": 0, "allow": [{"data-matches": "x"}]}}]}
    )
    rollout = make(change=PolicyChange(rules=rules))
    stopped = make(change=PolicyChange(rules=rules), status=RolloutPhase.STOPPED)
    assert verdict(rollout, CANARY, OLD) == "log-missing"
    assert verdict(rollout, OTHER, OLD) == verdict(stopped, CANARY, OLD) == "old"
    assert verdict(stopped, RolloutSubject("a", (), PASSED), OLD) == "log-missing"


@pytest.mark.parametrize("status", [RolloutPhase.STOPPED, RolloutPhase.FINISHED, RolloutPhase.ABANDONED])
def test_what_runs_no_more_reaches_nobody(status: RolloutPhase) -> None:
    """Its states are as they are in the policy, with their limit as long as they have it."""
    assert verdict(make(status=status), CANARY, NEW) == "state-not-rolled-out"


def test_who_passed_keeps_the_change_after_a_stop() -> None:
    """Its next boot must not be refused; also when it lost its label."""
    for status in (RolloutPhase.RUNNING, RolloutPhase.STOPPED):
        assert verdict(make(status=status), RolloutSubject("a", (), PASSED), NEW) == "new"
    assert (
        verdict(make(status=RolloutPhase.STOPPED), RolloutSubject("a", ("canary",), REFUSED), NEW)
        == "state-not-rolled-out"
    )


def test_no_rollout_no_state() -> None:
    """A state that belongs to a rollout counts for nobody without it."""
    policy = make().stage(POLICY)
    with pytest.raises(Refused) as refusal:
        judged_by(policy, None, CANARY).judge("a", NEW, NOW)
    assert refusal.value.code == "state-not-rolled-out"
    assert "'r'" in refusal.value.sentence


def test_a_state_of_another_rollout_stays_limited() -> None:
    """Only the states of this rollout are let go."""
    policy = make(name="other").stage(POLICY)
    with pytest.raises(Refused) as refusal:
        judged_by(policy, make(), CANARY).judge("a", NEW, NOW)
    assert refusal.value.code == "state-not-rolled-out"


def test_finished_and_abandoned() -> None:
    """Finished, it counts for all, and what it retires is retired for all; abandoned, its states are retired."""
    rollout = make(change=PolicyChange((AddedState("new", NEW),), ("old",)))
    policy = rollout.stage(POLICY)
    assert finished(policy, rollout).judge("b", NEW, NOW).label == "new"
    assert [state.life for state in finished(policy, rollout).states] == [Life.RETIRED, Life.STAGED]
    assert [state.life for state in abandoned(policy, rollout).states] == [Life.ACTIVE, Life.RETIRED]


# --- what a boot says -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "met", "code", "outcome"),
    [
        (CANARY, "new", "ok", PASSED),
        (CANARY, "old", "ok", None),  # it has not booted the change yet
        (CANARY, None, "pcr-mismatch", REFUSED),
        (CANARY, None, "tpm-not-reset", REFUSED),
        (CANARY, None, "capped", None),  # a running system asks
        (CANARY, None, "state-learned", None),  # refused so that a person is there
        (CANARY, None, "device-suspended", None),  # gets nothing whatever it boots
        (CANARY, None, "approval-required", None),
        (CANARY, None, "device-stale", None),
        (CANARY, None, "rule-failed", REFUSED),
        (OTHER, None, "pcr-mismatch", None),
        (OTHER, "old", "ok", None),
        (RolloutSubject("a", ("canary",), REFUSED), None, "pcr-mismatch", None),  # a retry
        (RolloutSubject("a", ("canary",), REFUSED), "new", "ok", PASSED),
        (RolloutSubject("a", ("canary",), PASSED), None, "pcr-mismatch", None),  # it has passed
        (RolloutSubject("a", ("canary",), PASSED), "new", "ok", None),
    ],
)
def test_outcome(subject: RolloutSubject, met: str | None, code: str, outcome: RolloutOutcome | None) -> None:
    """Devices are counted, not boots; only the audience, and only what is about the change."""
    assert make().outcome(subject, met=met, code=code) is outcome
    assert make(status=RolloutPhase.STOPPED).outcome(subject, met=met, code=code) is None


def test_without_a_new_state_every_pass_is_one() -> None:
    """A change that only retires or rules has no state of its own to meet."""
    rollout = make(change=PolicyChange(retire=("older",)))
    assert rollout.outcome(CANARY, met="old", code="ok") is PASSED


def test_over() -> None:
    """Stopped is not over: it can run again."""
    assert [status for status in RolloutPhase if replace(make(), status=status).over] == [
        "finished",
        "abandoned",
    ]


# --- labels ---------------------------------------------------------------------------------------------------------


def test_labels() -> None:
    """Sorted, each once."""
    assert check_labels(["site=berlin", "canary", "canary"]) == ("canary", "site=berlin")


@pytest.mark.parametrize("label", ["", "-x", "a b", "a,b", "x" * 64, "é", "a\n"])
def test_bad_labels(label: str) -> None:
    """Text that looks like an option or two labels is no label."""
    with pytest.raises(Malformed, match="is no label"):
        check_labels([label])


def test_too_many_labels() -> None:
    """At most 32."""
    assert len(check_labels(f"l{number}" for number in range(32))) == 32
    with pytest.raises(Malformed, match="at most 32"):
        check_labels(f"l{number}" for number in range(33))
