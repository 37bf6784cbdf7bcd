"""Devices under another name or policy, policies that go, keys that are retired: on each database."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tang_attest.errors import Conflict, NotFound, TangAttestError
from tang_attest.ports.admin import AdminToken, Scope
from tang_attest.ports.audit import AuditSearch
from tang_attest.ports.decisions import Snapshot
from tang_attest.ports.machines import Learning
from tang_attest.ports.rounds import RoundRecord
from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.changes.rollout import Rollout
from tang_attest.protocol.reference_state import StateLimits
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.store import SqlStore
from tests.store.conftest import Opener
from tests.store.samples import (
    NOW,
    SELECTION,
    clock,
    decision,
    device,
    digest,
    enrollment,
    entry,
    key,
    policy,
    state,
    token,
    values,
)


async def refused(code: str, call) -> str:
    with pytest.raises(TangAttestError) as caught:
        await call
    assert caught.value.code == code
    return caught.value.sentence


def rollout(of: str) -> Rollout:
    return Rollout(
        policy=of,
        name="next",
        change=PolicyChange(),
        salt="salt",
        share=1000,
        limit=0,
        started_at=NOW,
        started_by="x",
    )


async def enroll(store: SqlStore, name: str = "pi-b") -> int:
    await store.enrollment.add_token(token(f"token {name}"), entry("token create"))
    return (await store.enrollment.enroll(enrollment(name, f"token {name}"))).id


async def rename(store: SqlStore, name: str, new: str) -> None:
    await store.devices.rename_device(
        name,
        new,
        [
            entry("device rename", device=name, details={"to": new}),
            entry("device rename", device=new, details={"from": name}),
        ],
    )


# --- rename -------------------------------------------------------------------------------------------------


async def test_everything_follows_a_renamed_device(store: SqlStore, open_another: Opener) -> None:
    """Its key, states that are for it alone, its announced states, its policy and its rounds; at once on all servers."""
    device_id = await enroll(store)
    alone = replace(state("alone"), limits=StateLimits(device="pi-b"))
    announced = replace(state("announced"), created_by="device:pi-b", created_at=NOW)
    for new in (alone, announced):
        await store.policies.add_state("pi-b", new, entry())
    round_ = RoundRecord(
        device_id=device_id, at=NOW, outcome=RoundOutcome.REFUSED, code="pcr-mismatch", details={}
    )
    await store.rounds.record_round(round_)
    other = await open_another()
    assert (await other.decisions.find_key("kid-pi-b")).device.name == "pi-b"  # type: ignore[union-attr]
    await rename(store, "pi-b", "kitchen")
    bound = await other.decisions.find_key("kid-pi-b")
    assert bound is not None
    assert bound.device is not None
    assert bound.policy is not None
    assert (bound.device.name, bound.device.id, bound.device.policy) == ("kitchen", device_id, "pi-b")
    states = {each.label: each for each in bound.policy.states}
    assert states["alone"].limits.device == "kitchen"
    assert states["announced"].created_by == "device:kitchen"
    assert [past.code for past in await other.rounds.list_rounds("kitchen")] == ["pcr-mismatch"]
    assert await other.rounds.list_rounds("pi-b") == []
    await refused("not-found", other.devices.get_device("pi-b"))
    # The policy that its enrollment recorded goes with it, under whatever name.
    await store.devices.remove_device("kitchen", entry())
    await refused("not-found", store.policies.get_policy("pi-b"))


async def test_a_renamed_device_without_a_key_leaves_its_name(store: SqlStore) -> None:
    """Its row names it in the place of its AK, which another such device may share."""
    await store.policies.add_policy(policy(), entry())

    async def add(name: str, ek: str) -> None:
        new = replace(device(name, ak="shared", ek=ek), verified_only=True)
        await store.devices.add_device(new, "policy", None, entry())

    await add("one", "first")
    await rename(store, "one", "two")
    await add("one", "second")
    spkis = {each.name: each.ak_spki for each in await store.devices.list_devices()}
    assert spkis == {"one": b"ak shared", "two": b"ak shared"}


async def test_a_name_that_is_taken(store: SqlStore) -> None:
    """Nothing is renamed."""
    await enroll(store)
    await enroll(store, "pi-c")
    assert "'pi-c'" in await refused("name-taken", rename(store, "pi-b", "pi-c"))
    await refused("name-taken", rename(store, "pi-b", "pi-b"))
    await refused("not-found", rename(store, "nosuch", "pi-d"))
    assert [each.name for each in await store.devices.list_devices()] == ["pi-b", "pi-c"]


async def test_a_rollout_chooses_by_names(store: SqlStore) -> None:
    """A device must not leave the audience, or come into it, by its new name."""
    await enroll(store)
    await store.policies.start_rollout(rollout("pi-b"), (), entry())
    assert "'next'" in await refused("rollout-unfinished", rename(store, "pi-b", "pi-c"))


async def test_a_decision_about_a_device_that_was_renamed_meanwhile(store: SqlStore) -> None:
    """It stands, and is recorded under the new name."""
    device_id = await enroll(store)
    await rename(store, "pi-b", "kitchen")
    await store.decisions.decide(decision(device_id, "n", 1, met=state()))
    newest = (await store.audit.list_audit("kitchen"))[0][1]
    assert (newest.event, newest.device, newest.actor) == ("unlock", "kitchen", "device:kitchen")


# --- history ------------------------------------------------------------------------------------------------


async def about(store: SqlStore, name: str, **search) -> list[str]:
    """Details of the entries of a machine, oldest first."""
    rows = await store.audit.list_audit(name, 1000, search=AuditSearch(**search))
    return [f"{row.event} {row.device}" for _, row in reversed(rows)]


async def test_history_is_the_machines_and_not_the_names(store: SqlStore) -> None:
    """A renamed machine keeps its entries; another one under its old name begins with nothing."""
    await enroll(store)
    await store.audit.append(entry("unlock", device="pi-b"))
    await rename(store, "pi-b", "kitchen")
    await store.audit.append(entry("unlock", device="kitchen"))
    another = device(ak="another", ek="another")
    await store.devices.add_device(another, "pi-b", key("kid-2"), entry("device register", device="pi-b"))
    await store.audit.append(entry("unlock", device="pi-b"))
    assert await about(store, "kitchen") == [
        "enroll pi-b",
        "unlock pi-b",
        "device rename pi-b",
        "device rename kitchen",
        "unlock kitchen",
    ]
    assert await about(store, "pi-b") == ["device register pi-b", "unlock pi-b"]
    await rename(store, "kitchen", "bath")
    await rename(store, "pi-b", "kitchen")
    assert len(await about(store, "bath")) == 7
    assert await about(store, "kitchen") == [
        "device register pi-b",
        "unlock pi-b",
        "device rename pi-b",
        "device rename kitchen",
    ]


async def test_history_of_a_machine_that_is_gone(store: SqlStore) -> None:
    """By its last name; and by the time, when another machine has the name now."""
    await enroll(store)
    await store.audit.append(entry("unlock", device="pi-b"))
    await store.devices.remove_device("pi-b", entry("device remove", device="pi-b"))
    gone = ["enroll pi-b", "unlock pi-b", "device remove pi-b"]
    assert await about(store, "pi-b") == gone
    later = NOW + timedelta(hours=1)
    await store.audit.append(entry("enroll", device="pi-b", at=later, verdict="refused", code="token-used"))
    assert await about(store, "pi-b") == [*gone, "enroll pi-b"]
    await store.audit.append(entry("enroll", device="pi-b", at=later))
    assert await about(store, "pi-b") == ["enroll pi-b", "enroll pi-b"]
    assert await about(store, "pi-b", until=later) == gone


# --- move ---------------------------------------------------------------------------------------------------


async def move(store: SqlStore, name: str, to: str, expected: str) -> None:
    await store.devices.move_device(name, to, expected, entry("device move", device=name))


async def test_move(store: SqlStore, open_another: Opener) -> None:
    """From then on the other policy judges; what was armed and counted under the old one ends."""
    await enroll(store)
    await store.policies.add_policy(policy("web"), entry())
    await store.devices.arm_learning("pi-b", Learning(NOW, {}), entry())
    other = await open_another()
    await move(store, "pi-b", "web", "pi-b")
    bound = await other.decisions.find_key("kid-pi-b")
    assert bound is not None
    assert bound.policy is not None
    assert bound.policy.name == "web"
    moved = await other.devices.get_device("pi-b")
    assert (moved.policy, moved.learning, moved.last_state) == ("web", None, None)
    await refused("policy-changed", move(store, "pi-b", "pi-b", "pi-b"))
    await refused("not-found", move(store, "pi-b", "nosuch", "web"))
    await refused("not-found", move(store, "nosuch", "web", "web"))


async def test_states_that_a_device_left_behind_go_with_it(store: SqlStore) -> None:
    """They would meet the next device of its name that comes under the old policy."""
    await store.policies.add_policy(
        policy("old", state(), replace(state("alone"), limits=StateLimits(device="pi-b"))), entry()
    )
    await store.policies.add_policy(policy("web"), entry())
    await store.devices.add_device(device(), "old", key(), entry())
    await move(store, "pi-b", "web", "old")
    assert len((await store.policies.get_policy("old")).states) == 2
    await store.devices.remove_device("pi-b", entry())
    assert [each.label for each in (await store.policies.get_policy("old")).states] == ["recorded"]


# --- policies -----------------------------------------------------------------------------------------------


async def test_a_policy_that_nothing_uses_goes(store: SqlStore) -> None:
    """With its states and rollouts; its name is free again."""
    await store.policies.add_policy(policy("web"), entry())
    await store.policies.start_rollout(
        rollout("web"),
        (),
        entry(),
    )
    await store.policies.remove_policy("web", entry("policy remove"))
    assert await store.policies.list_policies() == []
    await refused("not-found", store.policies.remove_policy("web", entry()))
    await store.policies.add_policy(policy("web"), entry())


async def test_a_policy_that_is_used_stays(store: SqlStore) -> None:
    """Each kind of user is named; one that can use it no more does not count."""
    await store.policies.add_policy(policy("web"), entry())
    await store.policies.add_policy(policy("boot"), entry())
    await store.devices.add_device(device("pi-b"), "web", key("b"), entry())
    await store.devices.add_device(device("pi-c"), "boot", key("c"), entry())
    await store.devices.set_running_policy("pi-c", "web", entry())
    await store.enrollment.add_token(token("t", policy="web", record=False), entry())
    await store.enrollment.add_token(token("old", policy="web", record=False, expires_at=NOW), entry())
    await store.admin_tokens.add_admin_token(
        AdminToken(
            digest=digest("a"),
            name="ci",
            scopes=(Scope.READ,),
            policies=("boot", "web"),
            created_at=NOW,
            created_by="x",
            expires_at=NOW + timedelta(days=1),
        ),
        entry(),
    )
    sentence = await refused("policy-in-use", store.policies.remove_policy("web", entry()))
    assert sentence == (
        f"Policy 'web' is used by devices pi-b, pi-c; token {digest('t').hex()[:16]}; admin token ci."
    )
    await move(store, "pi-b", "boot", "web")
    await store.devices.set_running_policy("pi-c", None, entry())
    await store.enrollment.revoke_token(digest("t"), entry())
    await refused("policy-in-use", store.policies.remove_policy("web", entry()))
    await store.policies.remove_policy("web", entry(at=NOW + timedelta(days=2)))


# --- observations -------------------------------------------------------------------------------------------


async def test_observations_are_dismissed(store: SqlStore) -> None:
    """All of those named, or none."""
    device_id = await enroll(store)
    for number in range(3):
        audit = entry("unlock", verdict="refused", code="pcr-mismatch", device="pi-b")
        snapshot = Snapshot(SELECTION, values(str(number)))
        await store.decisions.decide(
            decision(device_id, str(number), number, audit=audit, observation=snapshot)
        )
    ids = [seen.id for seen in await store.policies.list_observations("pi-b")]
    await refused("observation-missing", store.policies.dismiss_observations([ids[0], 999], [entry()]))
    assert len(await store.policies.list_observations("pi-b")) == 3
    await store.policies.dismiss_observations(ids[:2], [entry("observation dismiss", device="pi-b")] * 2)
    assert [seen.id for seen in await store.policies.list_observations("pi-b")] == ids[2:]
    assert (await store.audit.list_audit(limit=1))[0][1].event == "observation dismiss"


# --- keys ---------------------------------------------------------------------------------------------------


async def test_a_retired_key_is_found_as_retired(store: SqlStore, open_another: Opener) -> None:
    """At once on every server, and no more after it is reinstated."""
    await enroll(store)
    await store.keys.add_key(key("kid-new", minutes=1), "pi-b", entry())
    await store.keys.rotate_keys(["kid-pi-b"], NOW, entry())
    other = await open_another()
    assert (await other.decisions.find_key("kid-pi-b")).key.retired_at is None  # type: ignore[union-attr]
    await store.keys.retire_key("kid-pi-b", NOW, entry())
    assert (await other.decisions.find_key("kid-pi-b")).key.retired_at == NOW  # type: ignore[union-attr]
    assert (await other.devices.get_device("pi-b")).kids == ("kid-new",)
    await refused("key-retired", store.keys.retire_key("kid-pi-b", NOW, entry()))
    await store.keys.reinstate_key("kid-pi-b", entry())
    assert (await other.devices.get_device("pi-b")).kids == ("kid-new", "kid-pi-b")
    await refused("key-not-retired", store.keys.reinstate_key("kid-pi-b", entry()))
    for call in (store.keys.retire_key("nosuch", NOW, entry()), store.keys.reinstate_key("nosuch", entry())):
        with pytest.raises(NotFound):
            await call


async def test_the_last_advertised_key_stays(store: SqlStore) -> None:
    """Of a device, of the signing keys, of the open keys; others of another holder are no substitute."""
    await enroll(store)
    await enroll(store, "pi-c")
    for name in ("sign-1", "sign-2"):
        await store.keys.add_key(key(name, "sign"), None, entry())
    await store.keys.add_key(key("open"), None, entry())
    await store.keys.rotate_keys(["sign-1"], NOW, entry())
    for last in ("kid-pi-b", "sign-2", "open"):
        with pytest.raises(Conflict) as caught:
            await store.keys.retire_key(last, NOW, entry())
        assert caught.value.code == "key-last"
    await store.keys.retire_key("sign-1", NOW, entry())
    assert {each.kid for each in await store.keys.server_keys()} == {"sign-2", "open"}
    assert len(await store.keys.list_keys()) == 5


async def test_clock_of_a_retired_key_moves(store: SqlStore) -> None:
    """A refusal of a retired key is a decision like others."""
    device_id = await enroll(store)
    await store.keys.add_key(key("kid-new", minutes=1), "pi-b", entry())
    await store.keys.retire_key("kid-pi-b", NOW, entry())
    late = entry("unlock", verdict="refused", code="key-retired", device="pi-b", kid="kid-pi-b")
    await store.decisions.decide(decision(device_id, "n", 5, audit=late))
    assert (await store.devices.get_device("pi-b")).clock == clock(5)
