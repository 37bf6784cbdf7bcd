"""Reads for a person's page: complete, bounded, and never over a whole table, on each database."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest_asyncio

from tang_attest.ports.attention import ChangeMark, StateUsers
from tang_attest.ports.decisions import Snapshot
from tang_attest.ports.machines import Suspension
from tang_attest.ports.rounds import RoundRecord
from tang_attest.protocol.changes.rollout import RolloutPhase
from tang_attest.protocol.reference_state import Life
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.store import SqlStore
from tests.store.database.test_plans import scans, statements
from tests.store.records.test_rollouts import begin
from tests.store.samples import NOW, SELECTION, decision, device, entry, key, policy, state, values


@pytest_asyncio.fixture
async def fleet(store: SqlStore) -> SqlStore:
    """A machine of each kind, under the policies ``web`` and ``db``."""
    for name in ("web", "db"):
        await store.policies.add_policy(policy(name), entry())
    ids = {}
    for name, under in (("booted", "web"), ("refused", "web"), ("later", "web"), ("away", "db")):
        ids[name] = (await store.devices.add_device(device(name), under, key(f"kid-{name}"), entry())).id
    await store.decisions.decide(decision(ids["booted"], "n0", 1, met=state()))
    for tick, name in enumerate(("refused", "refused", "later"), 1):
        audit = entry(
            "unlock",
            at=NOW + timedelta(minutes=tick),
            verdict="refused",
            code="pcr-mismatch",
            device=name,
        )
        seen = Snapshot(SELECTION, values(f"odd {tick}"), b"log")
        await store.decisions.decide(decision(ids[name], f"n{tick}", tick, observation=seen, audit=audit))
    await store.devices.suspend_device("booted", Suspension(NOW, "operator:test", "lost"), entry())
    await store.rounds.record_round(
        RoundRecord(
            device_id=ids["away"],
            at=NOW,
            outcome=RoundOutcome.UNREACHABLE,
            code="device-unreachable",
            details={},
        )
    )
    announced = replace(state("next", "predicted"), life=Life.PROPOSED, created_at=NOW)
    await store.policies.add_state("db", announced, entry())
    return store


async def test_each_kind_is_found(fleet: SqlStore) -> None:
    """The newest refusal comes first, with its newest observation and its policy; a machine that opens is not there."""
    found = await fleet.attention.attention(10)
    assert [(machine.name, boot and boot.values) for machine, boot in found.refused] == [
        ("later", values("odd 3")),
        ("refused", values("odd 2")),
    ]
    assert set(found.policies) == {"web"}
    assert [machine.name for machine in found.suspended] == ["booted"]
    assert [machine.name for machine in found.unwell] == ["away"]
    assert [(name, announced.label) for name, announced in found.announced] == [("db", "next")]
    assert found.stopped == ()
    assert found.counts == {"refused": 2, "suspended": 1, "unwell": 1, "announced": 1, "stopped": 0}


async def test_a_list_has_a_limit_and_its_count_has_not(fleet: SqlStore) -> None:
    """One is shown, and the page says that there are two."""
    found = await fleet.attention.attention(1)
    assert [machine.name for machine, _ in found.refused] == ["later"]
    assert found.counts["refused"] == 2


async def test_a_stopped_rollout_waits(store: SqlStore) -> None:
    """One that runs does not."""
    rollout, _ = await begin(store, 2)
    assert (await store.attention.attention(10)).stopped == ()
    await store.policies.move_rollout(rollout, RolloutPhase.STOPPED, "looked odd", entry())
    (stopped,) = (await store.attention.attention(10)).stopped
    assert (stopped.name, stopped.why) == (rollout.name, "looked odd")
    assert await store.attention.rollout_counts(rollout.id) == {"passed": 0, "refused": 0}


async def test_devices_come_in_pages(fleet: SqlStore) -> None:
    """Each once, by name; a search takes the beginning of a name, whose signs mean themselves."""
    pages = []
    after = ""
    while page := await fleet.attention.page_devices(after, 3):
        pages.append([machine.name for machine in page])
        after = page[-1].name
    assert pages == [["away", "booted", "later"], ["refused"]]
    assert [machine.name for machine in await fleet.attention.page_devices("", 9, "re")] == ["refused"]
    assert await fleet.attention.page_devices("refused", 9, "re") == []
    for odd in ("%", "_e", "away'"):
        assert await fleet.attention.page_devices("", 9, odd) == []
    assert [found.name for found in await fleet.attention.page_policies("db", 9)] == ["web"]


async def test_users_of_a_state_are_counted(fleet: SqlStore) -> None:
    """Machines that were never permitted are those of no state."""
    found = await fleet.attention.state_users("web", ["recorded", "other"], 1)
    assert found["recorded"] == StateUsers(1, ("booted",))
    assert found["other"] == StateUsers(0, ())
    assert found[None] == StateUsers(2, ("later",))


async def test_a_change_is_noticed_with_its_machine(fleet: SqlStore) -> None:
    """The mark stays while nothing happens."""
    mark = await fleet.attention.change_mark()
    assert mark == await fleet.attention.change_mark() != ChangeMark(0, 0, 0)
    assert await fleet.attention.changed_devices(mark, 10) == frozenset()
    await fleet.devices.resume_device("booted", entry("device resume", device="booted"))
    assert await fleet.attention.change_mark() != mark
    assert await fleet.attention.changed_devices(mark, 10) == {"booted"}


async def test_no_read_is_over_a_whole_table(fleet: SqlStore, url: str) -> None:
    """SQLite's plan of every statement is a look-up or a walk along an index that holds what is shown."""
    if not url.startswith("sqlite"):
        return
    mark = await fleet.attention.change_mark()
    with statements() as seen:
        await fleet.attention.attention(10)
        await fleet.attention.page_devices("a", 10)
        await fleet.attention.page_devices("", 10, "re")
        await fleet.attention.page_policies("", 10)
        await fleet.attention.state_users("web", ["recorded"], 3)
        await fleet.attention.rollout_counts(1)
        await fleet.attention.changed_devices(mark, 10)
        await fleet.attention.change_mark()
    file = Path(url.removeprefix("sqlite:///"))
    # A limited query inside of another, and indexes of just the rows that are shown.
    allowed = ("anon_", "ix_device_refused", "_suspended", "_unwell", "_proposed", "ix_rollout_stopped")
    found = {
        (sql, step)
        for sql, parameters in seen
        for step in scans(file, sql, parameters)
        if not any(index in step for index in allowed)
    }
    assert not found
