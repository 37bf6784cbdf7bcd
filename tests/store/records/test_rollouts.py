"""Rollouts in the registry: one at a time, each device counted once, and stopped by the refusal that is too many."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from tang_attest.errors import Conflict, NotFound, TangAttestError
from tang_attest.ports.decisions import RolloutResult
from tang_attest.protocol.changes.change import AddedState, PolicyChange
from tang_attest.protocol.changes.rollout import Rollout, RolloutOutcome, RolloutPhase
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.rules import parse_rules
from tang_attest.store import SqlStore
from tang_attest.store.records import rollouts
from tests.store.conftest import Opener, Stall
from tests.store.samples import NOW, decision, device, enrollment, entry, key, policy, token, values

PASSED, REFUSED = RolloutOutcome.PASSED, RolloutOutcome.REFUSED
RULES = parse_rules({"judge-by-events": [7], "rules": [{"secure-boot": "on"}]})
NEW = ReferenceState(
    "new", values("new"), "imported", Life.STAGED, created_at=NOW, created_by="operator:test"
)


def rollout(**fields: Any) -> Rollout:
    """One over the policy ``policy`` that adds ``new`` and retires ``recorded``."""
    known: dict[str, Any] = {
        "policy": "policy",
        "name": "r",
        "change": PolicyChange((AddedState("new", values("new")),), ("recorded",), RULES),
        "salt": "salt",
        "share": 10_000,
        "label": "canary",
        "limit": 1,
        "started_at": NOW,
        "started_by": "operator:test",
    }
    return Rollout(**(known | fields))


async def begin(store: SqlStore, count: int = 4, **fields: Any) -> tuple[Rollout, dict[str, int]]:
    """A running rollout, and the ids of *count* devices ``d0``, ``d1``, ..."""
    await store.policies.add_policy(policy(), entry())
    ids = {
        name: (await store.devices.add_device(device(name), "policy", key(f"kid-{name}"), entry())).id
        for name in (f"d{number}" for number in range(count))
    }
    await store.policies.start_rollout(rollout(**fields), [NEW], entry("policy rollout start"))
    return await newest(store), ids


async def newest(store: SqlStore) -> Rollout:
    found = await store.policies.get_rollout("policy")
    assert found is not None
    return found


async def fare(
    store: SqlStore, device_id: int, running: Rollout, outcome: RolloutOutcome, **fields: Any
) -> None:
    """One appraisal that says *outcome* about the rollout."""
    number = next(_numbers)
    about = "new" if outcome is PASSED else "pcr-mismatch"
    verdict = {"met": NEW} if outcome is PASSED else {"audit": entry("unlock", verdict="refused", code=about)}
    result = RolloutResult(running, outcome, about)
    await store.decisions.decide(
        decision(device_id, f"n{number}", number, rollout=result, **(verdict | fields))
    )


_numbers = iter(range(1, 1_000_000))


async def refused(code: str, kind: type[TangAttestError], call) -> None:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.code == code


async def device_outcomes(store: SqlStore, running: Rollout) -> dict[str, RolloutOutcome]:
    return {entry.device: entry.outcome for entry in await store.policies.list_rollout_devices(running.id)}


async def audited(store: SqlStore, event: str) -> list[Any]:
    return [row for _, row in await store.audit.list_audit(limit=1000) if row.event == event]


# --- start ----------------------------------------------------------------------------------------------------------


async def test_start(store: SqlStore) -> None:
    """A rollout comes back as it was started; its states are limited to it."""
    running, _ = await begin(store, 0)
    assert running == rollout(id=running.id)
    states = (await store.policies.get_policy("policy")).states
    assert states[-1] == replace(NEW, limits=replace(NEW.limits, rollout="r"))
    assert await store.policies.list_rollout_devices(running.id) == []
    assert len(await audited(store, "policy rollout start")) == 1


async def test_one_at_a_time(store: SqlStore) -> None:
    """A second is refused until the first is over; a name is used once; nothing is left of what was refused."""
    await refused("not-found", NotFound, store.policies.start_rollout(rollout(), [NEW], entry()))
    running, _ = await begin(store, 0)
    other = rollout(name="other")
    await refused("rollout-unfinished", Conflict, store.policies.start_rollout(other, [], entry()))
    await store.policies.move_rollout(running, RolloutPhase.STOPPED, "why", entry())
    await refused("rollout-unfinished", Conflict, store.policies.start_rollout(other, [], entry()))
    await store.policies.move_rollout(await newest(store), RolloutPhase.ABANDONED, None, entry())
    await refused("name-taken", Conflict, store.policies.start_rollout(rollout(), [], entry()))
    await refused("name-taken", Conflict, store.policies.start_rollout(other, [NEW], entry()))
    await store.policies.start_rollout(other, [], entry())
    assert (await newest(store)).name == "other"
    assert await store.policies.get_rollout("policy") == await newest(store)
    await refused("not-found", NotFound, store.policies.get_rollout("none"))


async def test_two_start_at_once(store: SqlStore, open_another: Opener) -> None:
    """One of them does."""
    await store.policies.add_policy(policy(), entry())
    other = await open_another()
    ends = await asyncio.gather(
        store.policies.start_rollout(rollout(), [], entry()),
        other.policies.start_rollout(rollout(name="other"), [], entry()),
        return_exceptions=True,
    )
    (lost,) = [end for end in ends if end is not None]
    assert isinstance(lost, Conflict)
    assert lost.code == "rollout-unfinished"


# --- the request path -----------------------------------------------------------------------------------------------


async def test_find_key_gives_the_rollout(store: SqlStore) -> None:
    """As long as it is not over, with the outcome of each device; other policies have none."""
    running, ids = await begin(store)
    await store.policies.add_policy(policy("fleet"), entry())
    await store.devices.add_device(device("other"), "fleet", key("kid-other"), entry())
    await fare(store, ids["d0"], running, PASSED)
    await fare(store, ids["d1"], running, REFUSED)
    found = await asyncio.gather(
        *(store.decisions.find_key(f"kid-{name}") for name in ("d0", "d1", "d2", "other"))
    )
    assert [bound and (bound.rollout, bound.outcome) for bound in found] == [
        (running, PASSED),
        (running, REFUSED),
        (running, None),
        (None, None),
    ]
    await store.policies.move_rollout(running, RolloutPhase.FINISHED, None, entry())
    bound = await store.decisions.find_key("kid-d0")
    assert bound is not None
    assert (bound.rollout, bound.outcome) == (None, None)


async def test_devices_are_counted_once(store: SqlStore) -> None:
    """Retries do not stop a rollout, one device more does; who passes later has passed."""
    running, ids = await begin(store, limit=2)
    for _ in range(5):
        await fare(store, ids["d0"], running, REFUSED)
    await fare(store, ids["d1"], running, REFUSED)
    assert (await newest(store)).status is RolloutPhase.RUNNING
    await fare(store, ids["d1"], running, PASSED)
    await fare(store, ids["d1"], running, REFUSED)
    await fare(store, ids["d2"], running, REFUSED)
    assert (await newest(store)).status is RolloutPhase.RUNNING
    assert await device_outcomes(store, running) == {"d0": REFUSED, "d1": PASSED, "d2": REFUSED}
    await fare(store, ids["d3"], running, REFUSED)
    stopped = await newest(store)
    assert (stopped.status, stopped.ended_at, stopped.ended_by) == (RolloutPhase.STOPPED, NOW, "server")
    assert stopped.why == "3 devices were refused, the limit is 2"
    (told,) = await audited(store, "policy rollout stop")
    assert (told.actor, told.details["refused"]) == ("server", ["d0", "d2", "d3"])


async def test_a_stopped_rollout_counts_no_more(store: SqlStore) -> None:
    """A refusal under way when it stopped is a refusal, and not one of its."""
    running, ids = await begin(store, limit=0)
    await fare(store, ids["d0"], running, REFUSED)
    await fare(store, ids["d1"], running, REFUSED)
    assert await device_outcomes(store, running) == {"d0": REFUSED}
    assert len(await audited(store, "policy rollout stop")) == 1
    assert len(await audited(store, "unlock")) == 2


async def test_a_pass_under_way_when_it_stopped(store: SqlStore) -> None:
    """The state counts no more for a device that had not passed before."""
    running, ids = await begin(store, limit=0)
    await fare(store, ids["d0"], running, REFUSED)
    await refused("state-not-rolled-out", Conflict, fare(store, ids["d1"], running, PASSED))
    assert await device_outcomes(store, running) == {"d0": REFUSED}
    assert (await store.devices.get_device("d1")).last_state is None


async def test_a_pass_under_way_when_it_finished(store: SqlStore) -> None:
    """It counts for everybody now."""
    running, ids = await begin(store)
    await store.policies.move_rollout(running, RolloutPhase.FINISHED, None, entry())
    await fare(store, ids["d1"], running, PASSED)
    assert (await store.devices.get_device("d1")).last_state == "new"


async def test_a_pass_under_way_when_it_was_abandoned(store: SqlStore) -> None:
    """Its state is retired."""
    running, ids = await begin(store)
    await store.policies.move_rollout(running, RolloutPhase.ABANDONED, None, entry())
    await refused("state-retired", Conflict, fare(store, ids["d1"], running, PASSED))


async def test_replicas_count_together(
    store: SqlStore, open_another: Opener, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two refusals at the same time, each the last that the limit allows: the second sees the first and stops."""
    running, ids = await begin(store, limit=1)
    other = await open_another()
    monkeypatch.setattr(rollouts, "_refused", stall.around(rollouts._refused))
    first = asyncio.create_task(fare(store, ids["d0"], running, REFUSED))
    await stall.entered()
    second = asyncio.create_task(fare(other, ids["d1"], running, REFUSED))
    await asyncio.sleep(0.2)
    stall.go()
    await asyncio.gather(first, second)
    assert (await newest(store)).status is RolloutPhase.STOPPED
    assert len(await audited(store, "policy rollout stop")) == 1


