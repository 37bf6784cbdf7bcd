"""Every race of the registry, held open by a stall: the first is inside its transaction while the second comes.

Two stores on one database are two processes.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio

from tang_attest.errors import TangAttestError
from tang_attest.ports.decisions import Basis, Decision
from tang_attest.ports.machines import Learning, Suspension
from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.changes.rollout import Rollout
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.reference_state import Life
from tang_attest.protocol.rules import parse_rules
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.store import SqlStore, locks, transfers
from tang_attest.store.records import devices, keys, policies, rollouts, tokens
from tests.protocol.signed_values import signing
from tests.store.conftest import Opener, Stall
from tests.store.samples import NOW, clock, decision, device, enrollment, entry, key, policy, state, token

RULES = parse_rules({"judge-by-events": [7], "rules": [{"secure-boot": "on"}]})


def rollout() -> Rollout:
    """A change that reaches a tenth of the machines."""
    return Rollout(
        policy="policy",
        name="next",
        change=PolicyChange(rules=RULES),
        salt="salt",
        share=1000,
        limit=0,
        started_at=NOW,
        started_by="operator:test",
    )


@pytest_asyncio.fixture
async def other(open_another: Opener) -> SqlStore:
    """Another process."""
    return await open_another()


@pytest_asyncio.fixture
async def device_id(store: SqlStore) -> int:
    """A device with a learning use."""
    await store.policies.add_policy(policy(), entry())
    made = await store.devices.add_device(device(), "policy", key(), entry())
    await store.keys.add_key(key("kid-new", minutes=1), "pi-b", entry())
    await store.policies.add_policy(policy("other"), entry())
    await store.devices.arm_learning("pi-b", Learning(NOW + timedelta(hours=1), {}), entry())
    return made.id


async def codes(*calls) -> list[str]:
    """Outcome of each, in the order given."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [result.code if isinstance(result, TangAttestError) else "ok" for result in results]


async def race(stall: Stall, first, second) -> list[str]:
    """Outcomes of the two; *second* begins when *first* is stalled, and cannot end before it."""
    one = asyncio.create_task(first)
    await stall.entered()
    two = asyncio.create_task(second)
    await asyncio.sleep(0.1)
    assert not one.done()
    assert not two.done(), "the second did not wait for the first"
    stall.go()
    return await codes(one, two)


async def verdicts(store: SqlStore) -> list[tuple[str, str]]:
    rows = reversed(await store.audit.list_audit(limit=10_000))
    return [(row.verdict, row.code) for _, row in rows if row.event == "unlock"]


