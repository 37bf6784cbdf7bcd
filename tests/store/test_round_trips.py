"""Round trips to PostgreSQL: a round trip costs more than the rows of an unlock, so their number is part of its cost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, Self

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.util import await_only

from tang_attest.errors import Conflict
from tang_attest.ports.decisions import Basis, Decision
from tang_attest.store import SqlStore, open_store
from tang_attest.store.database import authentic, composed, postgresql, tables
from tang_attest.store.records import policies
from tests.fakes import ROW_KEY
from tests.postgres import ROLE
from tests.store.samples import clock, decision, device, entry, key, policy, state

#: The challenge: its one query is a transaction by itself.
ASKING = 1
#: The decision: begin, lock, look, write, commit.
DECIDING = 5
#: PostgreSQL's driver prepares a statement when it comes first, and PostgreSQL plans it the first five times.
WARM = 8
_READY = ord("Z")


class Counted:
    """A PostgreSQL server behind a port of this process, which counts the answers that end a round trip."""

    def __init__(self, url: str) -> None:
        query = sa.make_url(url).query
        self._socket = f"{query['host']}/.s.PGSQL.{query['port']}"
        self._database = sa.make_url(url).database
        self.trips = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """The URL of the database through here."""
        port = self._server.sockets[0].getsockname()[1]
        return f"postgresql://{ROLE}@127.0.0.1:{port}/{self._database}?sslmode=disable"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_unix_connection(self._socket)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await asyncio.gather(self._ask(reader, questions), self._answer(answers, writer))
        for each in (writer, questions):
            each.close()

    async def _ask(self, reader: asyncio.StreamReader, questions: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            questions.write(chunk)
            await questions.drain()
        questions.write_eof()

    async def _answer(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass messages on: one byte of type, four of length, which counts itself."""
        while True:
            head = await answers.readexactly(5)
            body = await answers.readexactly(int.from_bytes(head[1:], "big") - 4)
            self.trips += head[0] == _READY
            writer.write(head + body)
            await writer.drain()


@pytest_asyncio.fixture
async def counted(postgres_url: str) -> AsyncIterator[Counted]:
    """The database of the test."""
    async with Counted(postgres_url) as counted:
        yield counted


@pytest_asyncio.fixture
async def store(counted: Counted) -> AsyncIterator[SqlStore]:
    """A registry with four devices of one policy."""
    store = await open_store(counted.url, ROW_KEY)
    await store.policies.add_policy(policy(), entry())
    for number in range(4):
        await store.devices.add_device(device(f"d{number}"), "policy", key(f"k{number}"), entry())
    yield store
    await store.close()


async def permit(store: SqlStore, number: int, tick: int, *, recalled: bool = True) -> Decision:
    """A permit for one of the devices, by rows that are recalled or read."""
    kid = f"k{number}"
    bound = store.decisions.recall_key(kid) if recalled else await store.decisions.find_key(kid)
    assert bound is not None
    assert bound.device is not None
    audit = entry("unlock", verdict="permitted", device=f"d{number}", kid=kid)
    basis = Basis(None, None, bound.device.labels, "policy")
    known = {"clock": clock(tick), "audit": audit, "met": state(), "basis": basis}
    return decision(bound.device.id, f"n{number} {tick}", tick, reading=bound.reading, **known)


async def warm(store: SqlStore, *, recalled: bool = True) -> None:
    """Unlock until every statement is prepared."""
    for tick in range(1, WARM):
        for number in range(4):
            await store.decisions.find_question(f"k{number}")
            await store.decisions.decide(await permit(store, number, tick, recalled=recalled))


async def test_round_trips_of_an_unlock(store: SqlStore, counted: Counted) -> None:
    """One for the challenge, five for the decision, as many for a batch: a further one shows here."""
    await warm(store)
    before = counted.trips
    await store.decisions.find_question("k0")
    assert counted.trips - before == ASKING
    decided, before = await permit(store, 0, WARM), counted.trips
    await store.decisions.decide(decided)
    assert counted.trips - before == DECIDING
    batch = [await permit(store, number, WARM + 1) for number in range(4)]
    before = counted.trips
    await asyncio.gather(*(store.decisions.decide(each) for each in batch))
    assert counted.trips - before == DECIDING