async def test_many_refusals_at_once(store: SqlStore) -> None:
    """In one batch too the limit is exact."""
    running, ids = await begin(store, 12, limit=3)
    await asyncio.gather(*(fare(store, device_id, running, REFUSED) for device_id in ids.values()))
    assert len(await device_outcomes(store, running)) == 4
    assert (await newest(store)).why == "4 devices were refused, the limit is 3"


# --- the operator ---------------------------------------------------------------------------------------------------


async def test_widen(store: SqlStore) -> None:
    """Only upwards, and only while it runs."""
    running, _ = await begin(store, 0, share=100)
    await store.policies.widen_rollout(running, 200, entry())
    assert (await newest(store)).share == 200
    await refused("rollout-changed", Conflict, store.policies.widen_rollout(running, 200, entry()))
    await store.policies.move_rollout(await newest(store), RolloutPhase.STOPPED, None, entry())
    await refused("rollout-changed", Conflict, store.policies.widen_rollout(running, 300, entry()))
    await refused("not-found", NotFound, store.policies.widen_rollout(replace(running, id=99), 300, entry()))


async def test_resume_forgets_refusals(store: SqlStore) -> None:
    """Refused devices are counted anew, passed ones have passed; the reason of the stop is gone."""
    running, ids = await begin(store, limit=0)
    await fare(store, ids["d0"], running, PASSED)
    await fare(store, ids["d1"], running, REFUSED)
    await store.policies.move_rollout(await newest(store), RolloutPhase.RUNNING, None, entry())
    resumed = await newest(store)
    assert resumed == running
    assert await device_outcomes(store, resumed) == {"d0": PASSED}
    await fare(store, ids["d1"], resumed, REFUSED)
    assert (await newest(store)).status is RolloutPhase.STOPPED


