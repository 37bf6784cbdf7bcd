"""Keys that are recalled: a permit rests on rows that were read before only if they are still the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from tang_attest.ports.decisions import BoundKey, Decision, NewEvidence, PolicyPcrs, Reading, Snapshot
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.store import SqlStore, locks, recalled
from tang_attest.store.database import authentic, tables, versioned
from tang_attest.store.database.composed import Composed
from tang_attest.store.database.types import Instant
from tang_attest.store.recalled import RecalledKeys
from tang_attest.store.records import policies
from tests.store.conftest import Opener, Stall
from tests.store.records.test_rollouts import begin
from tests.store.samples import NOW, SELECTION, clock, decision, device, entry, key, policy, state, values
from tests.store.test_races import CHANGES, change, codes, permit, race, verdicts

#: Columns of the device's row that boots and rounds move.  A permit by a recalled key uses none of them.
MOVED = frozenset(authentic.MOVING["device"]) | {"grade"}


@pytest_asyncio.fixture
async def other(open_another: Opener) -> SqlStore:
    """Another process."""
    return await open_another()


@pytest_asyncio.fixture
async def device_id(store: SqlStore) -> int:
    """A device with two keys, and a policy that it may be moved to."""
    await store.policies.add_policy(policy(), entry())
    made = await store.devices.add_device(device(), "policy", key(), entry())
    await store.keys.add_key(key("kid-new", minutes=1), "pi-b", entry())
    await store.policies.add_policy(policy("other"), entry())
    return made.id


async def recall(store: SqlStore, kid: str = "kid-pi-b") -> BoundKey:
    """Return the facts that *store* keeps of a key after a challenge."""
    await store.decisions.find_pcrs(kid)
    found = store.decisions.recall_key(kid)
    assert found is not None
    return found


def rest(decided: Decision, bound: BoundKey) -> Decision:
    """The decision that was made by *bound*."""
    return replace(decided, reading=bound.reading)


async def test_a_challenge_and_its_answer_read_a_key_once(store: SqlStore, device_id: int) -> None:
    """The rows of the challenge serve the permit; a later challenge asks for what boots move, and is exact."""
    assert store.decisions.recall_key("kid-pi-b") is None
    bound = await recall(store)
    assert replace(bound, reading=None) == await store.decisions.find_key("kid-pi-b")
    await store.decisions.decide(rest(permit(device_id), bound))
    assert await verdicts(store) == [("permitted", "ok")]
    with statements() as seen:
        assert await store.decisions.find_question("kid-pi-b") == (PolicyPcrs(SELECTION, 15), clock(1))
    assert len(seen) == 1


@pytest.mark.parametrize("what", CHANGES)
async def test_a_change_elsewhere_is_noticed(
    store: SqlStore, other: SqlStore, device_id: int, what: str
) -> None:
    """The other process knows nothing of the change: its permit is not written."""
    bound = await recall(other)
    await change(store, what)
    ended = await codes(other.decisions.decide(rest(permit(device_id), bound)))
    assert ended == ["policy-changed"]
    assert await verdicts(store) == []
    # Looked up again, it is what it is now.
    found = await other.decisions.find_key("kid-pi-b")
    assert (found is None) == (what == "remove")
    assert other.decisions.recall_key("kid-pi-b") != bound


@pytest.mark.parametrize("what", CHANGES)
async def test_a_change_under_way_is_waited_for(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It is inside its transaction when the permit comes, which sees it after the wait."""
    bound = await recall(other)
    _, module, name = CHANGES[what]
    monkeypatch.setattr(module, name, stall.around(getattr(module, name)))
    ended = await race(stall, change(store, what), other.decisions.decide(rest(permit(device_id), bound)))
    assert ended == ["ok", "policy-changed"]
    assert await verdicts(store) == []


