"""Reference states over their life, as the database keeps them; races are decided in the transaction of the unlock."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.decisions import Decision, NewEvidence, Snapshot
from tang_attest.protocol.reference_state import Life, ReferenceState, StateLimits
from tang_attest.store import SqlStore
from tests.store.samples import NOW, SELECTION, decision, enrollment, entry, policy, state, token, values


async def enroll(store: SqlStore, name: str, *states: ReferenceState) -> int:
    """A device under a policy of its own, with *states*."""
    await store.enrollment.add_token(token(f"token {name}"), entry("token create"))
    enrolled = await store.enrollment.enroll(
        enrollment(name, f"token {name}", new_policy=policy(name, *states), policy=None)
    )
    return enrolled.id


async def life_of(store: SqlStore, policy_name: str = "pi-b") -> dict[str, tuple[Life, int | None]]:
    """Each state's life and uses left."""
    states = (await store.policies.get_policy(policy_name)).states
    return {state.label: (state.life, state.limits.uses_left) for state in states}


def met(device_id: int, nonce: str, ticks: int, reference: ReferenceState) -> Decision:
    """A permitted unlock that met *reference*."""
    return decision(device_id, nonce, ticks, met=reference)


async def test_a_state_comes_back_as_it_went_in(store: SqlStore) -> None:
    """Every field."""
    full = replace(
        state("full", "predicted"),
        life=Life.PROPOSED,
        limits=StateLimits(device="pi-b", expires_at=NOW + timedelta(days=1), uses_left=3, rollout="r"),
        created_at=NOW,
        created_by="device:pi-b",
        notes=("the initrd changed", "Ä"),
    )
    await enroll(store, "pi-b", full)
    assert (await store.policies.get_policy("pi-b")).states == (full,)


async def test_a_staged_state_becomes_active_when_it_first_permits(store: SqlStore) -> None:
    """By itself, in the transaction of the unlock; the device is on it from then on."""
    staged = replace(state("new"), life=Life.STAGED)
    device_id = await enroll(store, "pi-b", state("old"), staged)
    await store.decisions.decide(met(device_id, "a", 1, staged))
    assert await life_of(store) == {"old": (Life.ACTIVE, None), "new": (Life.ACTIVE, None)}
    assert (await store.devices.get_device("pi-b")).last_state == "new"
    await store.decisions.decide(met(device_id, "b", 2, state("old")))
    assert (await store.devices.get_device("pi-b")).last_state == "old"


async def test_a_refusal_leaves_the_last_state(store: SqlStore) -> None:
    """It says what the machine was last permitted with."""
    device_id = await enroll(store, "pi-b", state("old"))
    await store.decisions.decide(met(device_id, "a", 1, state("old")))
    await store.decisions.decide(
        decision(device_id, "b", 2, audit=entry(verdict="refused", code="pcr-mismatch"))
    )
    assert (await store.devices.get_device("pi-b")).last_state == "old"


async def test_uses_are_counted_down_to_nothing(store: SqlStore) -> None:
    """The one that comes when none is left is refused, and nothing of it is written but its audit by the caller."""
    once = replace(state("once"), limits=StateLimits(uses_left=1))
    device_id = await enroll(store, "pi-b", once)
    await store.decisions.decide(met(device_id, "a", 1, once))
    before = await store.devices.get_device("pi-b")
    with pytest.raises(Conflict) as error:
        await store.decisions.decide(met(device_id, "b", 2, once))
    assert error.value.code == "state-used-up"
    assert await store.devices.get_device("pi-b") == before
    assert await life_of(store) == {"once": (Life.ACTIVE, 0)}
    # The nonce of the refused one is free: the same evidence is not "used".
    await store.decisions.decide(decision(device_id, "b", 2, audit=entry(verdict="refused")))


async def test_a_use_is_given_back_when_the_clock_went_back(store: SqlStore) -> None:
    """Device and state move together or not at all."""
    twice = replace(state("twice"), life=Life.STAGED, limits=StateLimits(uses_left=2))
    device_id = await enroll(store, "pi-b", twice)
    await store.decisions.decide(decision(device_id, "a", 9))
    with pytest.raises(Conflict) as error:
        await store.decisions.decide(met(device_id, "b", 8, twice))
    assert error.value.code == "clock-backwards"
    assert await life_of(store) == {"twice": (Life.STAGED, 2)}


@pytest.mark.parametrize("uses", [None, 5])
async def test_a_state_retired_meanwhile_permits_nothing(store: SqlStore, uses: int | None) -> None:
    """Appraised before, written after: the retirement counts."""
    state_ = replace(state("old"), limits=StateLimits(uses_left=uses))
    device_id = await enroll(store, "pi-b", state_)
    await store.policies.move_state("pi-b", "old", {Life.ACTIVE}, Life.RETIRED, entry("policy state retire"))
    with pytest.raises(Conflict) as error:
        await store.decisions.decide(met(device_id, "a", 1, state_))
    assert error.value.code == "state-retired"
    assert (await store.devices.get_device("pi-b")).last_seen_at is None
    assert await life_of(store) == {"old": (Life.RETIRED, uses)}