async def test_finish(store: SqlStore) -> None:
    """The states lose their limit, what is retired is, and the rollout is over."""
    running, _ = await begin(store)
    ended = entry(actor="operator:bob")
    await store.policies.move_rollout(running, RolloutPhase.FINISHED, "done", ended)
    found = await newest(store)
    assert (found.status, found.ended_by, found.why) == (RolloutPhase.FINISHED, "operator:bob", "done")
    states = {state.label: state for state in (await store.policies.get_policy("policy")).states}
    assert states["recorded"].life is Life.RETIRED
    assert states["new"] == NEW
    await refused(
        "rollout-changed", Conflict, store.policies.move_rollout(running, RolloutPhase.STOPPED, None, entry())
    )


async def test_abandon(store: SqlStore) -> None:
    """Its states are retired, and nothing else is."""
    running, _ = await begin(store)
    await store.policies.move_rollout(running, RolloutPhase.ABANDONED, None, entry())
    states = {state.label: state for state in (await store.policies.get_policy("policy")).states}
    assert states["recorded"].life is Life.ACTIVE
    assert states["new"] == replace(NEW, life=Life.RETIRED)


async def test_change_policy(store: SqlStore) -> None:
    """All of it or nothing."""
    await store.policies.add_policy(policy(), entry())
    change = PolicyChange((AddedState("new", values("new")),), ("recorded",))
    await refused("not-found", NotFound, store.policies.change_policy("none", change, [NEW], entry()))
    bad = replace(change, retire=("recorded", "missing"))
    await refused("not-found", NotFound, store.policies.change_policy("policy", bad, [NEW], entry()))
    assert await store.policies.get_policy("policy") == policy()
    await store.policies.change_policy("policy", change, [NEW], entry("policy change"))
    assert [state.life for state in (await store.policies.get_policy("policy")).states] == [
        Life.RETIRED,
        Life.STAGED,
    ]
    assert len(await audited(store, "policy change")) == 1
    await refused("name-taken", Conflict, store.policies.change_policy("policy", change, [NEW], entry()))


