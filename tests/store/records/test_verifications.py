"""Rounds of verification in the registry: what is written, what is not, and who wins a race."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from tang_attest.errors import TangAttestError
from tang_attest.ports.machines import Suspension
from tang_attest.ports.rounds import RoundEffect, RoundRecord
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.store import SqlStore, verifications
from tests.store.conftest import Opener, Stall
from tests.store.samples import NOW, clock, decision, device, digest, entry, key, policy, state

BAD = Suspension(NOW, "server", "refused")


@pytest_asyncio.fixture
async def device_id(store: SqlStore) -> int:
    """A device."""
    await store.policies.add_policy(policy(), entry())
    return (await store.devices.add_device(device(), "policy", key(), entry())).id


@pytest_asyncio.fixture
async def other(open_another: Opener) -> SqlStore:
    """Another process."""
    return await open_another()


def ended(
    device_id: int, ticks: int, outcome: RoundOutcome = RoundOutcome.VERIFIED, **fields: Any
) -> RoundRecord:
    """A round; *ticks* is the TPM's clock."""
    known: dict[str, Any] = {
        "device_id": device_id,
        "at": NOW + timedelta(seconds=ticks),
        "outcome": outcome,
        "code": "ok" if outcome is RoundOutcome.VERIFIED else "pcr-mismatch",
        "details": {"reasons": []},
        "clock": clock(ticks),
    }
    return RoundRecord(**(known | fields))


async def code(call: Any) -> Any:
    try:
        return await call
    except TangAttestError as error:
        return error.code


async def test_only_changes_make_rows(store: SqlStore, device_id: int) -> None:
    """And the times on the device's row move with each round."""
    assert await store.rounds.record_round(ended(device_id, 1)) == RoundEffect(outcome=True, suspended=False)
    assert await store.rounds.record_round(ended(device_id, 2)) == RoundEffect(outcome=False, suspended=False)
    assert await store.rounds.record_round(ended(device_id, 3, RoundOutcome.REFUSED)) == RoundEffect(
        outcome=True, suspended=False
    )
    assert await store.rounds.record_round(
        ended(device_id, 4, RoundOutcome.REFUSED, code="policy-empty")
    ) == RoundEffect(outcome=True, suspended=False)
    standing = (await store.devices.get_device("pi-b")).standing
    assert (standing.outcome, standing.code) == (RoundOutcome.REFUSED, "policy-empty")
    assert standing.answered_at == NOW + timedelta(seconds=4)
    assert standing.verified_at == NOW + timedelta(seconds=2)
    past = await store.rounds.list_rounds("pi-b")
    assert [(p.outcome, p.code) for p in past] == [
        (RoundOutcome.REFUSED, "policy-empty"),
        (RoundOutcome.REFUSED, "pcr-mismatch"),
        (RoundOutcome.VERIFIED, "ok"),
    ]


async def test_rounds_of_one_batch_follow_each_other(store: SqlStore, device_id: int) -> None:
    """Each sees what the one before it wrote, and an older clock loses."""
    results = await asyncio.gather(
        *(code(store.rounds.record_round(ended(device_id, tick))) for tick in (1, 3, 2)),
        code(store.rounds.record_round(ended(device_id + 7, 1))),
    )
    assert results == [RoundEffect(True, False), RoundEffect(False, False), "clock-backwards", "key-unknown"]
    assert (await store.devices.get_device("pi-b")).clock == clock(3)


