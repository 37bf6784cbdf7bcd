"""Contract of the store over each database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, timedelta

import pytest

from tang_attest.errors import Conflict, NotFound, TangAttestError, Unavailable
from tang_attest.ports.decisions import BoundKey, PolicyPcrs, Snapshot
from tang_attest.ports.enrollment import EkRoot
from tang_attest.ports.machines import Learning, Reach
from tang_attest.ports.store import Store
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
    registered_ek,
    state,
    token,
    values,
)


async def enroll(store: SqlStore, name: str = "pi-b") -> int:
    text = f"token {len(await store.enrollment.list_tokens())}"
    await store.enrollment.add_token(token(text), entry("token create"))
    return (await store.enrollment.enroll(enrollment(name, text))).id


async def refused(code: str, kind: type[TangAttestError], call) -> str:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.code == code
    return caught.value.sentence


async def audited(store: SqlStore) -> list[tuple[str, str, str]]:
    """Event, verdict and code of every entry, oldest first."""
    return [
        (row.event, row.verdict, row.code) for _, row in reversed(await store.audit.list_audit(limit=10_000))
    ]


def test_it_is_a_store(store: SqlStore) -> None:
    """The type checker compares every signature here."""
    port: Store = store
    assert port is store


# --- keys and devices ---------------------------------------------------------------------------------------------


async def test_find_key_gives_device_and_policy(store: SqlStore) -> None:
    """One call has everything an appraisal needs."""
    await enroll(store)
    await enroll(store, "pi-c")
    bound = await store.decisions.find_key("kid-pi-b")
    assert bound is not None
    assert bound.key == replace(key("kid-pi-b"), holder=device("pi-b").holder)
    assert bound.policy == policy("pi-b")
    assert bound.device == await store.devices.get_device("pi-b")
    assert bound.device is not None
    new = device("pi-b")
    assert {name: getattr(bound.device, name) for name in new.__slots__} == {
        name: getattr(new, name) for name in new.__slots__
    }
    assert (bound.device.policy, bound.device.kids) == ("pi-b", ("kid-pi-b",))
    assert bound.device.enrolled_at == NOW
    assert bound.device.enrolled_at.tzinfo is UTC


async def test_find_key_finds_exchange_keys_only(store: SqlStore) -> None:
    """An unknown kid is None, an open key has no device, and a signing key exchanges nothing."""
    await store.keys.add_key(key("open"), None, entry())
    await store.keys.add_key(key("signing", "sign"), None, entry())
    bound = await store.decisions.find_key("open")
    assert bound is not None
    assert (bound.key, bound.device, bound.policy) == (key("open"), None, None)
    assert await store.decisions.find_key("signing") is None
    assert await store.decisions.find_key("unknown") is None


async def test_find_selection(store: SqlStore) -> None:
    """Data of a challenge; None for an open key, a signing key or none.  Both are answered in one batch."""
    await store.policies.add_policy(policy(), entry())
    await store.devices.add_device(device(), "policy", key("mine"), entry())
    await store.keys.add_key(key("open"), None, entry())
    await store.keys.add_key(key("signs", "sign"), None, entry())
    kids = ("mine", "open", "signs", "none")
    found, *pcrs = await asyncio.gather(
        store.decisions.find_key("mine"), *(store.decisions.find_pcrs(kid) for kid in kids)
    )
    assert isinstance(found, BoundKey)
    assert found.policy == policy()
    assert pcrs == [PolicyPcrs(policy().selection, policy().cap_pcr), None, None, None]


async def test_find_key_in_one_batch(store: SqlStore) -> None:
    """Callers that share a query each get their own answer, also when two ask for the same."""
    await enroll(store)
    await enroll(store, "pi-c")
    found = await asyncio.gather(*map(store.decisions.find_key, ["kid-pi-c", "none", "kid-pi-b", "kid-pi-c"]))
    assert [bound and bound.device and bound.device.name for bound in found] == ["pi-c", None, "pi-b", "pi-c"]


async def test_find_key_sees_what_another_process_committed(store: SqlStore, open_another: Opener) -> None:
    """There is no cache: a replica that removed a device closed it everywhere."""
    other = await open_another()
    assert await store.decisions.find_key("kid-pi-b") is None
    await enroll(other)
    assert await store.decisions.find_key("kid-pi-b") is not None
    await other.devices.remove_device("pi-b", entry("device remove"))
    assert await store.decisions.find_key("kid-pi-b") is None


async def test_keys_of_a_device_are_newest_first(store: SqlStore) -> None:
    """A further key comes before the first; a rotated one stays usable."""
    await enroll(store)
    await store.keys.add_key(key("second", minutes=5), "pi-b", entry())
    assert (await store.devices.get_device("pi-b")).kids == ("second", "kid-pi-b")
    await store.keys.rotate_keys(["kid-pi-b"], NOW + timedelta(hours=1), entry("key rotate"))
    bound = await store.decisions.find_key("kid-pi-b")
    assert bound is not None
    assert bound.key.rotated_at == NOW + timedelta(hours=1)
    assert [(sealed.kid, name) for sealed, name in await store.keys.list_keys()] == [
        ("second", "pi-b"),
        ("kid-pi-b", "pi-b"),
    ]


async def test_server_keys_belong_to_no_device(store: SqlStore) -> None:
    """Keys that /adv lists: signing keys and open keys, newest first."""
    await enroll(store)
    await store.keys.add_key(key("open"), None, entry())
    await store.keys.add_key(key("signing", "sign", minutes=1), None, entry())
    assert [sealed.kid for sealed in await store.keys.server_keys()] == ["signing", "open"]


async def test_rotating_twice_keeps_the_first_time(store: SqlStore) -> None:
    """And an unknown key changes nothing at all."""
    for kid in ("one", "two"):
        await store.keys.add_key(key(kid), None, entry())
    await store.keys.rotate_keys(["one"], NOW, entry())
    await store.keys.rotate_keys(["one"], NOW + timedelta(days=1), entry())
    await refused("not-found", NotFound, store.keys.rotate_keys(["two", "three"], NOW, entry()))
    assert {sealed.kid: sealed.rotated_at for sealed in await store.keys.server_keys()} == {
        "one": NOW,
        "two": None,
    }


async def test_add_device(store: SqlStore) -> None:
    """An operator registers a machine under a policy that exists."""
    await refused("not-found", NotFound, store.devices.add_device(device(), "policy", key(), entry()))
    await store.policies.add_policy(policy(), entry())
    made = await store.devices.add_device(
        replace(device(), ek_spki=None, ek_certificate=None, ek_issuer=None, clock=clock(2**64 - 1)),
        "policy",
        key(),
        entry(),
    )
    assert made == await store.devices.get_device("pi-b")
    assert made.clock == clock(2**64 - 1)
    assert await store.devices.list_devices() == [made]
    await refused("not-found", NotFound, store.devices.get_device("other"))


async def test_one_name_one_ak_one_ek(store: SqlStore) -> None:
    """A second device has nothing of the first; devices without EK do not collide."""
    await store.policies.add_policy(policy(), entry())
    await store.devices.add_device(device("a"), "policy", key("a"), entry())
    count = len(await audited(store))

    async def add(new, kid: str = "b"):
        return await store.devices.add_device(new, "policy", key(kid), entry())

    await refused("name-taken", Conflict, add(device("a", ak="b", ek="b")))
    sentence = await refused("device-exists", Conflict, add(device("b", ak="a")))
    assert "'a'" in sentence
    await refused("device-exists", Conflict, add(device("b", ek="a")))
    await refused("name-taken", Conflict, add(device("b"), kid="a"))
    assert len(await audited(store)) == count, "a refused change left something"
    assert [made.name for made in await store.devices.list_devices()] == ["a"]
    for name in ("c", "d"):
        await add(replace(device(name), ek_spki=None), name)


async def test_devices_without_a_key_may_share_an_ak(store: SqlStore) -> None:
    """With each other, under names of their own; never with one that has an exchange key."""
    await store.policies.add_policy(policy(), entry())

    async def add(name: str, ak: str, *, verified_only: bool):
        new = replace(device(name, ak=ak), ek_spki=None, reach=Reach("device:/dev/tpm0", "0x81010002"))
        made = replace(new, verified_only=verified_only)
        return await store.devices.add_device(made, "policy", None if verified_only else key(name), entry())

    for name in ("a", "b"):
        made = await add(name, "one", verified_only=True)
        assert made == await store.devices.get_device(name)
        assert (made.verified_only, made.kids, made.ak_spki) == (True, (), b"ak one")
    await refused("name-taken", Conflict, add("a", "one", verified_only=True))
    sentence = await refused("device-exists", Conflict, add("c", "one", verified_only=False))
    assert "'a'" in sentence or "'b'" in sentence
    assert not (await add("c", "two", verified_only=False)).verified_only
    sentence = await refused("device-exists", Conflict, add("d", "two", verified_only=True))
    assert "'c'" in sentence
    for name in ("a", "b"):
        await store.devices.remove_device(name, entry())
    await add("e", "one", verified_only=False)


# --- removal --------------------------------------------------------------------------------------------------------


async def test_remove_device(store: SqlStore) -> None:
    """Device, keys, observations and recorded policy go; the audit stays; the name and the TPM are free again."""
    device_id = await enroll(store)
    observed = decision(device_id, "n", 1, observation=Snapshot(SELECTION, values("odd"), b"log"))
    await store.decisions.decide(observed)
    await store.devices.remove_device("pi-b", entry("device remove", device="pi-b"))
    assert await store.devices.list_devices() == []
    assert await store.keys.list_keys() == []
    assert await store.policies.list_policies() == []
    assert await store.policies.list_observations() == []
    assert [row.event for _, row in await store.audit.list_audit("pi-b")] == [
        "device remove",
        "unlock",
        "enroll",
    ]
    await refused("not-found", NotFound, store.devices.remove_device("pi-b", entry()))
    assert await enroll(store) != device_id, "a decision under way would meet the new device"


async def test_remove_device_keeps_a_policy_that_others_use(store: SqlStore) -> None:
    """Nor does it take one that an operator made."""
    await enroll(store)
    await store.policies.add_policy(policy("fleet"), entry())
    await store.devices.add_device(device("second"), "pi-b", key("second"), entry())
    await store.devices.add_device(device("third"), "fleet", key("third"), entry())
    for name in ("pi-b", "second", "third"):
        await store.devices.remove_device(name, entry())
    assert [found.name for found in await store.policies.list_policies()] == ["fleet", "pi-b"]


# --- tokens -------------------------------------------------------------------------------------------------------


async def test_tokens(store: SqlStore) -> None:
    """A token comes back as it was made; one for a policy needs the policy."""
    await refused("not-found", NotFound, store.enrollment.add_token(token("t", policy="policy"), entry()))
    await store.policies.add_policy(policy(), entry())
    made = token(
        "t", policy="policy", record=False, name="pi-b", allow_unverified_ek=True, force=True, learn_for_s=9
    )
    await store.enrollment.add_token(made, entry())
    later = token("later", created_at=NOW + timedelta(seconds=1))
    await store.enrollment.add_token(later, entry())
    assert await store.enrollment.find_token(digest("t")) == made
    assert await store.enrollment.find_token(digest("other")) is None
    assert await store.enrollment.list_tokens() == [later, made]


async def test_enroll(store: SqlStore) -> None:
    """Token, policy, device, key and audit are one transaction."""
    await store.enrollment.add_token(token(), entry("token create"))
    made = await store.enrollment.enroll(enrollment())
    assert made == await store.devices.get_device("pi-b")
    used = await store.enrollment.find_token(digest("token"))
    assert used is not None
    assert used.used_at == NOW
    assert await audited(store) == [("token create", "done", "ok"), ("enroll", "done", "ok")]
    await refused("token-used", Conflict, store.enrollment.enroll(enrollment("other")))
    await refused("token-invalid", Conflict, store.enrollment.enroll(enrollment("other", "unknown")))


async def test_a_token_for_several_machines(store: SqlStore) -> None:
    """Each enrollment counts a use; the last one uses it up, and one that fails counts nothing."""
    await store.policies.add_policy(policy("web"), entry())
    await store.enrollment.add_token(token("t", policy="web", record=False, machines=3), entry())

    async def uses() -> tuple[int, object]:
        found = await store.enrollment.find_token(digest("t"))
        assert found is not None
        return found.uses, found.used_at

    for number, name in enumerate(("a", "b", "c")):
        assert await uses() == (number, None)
        taken = enrollment("a", "t", policy="web", device=device("a", ak="z", ek="z"))
        if number:
            await refused("name-taken", Conflict, store.enrollment.enroll(taken))
        assert await uses() == (number, None)
        await store.enrollment.enroll(enrollment(name, "t", policy="web"))
    assert await uses() == (3, NOW)
    await refused("token-used-up", Conflict, store.enrollment.enroll(enrollment("d", "t", policy="web")))
    await refused("token-used-up", Conflict, store.enrollment.revoke_token(digest("t"), entry()))
    assert [made.name for made in await store.devices.list_devices()] == ["a", "b", "c"]


async def test_registered_eks(store: SqlStore) -> None:
    """They come back as they were registered; the same again is none, and other terms are refused as a whole."""
    await refused("not-found", NotFound, store.enrollment.register_eks([registered_ek()], [entry()]))
    await store.policies.add_policy(policy(), entry())
    made = [
        registered_ek("b", labels=("x", "y"), without_token=True),
        registered_ek("a", added_at=NOW + timedelta(days=1)),
    ]
    audit = [entry("ek register", device=each.name) for each in made]
    assert await store.enrollment.register_eks(made, audit) == made
    assert await store.enrollment.register_eks(made, audit) == []
    assert await store.enrollment.list_registered_eks() == made[::-1]
    assert await store.enrollment.find_registered_ek(made[0].ek_sha256) == made[0]
    assert await store.enrollment.find_registered_ek(b"x") is None
    events = [each.device for _, each in await store.audit.list_audit() if each.event == "ek register"]
    assert events == ["a", "b"]
    for wrong in (
        registered_ek("b", labels=("x",), without_token=True),
        registered_ek("b", ek_sha256=digest("another")),
        registered_ek("c", ek_sha256=made[0].ek_sha256),
    ):
        both = [registered_ek("new"), wrong]
        await refused("ek-registered", Conflict, store.enrollment.register_eks(both, [entry(), entry()]))
    await store.enrollment.unregister_ek(made[0].ek_sha256, entry())
    await refused("not-found", NotFound, store.enrollment.unregister_ek(made[0].ek_sha256, entry()))
    assert await store.enrollment.list_registered_eks() == [made[1]]


async def test_an_enrollment_uses_its_registered_ek(store: SqlStore) -> None:
    """Once; and another TPM does not take its name before."""
    await store.policies.add_policy(policy("web"), entry())
    mine = registered_ek("a", policy="web")
    await store.enrollment.register_eks([mine], [entry()])
    await store.enrollment.add_token(token("t", policy="web", record=False, machines=9), entry())
    thief = enrollment("a", "t", policy="web", device=device("a", ak="z", ek="z"))
    await refused("name-taken", Conflict, store.enrollment.enroll(thief))
    without = enrollment("a", policy="web", token_digest=None, registered_ek=mine.ek_sha256)
    await store.enrollment.enroll(without)
    found = await store.enrollment.find_registered_ek(mine.ek_sha256)
    assert found is not None
    assert found.used_at == NOW
    await store.devices.remove_device("a", entry())
    await refused("ek-not-registered", Conflict, store.enrollment.enroll(without))
    await store.enrollment.enroll(thief)


async def test_the_rest_of_a_token_is_revoked(store: SqlStore) -> None:
    """The machines that it enrolled stay."""
    await store.policies.add_policy(policy("web"), entry())
    await store.enrollment.add_token(token("t", policy="web", record=False, machines=3), entry())
    await store.enrollment.enroll(enrollment("a", "t", policy="web"))
    await store.enrollment.revoke_token(digest("t"), entry())
    await refused("token-revoked", Conflict, store.enrollment.enroll(enrollment("b", "t", policy="web")))
    assert [made.name for made in await store.devices.list_devices()] == ["a"]


@pytest.mark.parametrize(
    ("new", "code"),
    [
        (enrollment("pi-b", "second"), "name-taken"),
        (enrollment("fleet", "second"), "name-taken"),  # the policy's name
        (enrollment("pi-c", "second", device=device("pi-c", ak="pi-b")), "device-exists"),
        (enrollment("pi-c", "second", device=device("pi-c", ek="pi-b")), "device-exists"),
        (enrollment("pi-c", "second", policy="missing"), "not-found"),
    ],
)
async def test_a_failed_enrollment_leaves_its_token(store: SqlStore, new, code: str) -> None:
    """The token is used up by the request that succeeds, and by no other."""
    await store.policies.add_policy(policy("fleet"), entry())
    await enroll(store)
    await store.enrollment.add_token(token("second"), entry())
    before = await audited(store)
    await refused(code, TangAttestError, store.enrollment.enroll(new))
    unused = await store.enrollment.find_token(digest("second"))
    assert unused is not None
    assert unused.used_at is None
    assert await audited(store) == before
    assert len(await store.policies.list_policies()) == 2
    await store.enrollment.enroll(enrollment("pi-c", "second", policy="fleet"))
    assert (await store.devices.get_device("pi-c")).policy == "fleet"


# --- policies ---------------------------------------------------------------------------------------------------


async def test_policies(store: SqlStore) -> None:
    """States keep the order in which they were approved."""
    made = policy("fleet", state("b"), state("a"))
    await store.policies.add_policy(made, entry())
    await store.policies.add_state("fleet", state("c", "imported"), entry())
    assert await store.policies.get_policy("fleet") == replace(
        made, states=(*made.states, state("c", "imported"))
    )
    await store.policies.add_policy(replace(policy("empty"), states=()), entry())
    assert [found.name for found in await store.policies.list_policies()] == ["empty", "fleet"]
    await refused("name-taken", Conflict, store.policies.add_policy(policy("fleet"), entry()))
    await refused("name-taken", Conflict, store.policies.add_state("fleet", state("a"), entry()))
    await refused("not-found", NotFound, store.policies.add_state("missing", state(), entry()))
    await refused("not-found", NotFound, store.policies.get_policy("missing"))


async def test_arm_learning(store: SqlStore) -> None:
    """Armed, and disarmed again."""
    await enroll(store)
    learning = Learning(NOW + timedelta(hours=1), {0: b"\1" * 32})
    await store.devices.arm_learning("pi-b", learning, entry())
    assert (await store.devices.get_device("pi-b")).learning == learning
    await store.devices.arm_learning("pi-b", None, entry())
    assert (await store.devices.get_device("pi-b")).learning is None
    await refused("not-found", NotFound, store.devices.arm_learning("other", None, entry()))


# --- decisions --------------------------------------------------------------------------------------------------


async def test_decide(store: SqlStore) -> None:
    """Nonce, clock, what was seen, audit and observation."""
    device_id = await enroll(store)
    refusal = entry(verdict="refused", code="pcr-mismatch", device="pi-b", at=NOW + timedelta(seconds=5))
    await store.decisions.decide(
        decision(
            device_id, "n", 7, audit=refusal, observation=Snapshot(SELECTION, values("odd"), b"event log")
        )
    )
    seen = await store.devices.get_device("pi-b")
    assert (seen.clock, seen.last_seen_at, seen.last_code) == (clock(7), refusal.at, "pcr-mismatch")
    (observation,) = await store.policies.list_observations("pi-b")
    assert observation.device == "pi-b"
    assert (observation.at, observation.code, observation.reset_count) == (refusal.at, "pcr-mismatch", 1)
    assert (observation.snapshot.selection, observation.snapshot.values) == (SELECTION, values("odd"))
    assert observation.snapshot.event_log == b"event log"
    assert (await store.audit.list_audit())[0][1] == refusal
    await refused("not-found", NotFound, store.policies.list_observations("other"))


async def test_a_nonce_is_used_once(store: SqlStore) -> None:
    """The second use is audited, and changes nothing else."""
    device_id = await enroll(store)
    await store.decisions.decide(decision(device_id, "n", 1))
    await refused("nonce-used", Conflict, store.decisions.decide(decision(device_id, "n", 2)))
    assert (await store.devices.get_device("pi-b")).clock == clock(1)
    assert (await audited(store))[-2:] == [("unlock", "permitted", "ok"), ("unlock", "refused", "nonce-used")]


@pytest.mark.parametrize(
    ("new", "accepted"),
    [
        (clock(11, 5, 5), True),
        (clock(11, 5, 6), True),  # a resume
        (clock(1, 6, 0), True),  # a reboot
        (clock(10, 5, 5), False),
        (clock(9, 5, 5), False),
        (clock(11, 5, 4), False),
        (clock(9, 5, 6), False),
        (clock(2**64 - 1, 4, 9), False),
        (clock(2**63, 5, 5), True),
        (clock(2**64 - 1, 5, 5), True),
    ],
)
async def test_the_clock_moves_forward(store: SqlStore, new, accepted: bool) -> None:
    """TPM 2.0 part 1, section 36, checked again where it is written."""
    device_id = await enroll(store)
    await store.decisions.decide(decision(device_id, "first", 0, clock=clock(10, 5, 5)))
    second = store.decisions.decide(decision(device_id, "second", 0, clock=new))
    if accepted:
        await second
        assert (await store.devices.get_device("pi-b")).clock == new
        return
    before = await audited(store)
    await refused("clock-backwards", Conflict, second)
    assert await audited(store) == before
    # Nothing was written, so the nonce is as good as before.
    await store.decisions.decide(decision(device_id, "second", 0, clock=clock(0, 6, 0)))


async def test_a_device_removed_meanwhile_is_unknown(store: SqlStore) -> None:
    """Its key is gone, so nothing may be decided for it; nothing is written."""
    bound_id = await enroll(store)
    assert await store.decisions.find_key("kid-pi-b") is not None
    await store.devices.remove_device("pi-b", entry())
    before = await audited(store)
    await refused("key-unknown", NotFound, store.decisions.decide(decision(bound_id, "n", 1)))
    assert await audited(store) == before
    assert await store.decisions.prune(NOW + timedelta(days=1)) == 0


async def test_learning_is_one_use(store: SqlStore) -> None:
    """The state is added once; a second one that was appraised meanwhile learns nothing."""
    device_id = await enroll(store)
    await store.devices.arm_learning("pi-b", Learning(NOW + timedelta(hours=1), {}), entry())
    learned = state("recorded", "learned")  # the label is taken: nobody is there to choose another
    await store.decisions.decide(decision(device_id, "n1", 1, learned=learned))
    await refused(
        "pcr-mismatch", Conflict, store.decisions.decide(decision(device_id, "n2", 2, learned=learned))
    )
    await refused(
        "clock-backwards", Conflict, store.decisions.decide(decision(device_id, "n2", 1, learned=learned))
    )
    seen = await store.devices.get_device("pi-b")
    assert (seen.learning, seen.clock) == (None, clock(1))
    made = await store.policies.get_policy("pi-b")
    assert made.states == (state(), replace(learned, label="recorded-2"))


async def test_observations_are_bounded(store: SqlStore) -> None:
    """A machine that is refused tries again for as long as it has power; the newest are kept, for each device."""
    one, two = await enroll(store), await enroll(store, "pi-c")
    await store.decisions.decide(decision(two, "other", 1, observation=Snapshot(SELECTION, values())))
    for tick in range(40):
        await store.decisions.decide(
            decision(one, f"n{tick}", tick, observation=Snapshot(SELECTION, values(str(tick)), bytes([tick])))
        )
    kept = await store.policies.list_observations("pi-b")
    assert [found.snapshot.event_log[0] for found in kept] == list(range(39, 7, -1))
    assert len(await store.policies.list_observations("pi-c")) == 1
    assert len(await store.policies.list_observations(limit=10)) == 10


async def test_prune(store: SqlStore) -> None:
    """Expired nonces are forgotten, others not."""
    device_id = await enroll(store)
    for minutes in (1, 2, 3):
        until = NOW + timedelta(minutes=minutes)
        await store.decisions.decide(decision(device_id, f"n{minutes}", minutes, nonce_expires_at=until))
    assert await store.decisions.prune(NOW + timedelta(minutes=2)) == 1
    await refused("nonce-used", Conflict, store.decisions.decide(decision(device_id, "n2", 9)))
    await store.decisions.decide(decision(device_id, "n1", 9))


# --- the rest -------------------------------------------------------------------------------------------------------


async def test_revoked_tokens(store: SqlStore) -> None:
    """Unused ones only, once, and such a token enrolls nobody."""
    await refused("not-found", NotFound, store.enrollment.revoke_token(digest("token"), entry()))
    await store.enrollment.add_token(token(), entry("token create"))
    await store.enrollment.revoke_token(digest("token"), entry("token revoke"))
    revoked = await store.enrollment.find_token(digest("token"))
    assert revoked is not None
    assert revoked.revoked_at == entry().at
    await refused("not-found", NotFound, store.enrollment.revoke_token(digest("token"), entry()))
    await refused("token-revoked", Conflict, store.enrollment.enroll(enrollment()))
    await store.enrollment.add_token(token("second"), entry("token create"))
    await store.enrollment.enroll(enrollment(text="second"))
    await refused("token-used", Conflict, store.enrollment.revoke_token(digest("second"), entry()))
    assert await audited(store) == [
        ("token create", "done", "ok"),
        ("token revoke", "done", "ok"),
        ("token create", "done", "ok"),
        ("enroll", "done", "ok"),
    ]


async def test_ek_roots_by_subject(store: SqlStore) -> None:
    """Those with the subject, that one certificate, and those whose subject nobody knows."""
    made = {
        "a": EkRoot("a" * 64, "A", b"der", NOW, b"one"),
        "b": EkRoot("b" * 64, "B", b"der", NOW, b"one"),
        "c": EkRoot("c" * 64, "C", b"der", NOW, b"two"),
        "d": EkRoot("d" * 64, "D", b"der", NOW, None),
    }
    for root in made.values():
        await store.enrollment.add_ek_root(root, entry("ek-root add"))

    async def found(subject: bytes, fingerprint: str) -> str:
        return "".join(
            root.fingerprint[0] for root in await store.enrollment.find_ek_roots(subject, fingerprint)
        )

    assert await found(b"one", "") == "abd"
    assert await found(b"two", "") == "cd"
    assert await found(b"three", "") == "d"
    assert await found(b"two", "a" * 64) == "acd"
    assert [root.subject for root in await store.enrollment.list_ek_roots()] == [b"one", b"one", b"two", None]


async def test_ek_roots(store: SqlStore) -> None:
    """Added, listed by label, removed; adding again changes nothing."""
    roots = [EkRoot(fingerprint * 64, label, b"der", NOW) for fingerprint, label in (("a", "Z"), ("b", "Y"))]
    for root in roots:
        await store.enrollment.add_ek_root(root, entry())
    assert await store.enrollment.list_ek_roots() == roots[::-1]
    await store.enrollment.add_ek_root(replace(roots[0], label="A"), entry())
    assert await store.enrollment.list_ek_roots() == roots[::-1]
    await store.enrollment.remove_ek_root(roots[0].fingerprint, entry())
    await refused("not-found", NotFound, store.enrollment.remove_ek_root(roots[0].fingerprint, entry()))
    assert await store.enrollment.list_ek_roots() == roots[1:]


async def test_audit(store: SqlStore) -> None:
    """Every field comes back; newest first; by device; limited."""
    full = entry(
        "unlock",
        verdict="refused",
        code="pcr-mismatch",
        device="pi-b",
        kid="kid",
        address="2001:db8::1",
        request_id="r1",
        details={"pcrs": [4, 7], "text": "\u00e9 \u0000 \"'"},
    )
    await store.audit.append(full)
    for number in range(3):
        await store.audit.append(entry(f"event {number}"))
    rows = await store.audit.list_audit()
    assert [row.event for _, row in rows] == ["event 2", "event 1", "event 0", "unlock"]
    assert rows[-1][1] == full
    assert [number for number, _ in rows] == sorted((number for number, _ in rows), reverse=True)
    assert await store.audit.list_audit("pi-b") == rows[-1:]
    assert await store.audit.list_audit(limit=2) == rows[:2]


async def test_closed(store: SqlStore) -> None:
    """A server that stops says so, in every way of asking."""
    await store.close()
    for call in (
        store.decisions.find_key("k"),
        store.audit.append(entry()),
        store.devices.list_devices(),
        store.policies.add_policy(policy(), entry()),
    ):
        await refused("unavailable", Unavailable, call)