async def test_a_removed_device_is_forgotten(store: SqlStore) -> None:
    """And a policy that goes with its device takes its rollouts along."""
    running, ids = await begin(store)
    await fare(store, ids["d0"], running, PASSED)
    await store.devices.remove_device("d0", entry())
    assert await device_outcomes(store, running) == {}
    await store.enrollment.add_token(token(), entry())
    made = await store.enrollment.enroll(enrollment("pi-b"))
    await store.policies.start_rollout(rollout(policy="pi-b"), [NEW], entry())
    own = await store.policies.get_rollout("pi-b")
    assert own is not None
    await fare(store, made.id, own, REFUSED)
    await store.devices.remove_device("pi-b", entry())
    assert [found.name for found in await store.policies.list_policies()] == ["policy"]


# --- labels ---------------------------------------------------------------------------------------------------------


async def test_labels(store: SqlStore) -> None:
    """Added and removed on all of them or on none, with an audit entry each."""
    await store.policies.add_policy(policy(), entry())
    for name in ("a", "b"):
        await store.devices.add_device(device(name), "policy", key(name), entry())
    await store.devices.label_devices(["a", "b"], ["x", "y"], [], [entry(device=name) for name in ("a", "b")])
    await store.devices.label_devices(["a"], ["z"], ["x", "not there"], [entry(device="a")])
    await refused("not-found", NotFound, store.devices.label_devices(["a", "c"], ["no"], [], [entry()]))
    assert [found.labels for found in await store.devices.list_devices()] == [("y", "z"), ("x", "y")]
    many = [f"l{number}" for number in range(31)]
    await refused("request-malformed", TangAttestError, store.devices.label_devices(["a"], many, [], []))
    assert len(await store.audit.list_audit("a")) == 2


async def test_labels_of_a_token(store: SqlStore) -> None:
    """A token keeps them, and a device that is added has its own."""
    await store.enrollment.add_token(token(labels=("canary", "site=a")), entry())
    assert (await store.enrollment.list_tokens())[0].labels == ("canary", "site=a")
    await store.policies.add_policy(policy(), entry())
    made = await store.devices.add_device(replace(device(), labels=("canary",)), "policy", key(), entry())
    assert made.labels == ("canary",)