async def test_a_round_is_remembered_until_its_nonce_ends(store: SqlStore, device_id: int) -> None:
    """The same evidence again is told from evidence that was overtaken."""
    until = NOW + timedelta(minutes=2)

    def answer(ticks: int, **fields: Any) -> RoundRecord:
        shown: dict[str, Any] = {
            "answer_digest": digest(f"answer {ticks}"),
            "answer_expires_at": until,
            "behind_ms": 1000,
        }
        return ended(device_id, ticks, **(shown | fields))

    together = await asyncio.gather(*(code(store.rounds.record_round(answer(tick))) for tick in (5, 3, 5, 3)))
    assert together == [RoundEffect(True, False), RoundEffect(False, False), "nonce-used", "nonce-used"]
    assert await code(store.rounds.record_round(answer(3))) == "nonce-used"
    assert await code(store.rounds.record_round(answer(1, clock=clock(9, 0)))) == "clock-backwards"
    assert (await store.devices.get_device("pi-b")).clock == clock(5)
    assert await store.decisions.prune(until + timedelta(seconds=1)) == 2


async def test_unreachable_is_written_only_if_nothing_came(store: SqlStore, device_id: int) -> None:
    """Evidence and a sweep at once: the evidence wins, whichever is first."""
    silent = ended(device_id, 9, RoundOutcome.UNREACHABLE, clock=None, code="device-unreachable")
    await store.rounds.record_round(ended(device_id, 5))
    assert await store.rounds.record_round(replace(silent, silent_since=NOW + timedelta(seconds=4))) is None
    assert (await store.devices.get_device("pi-b")).standing.outcome is RoundOutcome.VERIFIED
    assert (
        await store.rounds.record_round(replace(silent, silent_since=NOW + timedelta(seconds=6))) is not None
    )
    standing = (await store.devices.get_device("pi-b")).standing
    assert standing.outcome is RoundOutcome.UNREACHABLE
    assert standing.answered_at == NOW + timedelta(seconds=5)