async def test_neighbors_in_a_batch_stand_when_one_falls(store: SqlStore) -> None:
    """A savepoint that is rolled back takes only its own decision along."""
    once = replace(state("once"), limits=StateLimits(uses_left=0))
    one = await enroll(store, "pi-b", once)
    two = await enroll(store, "pi-c", state("fine"))
    items = [met(two, "a", 1, state("fine")), met(one, "b", 1, once), met(two, "c", 2, state("fine"))]
    outcomes = await store._writes._write(items)
    assert [getattr(outcome, "code", None) for outcome in outcomes] == [None, "state-used-up", None]
    assert (await store.devices.get_device("pi-c")).last_state == "fine"


async def test_moving_is_compare_and_set(store: SqlStore) -> None:
    """Two operators: the second hears what the first did, and the audit has only what happened."""
    await enroll(store, "pi-b", state("old"))
    await store.policies.move_state("pi-b", "old", {Life.ACTIVE}, Life.RETIRED, entry("retire"))
    with pytest.raises(Conflict) as error:
        await store.policies.move_state("pi-b", "old", {Life.ACTIVE}, Life.RETIRED, entry("retire"))
    assert error.value.code == "state-changed"
    assert "is retired" in error.value.sentence
    with pytest.raises(NotFound):
        await store.policies.move_state("pi-b", "unknown", {Life.ACTIVE}, Life.RETIRED, entry("retire"))
    assert [row.event for _, row in await store.audit.list_audit()].count("retire") == 1


async def test_trust_in_predictions_is_a_setting_of_the_policy(store: SqlStore) -> None:
    """Off unless somebody says so."""
    await enroll(store, "pi-b", state("old"))
    assert not (await store.policies.get_policy("pi-b")).trust_predictions
    await store.policies.trust_predictions("pi-b", True, entry("policy trust-predictions"))
    bound = await store.decisions.find_key("kid-pi-b")
    assert bound is not None
    assert bound.policy is not None
    assert bound.policy.trust_predictions
    with pytest.raises(NotFound):
        await store.policies.trust_predictions("unknown", True, entry())


async def test_the_last_evidence_is_kept_in_place_of_the_one_before(store: SqlStore) -> None:
    """With its digest on the device, so that the next boot knows whether it has news."""
    device_id = await enroll(store, "pi-b", state("old"))
    await enroll(store, "pi-c")
    assert await store.policies.get_evidence("pi-b", permitted=True) is None
    for ticks, words in enumerate(("first", "second"), start=1):
        grade = {"grade": words, "reasons": []}
        new = NewEvidence(Snapshot(SELECTION, values(words), words.encode()), True, grade)
        await store.decisions.decide(decision(device_id, words, ticks, evidence=new))
        kept = await store.policies.get_evidence("pi-b", permitted=True)
        assert kept is not None
        assert (kept.device, kept.snapshot, kept.permitted) == ("pi-b", new.snapshot, True)
        device = await store.devices.get_device("pi-b")
        assert (device.evidence_digest, device.grade) == (new.digest, grade)
    [listed] = await store.policies.list_evidence("pi-b")
    assert listed.snapshot == Snapshot(SELECTION, values("second"))  # listings leave the log out
    assert (await store.policies.list_evidence("pi-b", with_logs=True))[0].snapshot.event_log == b"second"
    odd = NewEvidence(Snapshot(SELECTION, values("odd")), False)
    at = NOW + timedelta(hours=1)
    await store.decisions.decide(
        decision(device_id, "odd", 9, evidence=odd, audit=entry(verdict="refused", at=at))
    )
    assert [listed.permitted for listed in await store.policies.list_evidence("pi-b")] == [
        False
    ]  # the newer one
    kept = await store.policies.get_evidence("pi-b", permitted=True)
    assert kept is not None
    assert kept.snapshot.event_log == b"second"  # approved values are still there to compare with
    await store.devices.remove_device("pi-b", entry("device remove"))
    assert await store.policies.list_evidence("pi-c") == []


async def test_a_removed_device_takes_its_own_states_along(store: SqlStore) -> None:
    """The next device of its name gets none of them."""
    await store.policies.add_policy(policy("shared", state("all")), entry())
    await store.enrollment.add_token(token("t", policy="shared", record=False), entry())
    await store.enrollment.enroll(enrollment("pi-b", "t", policy="shared"))
    await store.policies.add_state(
        "shared", replace(state("own"), limits=StateLimits(device="pi-b")), entry()
    )
    await store.devices.remove_device("pi-b", entry("device remove"))
    assert [known.label for known in (await store.policies.get_policy("shared")).states] == ["all"]