async def test_one_nonce_at_two_replicas(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/protocol.md 3.4: exactly one of the two commits, and the other is audited."""
    monkeypatch.setattr(locks, "take", stall.around(locks.take))
    ended = await race(
        stall,
        store.decisions.decide(decision(device_id, "n", 1)),
        other.decisions.decide(decision(device_id, "n", 2)),
    )
    assert ended == ["ok", "nonce-used"]
    assert await verdicts(store) == [("permitted", "ok"), ("refused", "nonce-used")]
    assert (await other.devices.get_device("pi-b")).clock == clock(1)


async def test_one_nonce_in_one_batch(store: SqlStore, device_id: int) -> None:
    """The same in one process, where the two share a transaction."""
    ended = await codes(*(store.decisions.decide(decision(device_id, "n", tick)) for tick in (1, 2)))
    assert ended == ["ok", "nonce-used"]
    assert await verdicts(store) == [("permitted", "ok"), ("refused", "nonce-used")]


async def test_older_evidence_comes_second(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both were verified against the same stored clock; the older of the two loses, and its nonce stays unused."""
    monkeypatch.setattr(locks, "take", stall.around(locks.take))
    ended = await race(
        stall,
        store.decisions.decide(decision(device_id, "n2", 2)),
        other.decisions.decide(decision(device_id, "n1", 1)),
    )
    assert ended == ["ok", "clock-backwards"]
    assert await verdicts(store) == [("permitted", "ok")]
    assert await store.decisions.prune(NOW + timedelta(days=1)) == 1


@pytest.mark.parametrize(
    ("newer", "expected"),
    [
        (clock(1001), ["ok", "ok"]),
        (clock(1002), ["ok", "clock-backwards"]),
        (clock(2, 2), ["ok", "clock-backwards"]),
        (clock(2, 1, 1), ["ok", "clock-backwards"]),
    ],
    ids=["same boot", "long before", "next boot", "after a suspension"],
)
async def test_evidence_that_was_overtaken_comes_second(
    store: SqlStore,
    other: SqlStore,
    device_id: int,
    stall: Stall,
    monkeypatch: pytest.MonkeyPatch,
    newer: ClockInfo,
    expected: list[str],
) -> None:
    """It was compared with what it has to follow, so it stands if it is of the newest boot; no clock moves back."""
    monkeypatch.setattr(locks, "take", stall.around(locks.take))
    ended = await race(
        stall,
        store.decisions.decide(decision(device_id, "n2", 2, clock=newer, behind_ms=1000)),
        other.decisions.decide(decision(device_id, "n1", 1, behind_ms=1000)),
    )
    assert ended == expected
    assert (await store.devices.get_device("pi-b")).clock == newer
    assert await codes(other.decisions.decide(decision(device_id, "n1", 1, behind_ms=1000))) == [
        "nonce-used" if expected[1] == "ok" else "clock-backwards"
    ]


async def test_one_learning_use_at_two_replicas(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One state is learned."""
    monkeypatch.setattr(locks, "take", stall.around(locks.take))
    ended = await race(
        stall,
        store.decisions.decide(decision(device_id, "n1", 1, learned=state("one", "learned"))),
        other.decisions.decide(decision(device_id, "n2", 2, learned=state("two", "learned"))),
    )
    assert ended == ["ok", "pcr-mismatch"]
    assert [found.label for found in (await store.policies.get_policy("policy")).states] == [
        "recorded",
        "one",
    ]


async def test_the_device_is_removed_under_a_decision(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key was found before, and must not be used now."""
    assert await other.decisions.find_key("kid-pi-b") is not None
    monkeypatch.setattr(devices, "remove", stall.around(devices.remove))
    ended = await race(
        stall,
        store.devices.remove_device("pi-b", entry()),
        other.decisions.decide(decision(device_id, "n", 1)),
    )
    assert ended == ["ok", "key-unknown"]
    assert await verdicts(store) == []


CHANGES = {
    "require-approval": ("approval-required", policies, "set_conditions"),
    "refuse-stale": ("device-stale", policies, "set_conditions"),
    "suspend": ("device-suspended", devices, "suspend"),
    "remove": ("key-unknown", devices, "remove"),
    "retire": ("state-retired", policies, "move_state"),
    "retire key": ("key-retired", keys, "retire"),
    "move": ("policy-changed", transfers, "move"),
    "rules": ("policy-changed", rollouts, "change"),
    "rollout": ("policy-changed", rollouts, "start"),
    "label": ("policy-changed", devices, "label"),
    "signers": ("policy-changed", policies, "change_signers"),
}
CHANGE = pytest.mark.parametrize("what", CHANGES)


async def change(store: SqlStore, what: str) -> None:  # noqa: C901 - a case for each act
    """Acts of an operator during an unlock."""
    match what:
        case "require-approval":
            await store.policies.set_conditions("policy", Conditions(approval=True), entry())
        case "refuse-stale":
            await store.policies.set_conditions("policy", Conditions(stale_after_s=3600), entry())
        case "suspend":
            await store.devices.suspend_device("pi-b", Suspension(NOW, "operator:test", "lost"), entry())
        case "remove":
            await store.devices.remove_device("pi-b", entry())
        case "retire":
            await store.policies.move_state("policy", "recorded", {Life.ACTIVE}, Life.RETIRED, entry())
        case "retire key":
            await store.keys.retire_key("kid-pi-b", NOW, entry())
        case "move":  # to a policy with a state of the same label
            await store.devices.move_device("pi-b", "other", "policy", entry())
        case "rules":
            await store.policies.change_policy("policy", PolicyChange(rules=RULES), (), entry())
        case "rollout":
            await store.policies.start_rollout(rollout(), (), entry())
        case "label":
            await store.devices.label_devices(["pi-b"], ["canary"], [], [entry()])
        case "signers":
            signer, _ = signing.pipeline(pcrs=(4,))
            await store.policies.change_signers("policy", lambda known: known.with_signer(signer), entry())


def permit(device_id: int) -> Decision:
    """A permit that was given by the policy as it was; it is two hours since the device was enrolled."""
    late = entry(
        "unlock",
        at=NOW + timedelta(hours=2),
        verdict="permitted",
        actor="device:pi-b",
        device="pi-b",
        kid="kid-pi-b",
    )
    return decision(device_id, "n", 1, met=state(), basis=Basis(None, None, (), "policy"), audit=late)


@CHANGE
async def test_a_change_that_was_committed_stops_an_unlock_that_is_under_way(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The evidence was appraised before; the decision waits for the change, and sees it."""
    code, module, name = CHANGES[what]
    monkeypatch.setattr(module, name, stall.around(getattr(module, name)))
    ended = await race(stall, change(store, what), other.decisions.decide(permit(device_id)))
    assert ended == ["ok", code]
    assert await verdicts(store) == []


@CHANGE
async def test_no_change_comes_between_the_last_look_and_the_permit(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """After a confirmed change, no permit rests on the policy before it."""
    monkeypatch.setattr(locks, "take", stall.around(locks.take))
    ended = await race(stall, store.decisions.decide(permit(device_id)), change(other, what))
    assert ended == ["ok", "ok"]
    rows = [row for _, row in reversed(await store.audit.list_audit(limit=10_000))][-2:]
    assert [row.event for row in rows] == ["unlock", "change"]


@CHANGE
async def test_a_change_and_an_unlock_in_either_order(store: SqlStore, device_id: int, what: str) -> None:
    """One after the other: the change counts, and a refusal that was appraised before it is written all the same."""
    await change(store, what)
    assert await codes(store.decisions.decide(permit(device_id))) == [CHANGES[what][0]]
    refusal = entry("unlock", verdict="refused", code="pcr-mismatch", device="pi-b")
    ended = await codes(store.decisions.decide(decision(device_id, "n", 1, audit=refusal)))
    assert ended == ["key-unknown" if what == "remove" else "ok"]


async def test_a_person_who_allows_an_unlock_that_is_under_way(store: SqlStore, device_id: int) -> None:
    """A word that came in time counts, and one that ended does not."""
    await change(store, "require-approval")
    await store.devices.allow_device("pi-b", NOW + timedelta(hours=3), entry())
    assert await codes(store.decisions.decide(permit(device_id))) == ["ok"]
    await store.devices.allow_device("pi-b", NOW + timedelta(hours=1), entry())
    again = replace(permit(device_id), nonce_digest=b"m" * 32, clock=clock(2))
    assert await codes(store.decisions.decide(again)) == ["approval-required"]


async def test_predictions_that_are_trusted_no_more(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An announcement that was under way does not count at once."""
    await store.policies.trust_predictions("policy", True, entry())
    announced = replace(state("next", "predicted"), life=Life.STAGED)
    monkeypatch.setattr(policies, "trust_predictions", stall.around(policies.trust_predictions))
    ended = await race(
        stall,
        store.policies.trust_predictions("policy", False, entry()),
        other.policies.add_state("policy", announced, entry()),
    )
    assert ended == ["ok", "policy-changed"]
    waiting = replace(announced, life=Life.PROPOSED)
    assert await codes(other.policies.add_state("policy", waiting, entry())) == ["ok"]


async def test_predictions_that_operators_have_to_sign(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An announcement that was under way does not count at once, although predictions are trusted."""
    await store.policies.trust_predictions("policy", True, entry())
    announced = replace(state("next", "predicted"), life=Life.STAGED)
    monkeypatch.setattr(policies, "set_conditions", stall.around(policies.set_conditions))
    ended = await race(
        stall,
        store.policies.set_conditions("policy", Conditions(operators=2), entry()),
        other.policies.add_state("policy", announced, entry()),
    )
    assert ended == ["ok", "policy-changed"]
    waiting = replace(announced, life=Life.PROPOSED)
    assert await codes(other.policies.add_state("policy", waiting, entry())) == ["ok"]


async def test_one_token_at_two_replicas(
    store: SqlStore, other: SqlStore, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One device is made."""
    await store.enrollment.add_token(token(), entry())
    monkeypatch.setattr(tokens, "use", stall.around(tokens.use))
    ended = await race(
        stall, store.enrollment.enroll(enrollment("a")), other.enrollment.enroll(enrollment("b"))
    )
    assert ended == ["ok", "token-used"]
    assert [made.name for made in await store.devices.list_devices()] == ["a"]


async def test_the_last_use_of_a_token_at_two_replicas(
    store: SqlStore, other: SqlStore, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two uses are left for three machines: the one that waits for the row reads the uses again."""
    await store.policies.add_policy(policy("web"), entry())
    await store.enrollment.add_token(token(policy="web", record=False, machines=2), entry())
    monkeypatch.setattr(tokens, "use", stall.around(tokens.use))
    ended = await race(
        stall,
        store.enrollment.enroll(enrollment("a", policy="web")),
        other.enrollment.enroll(enrollment("b", policy="web")),
    )
    assert ended == ["ok", "ok"]
    assert await codes(store.enrollment.enroll(enrollment("c", policy="web"))) == ["token-used-up"]
    assert [made.name for made in await store.devices.list_devices()] == ["a", "b"]


async def test_more_machines_than_uses_at_two_replicas(store: SqlStore, other: SqlStore) -> None:
    """Twelve machines come at once for seven uses: seven are enrolled, and the uses are seven."""
    await store.policies.add_policy(policy("web"), entry())
    await store.enrollment.add_token(token(policy="web", record=False, machines=7), entry())
    ended = await codes(
        *(
            (store, other)[number % 2].enrollment.enroll(enrollment(f"m{number}", policy="web"))
            for number in range(12)
        )
    )
    assert sorted(ended) == ["ok"] * 7 + ["token-used-up"] * 5
    assert len(await store.devices.list_devices()) == 7
    assert [found.uses for found in await store.enrollment.list_tokens()] == [7]


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (enrollment("a", "second"), "name-taken"),
        (enrollment("b", "second", device=device("b", ak="a")), "device-exists"),
        (enrollment("b", "second", device=device("b", ek="a")), "device-exists"),
    ],
)
async def test_one_machine_at_two_replicas(
    store: SqlStore, other: SqlStore, stall: Stall, monkeypatch: pytest.MonkeyPatch, second, code: str
) -> None:
    """Two tokens, one name or one TPM: one device is made, and the other token is still good."""
    for text in ("token", "second"):
        await store.enrollment.add_token(token(text), entry())
    monkeypatch.setattr(devices, "add", stall.around(devices.add))
    assert await race(stall, store.enrollment.enroll(enrollment("a")), other.enrollment.enroll(second)) == [
        "ok",
        code,
    ]
    assert [made.name for made in await store.devices.list_devices()] == ["a"]
    assert [found.digest for found in await store.enrollment.list_tokens() if found.used_at is None] == [
        second.token_digest
    ]


async def test_a_change_that_looks_first(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reads still hold when it writes, so it succeeds: SQLite fails a reader that becomes a writer late."""
    monkeypatch.setattr(policies, "find_id", stall.around(policies.find_id))
    one = asyncio.create_task(store.policies.add_state("policy", state("one"), entry()))
    await stall.entered()
    two = asyncio.create_task(other.policies.add_state("policy", state("two"), entry()))
    await asyncio.sleep(0.1)
    stall.go()
    assert await codes(one, two) == ["ok", "ok"]


async def test_a_batch_stands_when_one_falls(store: SqlStore, device_id: int) -> None:
    """Every neighbor of a lost race and of an unstorable entry is written."""
    await store.devices.add_device(device("pi-c"), "policy", key("c"), entry())
    second = (await store.devices.get_device("pi-c")).id
    await store.decisions.decide(decision(device_id, "used", 5))
    ended = await codes(
        store.decisions.decide(decision(device_id, "n1", 6)),
        store.decisions.decide(decision(device_id, "n2", 3)),
        store.decisions.decide(decision(second, "used", 1)),
        store.audit.append(entry("note")),
        store.decisions.decide(decision(999, "n3", 1)),
        store.decisions.decide(decision(second, "n4", 1)),
    )
    assert ended == ["ok", "clock-backwards", "nonce-used", "ok", "key-unknown", "ok"]
    assert await verdicts(store) == [
        ("permitted", "ok"),
        ("permitted", "ok"),
        ("refused", "nonce-used"),
        ("permitted", "ok"),
    ]


async def test_what_cannot_be_stored_spoils_nothing_else(store: SqlStore, device_id: int) -> None:
    """A lone surrogate has no UTF-8; it arrives in JSON as \\ud800.  Only its own caller hears of it."""
    results = await asyncio.gather(
        store.decisions.decide(decision(device_id, "n1", 1)),
        store.audit.append(entry("note", address="\ud800")),
        store.audit.append(entry("note")),
        store.decisions.decide(decision(device_id, "n2", 2)),
        return_exceptions=True,
    )
    assert [isinstance(result, Exception) for result in results] == [False, True, False, False]
    assert await verdicts(store) == [("permitted", "ok"), ("permitted", "ok")]
    assert (await store.devices.get_device("pi-b")).clock == clock(2)


async def test_a_caller_that_hangs_up_cancels_nothing(
    store: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch is committed, its own decision in it."""
    monkeypatch.setattr(locks, "take", stall.around(locks.take))
    callers = [
        asyncio.create_task(store.decisions.decide(decision(device_id, f"n{tick}", tick))) for tick in (1, 2)
    ]
    await stall.entered()
    callers[0].cancel()
    await asyncio.sleep(0)
    stall.go()
    await callers[1]
    assert callers[0].cancelled()
    assert await verdicts(store) == [("permitted", "ok")] * 2


async def test_close_finishes_what_is_under_way(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops answers what it took."""
    monkeypatch.setattr(locks, "take", stall.around(locks.take))
    first = asyncio.create_task(store.decisions.decide(decision(device_id, "n1", 1)))
    await stall.entered()
    second = asyncio.create_task(store.decisions.decide(decision(device_id, "n2", 2)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.05)
    stall.go()
    await closing
    assert await codes(first, second) == ["ok", "ok"]
    assert await verdicts(other) == [("permitted", "ok")] * 2


async def test_many_replicas_many_callers(open_another: Opener, store: SqlStore, device_id: int) -> None:
    """No order of events lets a nonce be used twice: 3 processes, 20 nonces, each sent 6 times."""
    stores = [store, await open_another(), await open_another()]
    ticks = iter(range(1, 1000))
    calls = [
        stores[use % 3].decisions.decide(decision(device_id, f"n{number}", 0, clock=clock(0, next(ticks))))
        for use in range(6)
        for number in range(20)
    ]
    ended = await codes(*calls)
    assert set(ended) <= {"ok", "nonce-used", "clock-backwards"}
    rows = [row for _, row in await store.audit.list_audit(limit=10_000) if row.event == "unlock"]
    permitted = [row.request_id for row in rows if row.verdict == "permitted"]
    assert len(permitted) == len(set(permitted)) == ended.count("ok")
    assert len([row for row in rows if row.code == "nonce-used"]) == ended.count("nonce-used")