async def test_two_replicas_find_one_machine_silent(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them writes the change, tells of it and suspends."""
    monkeypatch.setattr(verifications, "_write_one", stall.around(verifications._write_one))
    silent = ended(
        *(device_id, 9, RoundOutcome.UNREACHABLE),
        clock=None,
        silent_since=NOW,
        suspend=BAD,
        notify=("hook:page",),
    )
    one = asyncio.create_task(store.rounds.record_round(silent))
    await stall.entered()
    two = asyncio.create_task(other.rounds.record_round(silent))
    await asyncio.sleep(0.1)
    stall.go()
    assert [await one, await two] == [RoundEffect(True, True), RoundEffect(False, False)]
    assert len(await store.rounds.list_rounds("pi-b")) == 1
    assert len(await store.rounds.take_notifications(10)) == 1


async def test_suspension_meets_an_unlock_under_way(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Y is not given once the suspension is written, although the unlock was appraised before it."""
    monkeypatch.setattr(verifications, "_write_one", stall.around(verifications._write_one))
    one = asyncio.create_task(
        store.rounds.record_round(ended(device_id, 1, RoundOutcome.REFUSED, suspend=BAD))
    )
    await stall.entered()
    two = asyncio.create_task(code(other.decisions.decide(decision(device_id, "n", 2, met=state()))))
    await asyncio.sleep(0.1)
    assert not two.done()
    stall.go()
    await one
    assert await two == "device-suspended"
    assert (await store.devices.get_device("pi-b")).clock == clock(1)


async def test_a_suspended_device_gets_nothing_but_refusals(store: SqlStore, device_id: int) -> None:
    """A permit, an announcement and a learned state all lose; a refusal is written."""
    await store.devices.suspend_device("pi-b", BAD, entry("device suspend"))
    assert await code(store.devices.suspend_device("pi-b", BAD, entry("x"))) == "device-suspended"
    assert await code(store.decisions.decide(decision(device_id, "a", 1, met=state()))) == "device-suspended"
    done = entry("announce", verdict="done")
    assert await code(store.decisions.decide(decision(device_id, "b", 2, audit=done))) == "device-suspended"
    refused = entry("unlock", verdict="refused", code="device-suspended")
    assert await code(store.decisions.decide(decision(device_id, "c", 3, audit=refused))) is None
    await store.devices.resume_device("pi-b", entry("device resume"))
    assert await code(store.devices.resume_device("pi-b", entry("x"))) == "not-suspended"
    assert await code(store.devices.resume_device("nobody", entry("x"))) == "not-found"
    assert await code(store.decisions.decide(decision(device_id, "d", 4, met=state()))) is None


async def test_suspending_once(store: SqlStore, device_id: int) -> None:
    """A machine that fails on is suspended once, and audited once."""
    for tick in (1, 2):
        await store.rounds.record_round(ended(device_id, tick, RoundOutcome.REFUSED, suspend=BAD))
    suspended = [row for _, row in await store.audit.list_audit("pi-b") if row.event == "device suspend"]
    assert [(row.actor, row.code) for row in suspended] == [("server", "pcr-mismatch")]


async def test_a_wish_is_kept_in_the_history(store: SqlStore, device_id: int) -> None:
    """The operator who asked reads the outcome of their round, even if it equals the one before."""
    await store.rounds.record_round(ended(device_id, 1))
    assert await store.rounds.list_requested() == []
    await store.rounds.request_round("pi-b", NOW)
    assert await store.rounds.list_requested() == ["kid-pi-b"]
    await store.rounds.record_round(ended(device_id, 2))
    assert await store.rounds.list_requested() == []
    assert len(await store.rounds.list_rounds("pi-b")) == 2


async def test_notifications_are_told_by_one(store: SqlStore, other: SqlStore, device_id: int) -> None:
    """Two servers look at once; each notification goes to one of them."""
    for tick in range(1, 21):
        outcome = RoundOutcome.REFUSED if tick % 2 else RoundOutcome.VERIFIED
        await store.rounds.record_round(
            ended(device_id, tick, outcome, notify=("hook:a", "webhook:https://b"))
        )
    taken = await asyncio.gather(
        *(
            each.rounds.take_notifications(7)
            for each in (store, other, store, other, store, other, store, other)
        )
    )
    ids = [notification.id for some in taken for notification in some]
    assert len(ids) == len(set(ids))
    rest = await store.rounds.take_notifications(100)
    assert len(ids) + len(rest) == 40
    assert all(set(n.body) >= {"device", "outcome", "code", "suspended"} for n in rest)


async def test_conditions(store: SqlStore, device_id: int) -> None:
    """They come with the policy, wherever it is read."""
    conditions = Conditions(watch=Watch(on_refused=("suspend",)), approval=True, stale_after_s=5)
    await store.policies.set_conditions("policy", conditions, entry())
    assert (await store.policies.get_policy("policy")).conditions == conditions
    bound = await store.decisions.find_key("kid-pi-b")
    assert bound is not None
    assert bound.policy is not None
    assert bound.policy.conditions == conditions
    assert [(w.policy, w.conditions) for w in await store.rounds.list_watched()] == [("policy", conditions)]
    await store.policies.set_conditions("policy", Conditions(), entry())
    assert await store.rounds.list_watched() == []
    assert await code(store.policies.set_conditions("nobody", conditions, entry())) == "not-found"


async def test_a_recorded_running_policy_goes_with_its_device(store: SqlStore, device_id: int) -> None:
    """Unless another device came to use it."""
    await store.rounds.record_running("pi-b", policy("pi-b-running"), entry())
    assert (await store.devices.get_device("pi-b")).running_policy == "pi-b-running"
    assert await code(store.rounds.record_running("pi-b", policy("pi-b-running"), entry())) == "name-taken"
    await store.devices.add_device(device("pi-c"), "policy", key("kid-pi-c"), entry())
    await store.devices.set_running_policy("pi-c", "pi-b-running", entry())
    assert await code(store.devices.set_running_policy("pi-c", "nothing", entry())) == "not-found"
    await store.rounds.record_round(ended(device_id, 1))
    await store.devices.remove_device("pi-b", entry())
    assert (await store.policies.get_policy("pi-b-running")).name == "pi-b-running"
    assert len(await store.rounds.list_rounds("pi-b")) == 1
    await store.devices.set_running_policy("pi-c", None, entry())