@pytest.mark.parametrize("what", CHANGES)
async def test_no_change_comes_between_the_comparison_and_the_permit(
    store: SqlStore, other: SqlStore, device_id: int, stall: Stall, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The change waits for the permit, and is confirmed after it."""
    bound = await recall(store)
    monkeypatch.setattr(locks, "take", stall.around(locks.take))
    decide = store.decisions.decide(rest(permit(device_id), bound))
    assert await race(stall, decide, change(other, what)) == ["ok", "ok"]
    rows = [row for _, row in reversed(await store.audit.list_audit(limit=10_000))][-2:]
    assert [row.event for row in rows] == ["unlock", "change"]


# --- every column -------------------------------------------------------------------------------------------


@contextmanager
def statements() -> Iterator[list[Any]]:
    """The statements that are executed meanwhile, as SQLAlchemy has them, also those that go to a driver."""
    seen: list[Any] = []
    rows = Composed.rows

    def note(_connection: object, statement: Any, *_: object) -> None:
        seen.append(statement)

    def composed(self: Composed, connection: sa.Connection, **values: Any) -> Sequence[Any]:
        seen.append(self._statement)
        return rows(self, connection, **values)

    sa.event.listen(sa.Engine, "before_execute", note)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Composed, "rows", composed)
            yield seen
    finally:
        sa.event.remove(sa.Engine, "before_execute", note)


async def columns_of_an_appraisal(store: SqlStore, kid: str) -> dict[str, set[str]]:
    """The columns of each table that the statements of finding a key name."""
    found: dict[str, set[str]] = defaultdict(set)
    with statements() as seen:
        assert await store.decisions.find_key(kid) is not None
    for statement in seen:
        for element in sa.sql.visitors.iterate(statement):
            if isinstance(element, sa.Column) and isinstance(element.table, sa.Table):
                found[element.table.name].add(element.name)
    return found


async def test_every_table_that_an_appraisal_reads_changes_the_version(store: SqlStore) -> None:
    """A table in a statement of the lookup has its trigger, for each of its columns and for rows that come and go.

    The list is of the statements themselves: a further table without a trigger fails here.
    """
    await begin(store, 1)
    read = await columns_of_an_appraisal(store, "kid-d0")
    read.pop("registry_version")
    assert {"seal", "suspended_at", "policy_id"} <= read.pop("device"), "compared by its row, see below"
    # Of devices under a rollout, whose keys are not recalled.
    read.pop("rollout_device")
    assert set(read) == set(versioned.WATCHED)
    assert all({column.name for column in tables.metadata.tables[name].c} >= read[name] for name in read)
    for name, columns in read.items():
        for column in sorted(columns):
            table = tables.metadata.tables[name]
            same = sa.type_coerce(table.c[column], sa.types.NullType())
            assert await moves(store, table.update().values({column: same})), f"{name}.{column}"
    for name in ("reference_state", "rollout", "sealed_key"):
        await store._database.write(lambda connection: connection.execute(tables.rollout_device.delete()))
        assert await moves(store, tables.metadata.tables[name].delete()), name


async def moves(store: SqlStore, statement: sa.Executable) -> bool:
    """Return True if *statement*, which may come from any program, changes the version."""
    before = await store._database.read(versioned.read)
    await store._database.write(lambda connection: connection.execute(statement))
    return await store._database.read(versioned.read) != before


async def test_rows_that_come_change_the_version(store: SqlStore, device_id: int) -> None:
    """A policy, a state, a key, and a rollout."""
    seen = {await store._database.read(versioned.read)}
    await store.policies.add_policy(policy("third"), entry())
    seen.add(await store._database.read(versioned.read))
    await store.policies.add_state("policy", state("next"), entry())
    seen.add(await store._database.read(versioned.read))
    await store.keys.add_key(key("kid-third"), "pi-b", entry())
    seen.add(await store._database.read(versioned.read))
    await change(store, "rollout")
    seen.add(await store._database.read(versioned.read))
    assert len(seen) == 5


async def test_every_column_of_the_device_is_compared(
    store: SqlStore, other: SqlStore, device_id: int
) -> None:
    """Another value in any of them makes another reading; only those that each boot moves do not."""
    read = (await columns_of_an_appraisal(store, "kid-pi-b"))["device"] - {"id", "seal"}
    assert read >= MOVED
    for name in sorted(read - MOVED):
        bound = await recall(other)
        await store._database.write(partial(put_another, device_id=device_id, name=name))
        ended = await codes(other.decisions.decide(rest(permit(device_id), bound)))
        assert ended == ["policy-changed"], name
    assert await verdicts(store) == []


def put_another(connection: sa.Connection, *, device_id: int, name: str) -> None:
    """Change column *name* of a device, with a seal if it is sealed, and change nothing else."""
    this = tables.device.c.id == device_id
    if name in authentic.OUTSIDE["device"]:
        connection.execute(tables.device.update().where(this).values({name: b"other"}))
        return
    (row,) = authentic.load(connection, tables.device, this)
    assert authentic.update(connection, tables.device, this, {name: another(connection, row, name)}) == 1


def another(connection: sa.Connection, row: authentic.Row, name: str) -> object:
    """A value that column *name* does not have."""
    kind = tables.device.c[name].type
    special = {"policy_id": policies.find_id(connection, "other"), "labels": ["new"]}
    special["learning"] = {"until": NOW.isoformat(), "stable": {}}
    plain: dict[type[Any], object] = {
        sa.Boolean: not row[name],
        sa.LargeBinary: b"other " + name.encode(),
        sa.Text: f"other {name}",
        sa.BigInteger: 7,
        Instant: NOW + timedelta(hours=1),
    }
    return special[name] if name in special else plain[type(kind)]


async def test_evidence_that_was_stored_meanwhile_is_compared(
    store: SqlStore, other: SqlStore, device_id: int
) -> None:
    """A permit with nothing new would leave older evidence in its place."""
    bound = await recall(other)
    news = NewEvidence(Snapshot(SELECTION, values("odd"), b"log"), permitted=False)
    refusal = entry("unlock", verdict="refused", code="pcr-mismatch", device="pi-b")
    await store.decisions.decide(decision(device_id, "n0", 0, audit=refusal, evidence=news))
    assert await codes(other.decisions.decide(rest(permit(device_id), bound))) == ["policy-changed"]


async def test_what_boots_move_interrupts_no_recall(store: SqlStore, other: SqlStore, device_id: int) -> None:
    """An unlock at another server moves the clock: the rows stay as good as they were."""
    bound = await recall(other)
    await store.decisions.decide(decision(device_id, "n0", 0, met=state()))
    assert await codes(other.decisions.decide(rest(permit(device_id), bound))) == ["ok"]
    assert (await recall(other)).reading == bound.reading


# --- the version --------------------------------------------------------------------------------------------


async def test_a_version_that_is_held_back_hides_no_suspension(
    store: SqlStore, other: SqlStore, device_id: int
) -> None:
    """An attacker who writes to the database puts the number back; the device's row has a seal."""
    bound = await recall(other)
    before = await store._database.read(versioned.read)
    await change(store, "suspend")
    await set_version(store, before)
    assert await codes(other.decisions.decide(rest(permit(device_id), bound))) == ["policy-changed"]


async def test_a_version_that_is_gone_equals_nothing(
    store: SqlStore, other: SqlStore, device_id: int
) -> None:
    """Without the number, everything is looked up each time."""
    bound = await recall(other)
    await set_version(store, None)
    assert await codes(other.decisions.decide(rest(permit(device_id), bound))) == ["policy-changed"]
    await other.decisions.find_key("kid-pi-b")
    found = other.decisions.recall_key("kid-pi-b")
    assert found == bound
    assert await codes(other.decisions.decide(rest(permit(device_id), bound))) == ["policy-changed"]
    assert await other.decisions.find_pcrs("kid-pi-b") == PolicyPcrs(SELECTION, 15)


async def set_version(store: SqlStore, version: int | None) -> None:
    table = versioned.registry_version
    statement = table.delete() if version is None else table.update().values(version=version)
    await store._database.write(lambda connection: connection.execute(statement))


async def test_a_change_that_is_undone_gives_no_number_twice(store: SqlStore, device_id: int) -> None:
    """As after a restore: the same number comes back with the same rows, and the next change has another one."""
    before = await store._database.read(versioned.read)
    after = set()
    for _ in range(5):
        await set_version(store, before)
        await store.policies.trust_predictions("policy", True, entry())
        after.add(await store._database.read(versioned.read))
    assert len(after) == 5


async def test_a_large_change_counts_once(store: SqlStore, device_id: int) -> None:
    """A thousand rows in one transaction: on PostgreSQL, whose old rows stay, one new row of the number."""

    def work(connection: sa.Connection) -> None:
        other = policies.find_id(connection, "other")
        rows = [
            {"policy_id": other, "label": f"l{number}", "pcr_values": values(), "origin": "recorded"}
            for number in range(1000)
        ]
        connection.execute(tables.reference_state.insert(), rows)

    before = await store._database.read(versioned.read)
    await store._database.write(work)
    assert await store._database.read(versioned.read) != before

    def place(connection: sa.Connection) -> str:
        if connection.dialect.name != "postgresql":
            return "(0,1)"
        return str(connection.exec_driver_sql("SELECT ctid::text FROM registry_version").scalar())

    assert (await store._database.read(place)).startswith("(0,")


async def test_changes_in_opposite_orders_do_not_wait_for_each_other(
    store: SqlStore, other: SqlStore, device_id: int
) -> None:
    """The number is the last lock of each: one holds a policy and waits for the other's, which only commits."""
    calls = []
    for number in range(30):
        first, second = (store, other) if number % 2 else (other, store)
        calls += [
            first.policies.add_state("policy", state(f"a{number}"), entry()),
            second.policies.trust_predictions("other", bool(number % 2), entry()),
            first.keys.rotate_keys(["kid-new"], NOW, entry()),
        ]
    assert set(await codes(*calls)) == {"ok"}
    assert await deadlocks(store) == 0


async def deadlocks(store: SqlStore) -> int:
    """The number of deadlocks of the database so far; SQLite has one writer, and none."""

    def work(connection: sa.Connection) -> int:
        if connection.dialect.name != "postgresql":
            return 0
        query = "SELECT pg_stat_force_next_flush(), deadlocks FROM pg_stat_database WHERE datname = current_database()"
        return int(connection.exec_driver_sql(query).one().deadlocks)

    return await store._database.read(work)


# --- what is kept, and for how long -------------------------------------------------------------------------


def kept(bound: BoundKey, number: int, under: ReferencePolicy) -> BoundKey:
    """A key like *bound* of another device, *under* a policy."""
    assert bound.device is not None
    made = replace(bound.device, id=number, name=f"d{number}", policy=under.name)
    return replace(bound, key=replace(bound.key, kid=f"k{number}"), device=made, policy=under, reading=None)


@pytest_asyncio.fixture
async def bound(store: SqlStore, device_id: int) -> BoundKey:
    """A key, as it was read."""
    found = await store.decisions.find_key("kid-pi-b")
    assert found is not None
    return found


READING = Reading(1, b"serial", 1, None)


def test_memory_is_bounded_by_keys_and_by_states(bound: BoundKey) -> None:
    """The oldest go, and devices of one policy share it."""
    memory = RecalledKeys()
    shared = policy("shared")
    for number in range(recalled.KEYS + 10):
        memory.keep(kept(bound, number, replace(shared)), READING)
    assert memory.recall("k9") is None
    newest = [memory.recall(f"k{number}") for number in (10, recalled.KEYS + 9)]
    assert newest[0] is not None
    assert newest[1] is not None
    assert newest[0].policy is newest[1].policy, "one policy, not one for each device"

    memory = RecalledKeys()
    states = tuple(state(f"s{number}") for number in range(recalled.STATES // 4))
    for number in range(6):
        memory.keep(kept(bound, number, policy(f"p{number}", *states)), READING)
    assert [memory.recall(f"k{number}") is not None for number in range(6)] == [False] * 2 + [True] * 4
    huge = tuple(state(f"s{number}") for number in range(recalled.STATES + 1))
    memory.keep(kept(bound, 7, policy("huge", *huge)), READING)
    assert memory.recall("k7") is None


def test_a_policy_of_another_version_is_not_mixed_in(bound: BoundKey) -> None:
    """Two devices of one policy, read before and after a change: the earlier is looked up again."""
    memory = RecalledKeys()
    memory.keep(kept(bound, 1, policy("shared")), READING)
    memory.keep(kept(bound, 2, policy("shared", state("new"))), replace(READING, registry=2))
    assert memory.recall("k1") is None
    assert memory.kept("k1") is None
    assert memory.recall("k2") is not None


def test_nothing_is_recalled_after_a_minute(bound: BoundKey) -> None:
    """However often it was used, and also if the clock goes back."""
    now = [100.0]
    memory = RecalledKeys(lambda: now[0])
    memory.keep(kept(bound, 1, policy()), READING)
    for time, expected in ((100.0, True), (159.9, True), (160.0, False), (1000.0, False), (99.0, False)):
        now[0] = time
        assert (memory.recall("k1") is not None) == expected
        assert (memory.kept("k1") is not None) == expected


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (Conditions(), True),
        (Conditions(watch=Watch(), attested_root=True, registered_ek=True), True),
        (Conditions(approval=True), False),
        (Conditions(stale_after_s=3600), False),
    ],
    ids=["none", "of the running system", "approval", "freshness"],
)
async def test_conditions_that_need_more_than_the_rows(
    store: SqlStore, device_id: int, conditions: Conditions, expected: bool
) -> None:
    """A permit that may wait for a person rests on what every boot moves: it is looked up."""
    await store.policies.set_conditions("policy", conditions, entry())
    assert await store.decisions.find_pcrs("kid-pi-b") == PolicyPcrs(SELECTION, 15)
    assert (store.decisions.recall_key("kid-pi-b") is not None) == expected


async def test_a_rollout_under_way_is_looked_up(store: SqlStore, device_id: int) -> None:
    """Its share and its stop count for the device that asks now."""
    await change(store, "rollout")
    assert await store.decisions.find_pcrs("kid-pi-b") == PolicyPcrs(SELECTION, 15)
    assert store.decisions.recall_key("kid-pi-b") is None


async def test_a_removed_device_is_forgotten_when_it_is_looked_up(
    store: SqlStore, other: SqlStore, device_id: int
) -> None:
    """And so is one whose row is not this server's own."""
    await recall(other)
    await change(store, "remove")
    assert await other.decisions.find_key("kid-pi-b") is None
    assert other.decisions.recall_key("kid-pi-b") is None


async def test_a_foreign_row_is_never_kept(store: SqlStore, other: SqlStore, device_id: int) -> None:
    """Its reading is refused each time, by a challenge as by a permit."""
    bound = await recall(other)
    foreign = "UPDATE device SET labels = '[\"all\"]'"
    await store._database.write(lambda connection: connection.exec_driver_sql(foreign))
    assert await codes(other.decisions.decide(rest(permit(device_id), bound))) == ["registry-tampered"]
    assert await codes(other.decisions.find_pcrs("kid-pi-b")) == ["registry-tampered"]
    assert other.decisions.recall_key("kid-pi-b") is None