async def test_round_trips_of_a_decision_by_rows_that_were_read(store: SqlStore, counted: Counted) -> None:
    """The policy, its states, its rollout and the key are looked at again, by the same five."""
    await warm(store, recalled=False)
    decided, before = await permit(store, 0, WARM, recalled=False), counted.trips
    await store.decisions.decide(decided)
    assert counted.trips - before == DECIDING


async def test_round_trips_of_a_refusal(store: SqlStore, counted: Counted) -> None:
    """Nothing of the policy is locked; a nonce that comes again only has its entry in the record."""
    await warm(store)
    permitted = await permit(store, 0, WARM)
    for tick in range(WARM):
        refused = replace(
            permitted,
            nonce_digest=bytes([tick]) * 32,
            clock=clock(WARM + tick),
            met=None,
            audit=replace(permitted.audit, verdict="refused", code="pcr-mismatch"),
        )
        before = counted.trips
        await store.decisions.decide(refused)
    assert counted.trips - before == DECIDING


@pytest.mark.parametrize("recalled", [True, False], ids=["recalled", "read"])
async def test_postgresql_plans_an_unlock_once(store: SqlStore, *, recalled: bool) -> None:
    """A plan for each execution costs more than the execution; a list of another length is no reason for one."""

    def planned(connection: sa.Connection) -> dict[str, int]:
        query = "SELECT statement, custom_plans FROM pg_prepared_statements WHERE statement ~ 'device|nonce'"
        return {row.statement: row.custom_plans for row in connection.exec_driver_sql(query)}

    def keep_statistics(connection: sa.Connection) -> None:
        for name in ("device", "nonce", "policy", "audit"):
            connection.exec_driver_sql(f"ALTER TABLE {name} SET (autovacuum_enabled = false)")

    await store._database.write(keep_statistics)
    await warm(store, recalled=recalled)
    before = await store._database.write(planned)
    assert len(before) > 3
    for count in (1, 2, 4):
        batch = []
        for number in range(count):
            await store.decisions.find_question(f"k{number}")
            batch.append(await permit(store, number, 100 + count, recalled=recalled))
        await asyncio.gather(*(store.decisions.decide(each) for each in batch))
    assert await store._database.write(planned) == before


async def test_a_policy_that_is_newer_than_the_wait_for_a_device_is_locked(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement that locks both does not see it: its device was moved to it during the wait."""
    monkeypatch.setattr(postgresql, "TRANSACTION_S", 60.0)  # the time of the whole test, on a busy machine
    store, other = [await open_store(postgres_url, ROW_KEY) for _ in range(2)]
    await store.policies.add_policy(policy(), entry())
    this = (await store.devices.add_device(device("d0"), "policy", key("k0"), entry())).id
    held, go = asyncio.Event(), asyncio.Event()

    def move(connection: sa.Connection) -> None:
        wanted = tables.device.c.id == this
        connection.execute(sa.select(tables.device.c.id).where(wanted).with_for_update())
        held.set()
        await_only(go.wait())
        changes = {"policy_id": policies.find_id(connection, "newer")}
        authentic.update(connection, tables.device, wanted, changes)

    def waiting(connection: sa.Connection) -> int:
        count = "SELECT count(*) FROM pg_stat_activity "
        mine = "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return int(connection.exec_driver_sql(count + mine).scalar_one())

    locking: list[str] = []
    ask = composed.ask

    def note(connection: sa.Connection, sql: str, bound: Sequence[Any]) -> Sequence[Any]:
        locking.extend([sql] if "FOR SHARE" in sql else [])
        return ask(connection, sql, bound)

    moving = asyncio.create_task(other._database.write(move))
    await held.wait()
    decided = await permit(store, 0, 1, recalled=False)
    monkeypatch.setattr(composed, "ask", note)
    deciding = asyncio.create_task(store.decisions.decide(decided))
    async with asyncio.timeout(60):
        while not await store._database.read(waiting):  # noqa: ASYNC110 - PostgreSQL has no event of it
            await asyncio.sleep(0.01)
    await store.policies.add_policy(policy("newer"), entry())
    go.set()
    await moving
    with pytest.raises(Conflict, match="was changed while"):
        await deciding
    assert len(locking) == 2
    for each in (store, other):
        await each.close()
