"""Requirements of PostgreSQL alone: waits that end, races of two servers, who may log in, and a server that flushes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.util import await_only

from tang_attest.errors import Malformed, TangAttestError, Unavailable
from tang_attest.protocol.reference_state import Life
from tang_attest.store import SqlStore, look, open_store, upgrade
from tang_attest.store.database import authentic, composed, postgresql, schema, tables
from tests.fakes import ROW_KEY
from tests.postgres import Postgres, Replica, away
from tests.store.conftest import Opener
from tests.store.samples import clock, decision, device, entry, key, policy, state

T = TypeVar("T")

#: Seconds for what comes at once on an idle machine.
_PATIENCE_S: Final = 120.0


@pytest.fixture
def url(postgres_url: str) -> str:
    """PostgreSQL, and no other database."""
    return postgres_url


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can wait for."""
    monkeypatch.setattr(postgresql, "CONNECT_S", 2.0)
    monkeypatch.setattr(postgresql, "TRANSACTION_S", 2.0)


async def refused(call) -> TangAttestError:
    with pytest.raises(TangAttestError) as caught:
        await call
    return caught.value


async def soon(call: Callable[[], Awaitable[T]]) -> T:
    """The result of *call*, once the database is available: a server takes a moment to notice who came or left."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return await call()
        except Unavailable:
            assert time.monotonic() < deadline, "the database stays away"
            await asyncio.sleep(0.05)


async def devices(store: SqlStore, count: int) -> list[int]:
    await store.policies.add_policy(policy(), entry())
    return [
        (await store.devices.add_device(device(f"d{number}"), "policy", key(f"k{number}"), entry())).id
        for number in range(count)
    ]


# --- away, frozen, full -----------------------------------------------------------------------------------------------


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    """A server that is not there is unavailable at once."""
    with away() as url, caplog.at_level(logging.ERROR):
        assert (await refused(open_store(url, ROW_KEY))).code == "unavailable"
    assert "Connect call failed" in caplog.text


async def test_a_frozen_server(
    impatient: None, store: SqlStore, postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """Every caller is told after one timeout, not one after the other; then it goes on with new connections."""
    ids = await devices(store, 1)
    postgres.freeze()
    try:
        begun = time.monotonic()
        calls = [store.decisions.decide(decision(ids[0], f"n{tick}", tick)) for tick in range(1, 200)]
        calls += [store.audit.append(entry("note")) for _ in range(100)]
        results = await asyncio.gather(
            *calls, *(store.decisions.find_key("k0") for _ in range(200)), return_exceptions=True
        )
        # Two timeouts, and what the machine's other work adds.
        assert time.monotonic() - begun < 60
        assert all(isinstance(result, Unavailable) for result in results)
        # Nobody has a connection by now; a new one is not made either.
        assert (await refused(store.decisions.find_key("k0"))).code == "unavailable"
    finally:
        postgres.thaw()
    await soon(lambda: store.decisions.find_key("k0"))
    store._database._transaction_s = _PATIENCE_S  # type: ignore[attr-defined]
    await store.decisions.decide(decision(ids[0], "after", 1000))
    assert await store.decisions.find_key("k0") is not None
    assert [row.request_id for _, row in await store.audit.list_audit() if row.event == "unlock"] == ["after"]


async def test_a_restarted_server(store: SqlStore, postgres: Postgres) -> None:
    """The pool's connections are dead; callers do not notice."""
    (device_id,) = await devices(store, 1)
    await asyncio.gather(store.decisions.find_key("k0"), store.keys.list_keys(), store.devices.list_devices())
    postgres.stop()
    assert (await refused(store.decisions.find_key("k0"))).code == "unavailable"
    postgres.start()
    assert await store.decisions.find_key("k0") is not None
    postgres.stop()
    postgres.start()
    await store.decisions.decide(decision(device_id, "n", 1))
    assert await store.decisions.find_key("k0") is not None


async def test_a_server_that_became_a_replica(store: SqlStore, url: str, postgres: Postgres) -> None:
    """A connection that takes no write is left for another one, which finds the new primary."""
    (device_id,) = await devices(store, 1)
    postgres.stop()
    with Replica(postgres) as replica:
        places = f"host={postgres.directory},{replica.directory}&port={postgres.port},{replica.port}"
        other = await open_store(f"{url.partition('?')[0]}?{places}", ROW_KEY)
        assert await other.decisions.find_key("k0") is not None
        assert (await refused(other.decisions.decide(decision(device_id, "n", 1)))).code == "unavailable"
        postgres.start()
        await other.decisions.decide(decision(device_id, "n", 1))
        await other.close()
    assert [row.request_id for _, row in await store.audit.list_audit() if row.event == "unlock"] == ["n"]


async def test_a_stop_does_not_wait_for_a_frozen_server(
    url: str, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are let go after a moment."""
    monkeypatch.setattr(postgresql, "GOODBYE_S", 0.1)
    store = await open_store(url, ROW_KEY)
    await asyncio.gather(store.decisions.find_key("k0"), store.keys.list_keys(), store.devices.list_devices())
    postgres.freeze()
    try:
        await asyncio.wait_for(store.close(), _PATIENCE_S / 2)
    finally:
        postgres.thaw()


async def test_every_connection_is_taken(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The wait ends, and the log says what was waited for."""
    go, taken, every = asyncio.Event(), 0, asyncio.Event()

    def hold(_: sa.Connection) -> None:
        nonlocal taken
        taken += 1
        if taken == postgresql.CONNECTIONS:
            every.set()
        await_only(go.wait())

    holding = [asyncio.create_task(store._database.look(hold)) for _ in range(postgresql.CONNECTIONS)]
    await every.wait()
    monkeypatch.setattr(postgresql, "CONNECT_S", 0.1)
    with caplog.at_level(logging.ERROR):
        assert (await refused(store.decisions.find_key("k0"))).code == "unavailable"
    go.set()
    await asyncio.gather(*holding)
    assert "no connection was free for 0.1 seconds" in caplog.text


async def test_no_connection_is_left(
    impatient: None, password_url: tuple[str, Path], postgres: Postgres
) -> None:
    """The server's limit is an unavailable database, and over when somebody leaves."""
    postgres.sql("ALTER ROLE guest CONNECTION LIMIT 2")
    url, _ = password_url
    first, second = await open_store(url, ROW_KEY), await open_store(url, ROW_KEY)
    assert (await refused(open_store(url, ROW_KEY))).code == "unavailable"
    await first.close()
    third = await soon(lambda: open_store(url, ROW_KEY))
    assert await third.decisions.find_key("none") is None
    await second.close()
    await third.close()


async def test_a_transaction_that_takes_too_long(
    impatient: None, store: SqlStore, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else holds the row: the wait ends, nothing is written, and nothing holds a lock afterwards."""
    (device_id,) = await devices(store, 1)
    monkeypatch.setattr(postgresql, "TRANSACTION_S", 60.0)  # the holder began first, and must not end first
    holder = await open_store(url, ROW_KEY)
    entered, go = asyncio.Event(), asyncio.Event()

    def hold(connection: sa.Connection) -> None:
        connection.exec_driver_sql("SELECT id FROM device FOR UPDATE")
        entered.set()
        await_only(go.wait())

    holding = asyncio.create_task(holder._database.write(hold))
    await entered.wait()
    begun = time.monotonic()
    assert (await refused(store.decisions.decide(decision(device_id, "n", 1)))).code == "unavailable"
    assert time.monotonic() - begun < 30
    go.set()
    await holding
    await store.decisions.decide(decision(device_id, "n", 2))
    await holder.close()


# --- two replicas -------------------------------------------------------------------------------------------------------


async def test_batches_in_opposite_order(store: SqlStore, open_another: Opener) -> None:
    """Two replicas decide about the same devices and staged states, each in another order: nobody is ended for it."""
    other = await open_another()
    ids = await devices(store, 16)
    staged = [replace(state(f"s{number}"), life=Life.STAGED) for number in range(16)]
    for found in staged:
        await store.policies.add_state("policy", found, entry())
    before = await _deadlocks(store)
    for turn in range(1, 9):
        forth = [
            store.decisions.decide(
                decision(i, f"a{turn}-{i}", 0, clock=clock(0, 2 * turn), met=staged[i % 16])
            )
            for i in ids
        ]
        back = [
            other.decisions.decide(
                decision(i, f"b{turn}-{i}", 0, clock=clock(0, 2 * turn + 1), met=staged[-i % 16])
            )
            for i in reversed(ids)
        ]
        ended = await asyncio.gather(*forth, *back, return_exceptions=True)
        codes = {result.code for result in ended if isinstance(result, TangAttestError)}
        assert codes <= {"clock-backwards"}
        assert all(result is None or isinstance(result, TangAttestError) for result in ended)
    await asyncio.sleep(1.2)  # the server counts with a delay
    assert await _deadlocks(store) == before


async def _deadlocks(store: SqlStore) -> int:
    query = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return int(await store._database.read(lambda connection: connection.exec_driver_sql(query).scalar_one()))


async def test_a_deadlock_is_tried_again(store: SqlStore, open_another: Opener) -> None:
    """If an order cannot be kept, PostgreSQL ends one of the two; its work is done a moment later."""
    other = await open_another()
    first, second = await devices(store, 2)
    meet = asyncio.Barrier(2)
    tries: list[int] = []
    row = tables.device.c

    def cross(one: int, two: int):
        def work(connection: sa.Connection) -> None:
            tries.append(one)
            authentic.update(connection, tables.device, row.id == one, {"last_code": str(one)})
            if len(tries) <= 2:
                await_only(meet.wait())
            authentic.update(connection, tables.device, row.id == two, {"last_code": str(one)})

        return work

    await asyncio.gather(
        store._database.write(cross(first, second)), other._database.write(cross(second, first))
    )
    assert len(tries) == 3
    assert len({found.last_code for found in await store.devices.list_devices()}) == 1


async def test_a_policy_that_goes_while_a_device_comes(store: SqlStore, open_another: Opener) -> None:
    """The foreign key notices; the second try says what is the matter."""
    other = await open_another()
    await store.policies.add_policy(policy("p"), entry())
    entered, removed = asyncio.Event(), asyncio.Event()

    def look_then_wait(connection: sa.Connection) -> None:
        found = connection.exec_driver_sql("SELECT id FROM policy WHERE name = 'p'").scalar()
        if found is None:
            raise Malformed("not-found", "There is no policy 'p'.")
        entered.set()
        await_only(removed.wait())
        row = {"policy_id": found, "label": "x", "pcr_values": {}, "origin": "imported"}
        connection.execute(tables.reference_state.insert(), row)

    def remove(connection: sa.Connection) -> None:
        connection.exec_driver_sql("DELETE FROM reference_state")
        connection.exec_driver_sql("DELETE FROM policy")

    looking = asyncio.create_task(store._database.write(look_then_wait))
    await entered.wait()
    await other._database.write(remove)
    removed.set()
    assert (await refused(looking)).code == "not-found"


async def test_two_upgrades_at_once(empty_postgres_url: str) -> None:
    """Replicas that start together: each finds the tables, and nobody fails."""
    ended = await asyncio.gather(*(upgrade(empty_postgres_url, ROW_KEY) for _ in range(4)))
    assert sorted(before or "" for before in (each.before for each in ended)) == ["", *[schema.REVISION] * 3]
    assert (await look(empty_postgres_url)).schema == schema.REVISION


async def test_reads_are_one_moment(store: SqlStore, open_another: Opener) -> None:
    """The queries of one answer agree, whatever is committed between them."""
    other = await open_another()
    await devices(store, 1)
    counts = []
    entered, go = asyncio.Event(), asyncio.Event()

    def twice(connection: sa.Connection) -> None:
        for _ in range(2):
            counts.append(connection.exec_driver_sql("SELECT count(*) FROM device").scalar_one())
            entered.set()
            await_only(go.wait())

    reading = asyncio.create_task(store._database.read(twice))
    await entered.wait()
    await other.devices.remove_device("d0", entry())
    go.set()
    await reading
    assert counts == [1, 1]


async def test_a_read_cannot_write(store: SqlStore) -> None:
    """A reading transaction is declared as such to the server."""
    await devices(store, 1)
    with pytest.raises(Unavailable):
        await store._database.read(lambda connection: connection.exec_driver_sql("DELETE FROM device"))
    assert len(await store.devices.list_devices()) == 1


async def test_a_failed_statement_that_nobody_noticed_is_not_committed(store: SqlStore) -> None:
    """PostgreSQL answers COMMIT with ROLLBACK then, and nothing is written."""
    await devices(store, 1)

    def work(connection: sa.Connection) -> None:
        connection.execute(tables.device.update().values(last_code="written"))
        with contextlib.suppress(sa.exc.DBAPIError):
            connection.exec_driver_sql("SELECT 1 / 0")

    assert (await refused(store._database.write(work))).code == "unavailable"
    assert [found.last_code for found in await store.devices.list_devices()] == [None]


async def test_a_commit_without_an_answer_is_not_repeated(store: SqlStore, postgres: Postgres) -> None:
    """It may have been committed: the caller hears that it failed, and the work is not done a second time."""
    await devices(store, 1)
    tries = 0

    def work(connection: sa.Connection) -> None:
        nonlocal tries
        tries += 1
        connection.execute(tables.device.update().values(last_code="written"))
        own = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        postgres.sql(f"SELECT pg_terminate_backend({int(own)})")

    assert (await refused(store._database.write(work))).code == "unavailable"
    assert tries == 1
    assert [found.last_code for found in await store.devices.list_devices()] == [None]


async def test_a_look_leaves_no_transaction(store: SqlStore) -> None:
    """SQLAlchemy begins one with its first statement; the next caller gets a connection without it."""
    await store._database.look(lambda connection: connection.exec_driver_sql("SELECT 1").scalar_one())
    await devices(store, 1)
    assert len(await store.devices.list_devices()) == 1


# --- the server and its users -------------------------------------------------------------------------------------------


@pytest.fixture
def password_url(postgres: Postgres, url: str, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A role that needs a password, over TCP, and its password file."""
    name = re.findall(r"/(\w+)\?", url)[0]
    postgres.sql("CREATE ROLE guest LOGIN PASSWORD 'hunter2 \U0001f511'")
    postgres.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO guest", name)
    passfile = tmp_path / "pgpass"
    passfile.write_text("127.0.0.1:*:*:guest:hunter2 \U0001f511\n")
    passfile.chmod(0o600)
    yield postgres.loopback_url(name, "guest", passfile=str(passfile)), passfile
    postgres.sql("REVOKE ALL ON ALL TABLES IN SCHEMA public FROM guest", name)
    postgres.sql("DROP ROLE guest")


async def test_a_password_file(password_url: tuple[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """Lets in; a wrong password does not, and no password is in the log."""
    url, passfile = password_url
    store = await open_store(url, ROW_KEY)
    assert await store.devices.list_devices() == []
    await store.close()
    passfile.write_text("127.0.0.1:*:*:guest:hunter3\n")
    with caplog.at_level(logging.DEBUG):
        assert (await refused(open_store(url, ROW_KEY))).code == "unavailable"
    assert "password authentication failed" in caplog.text
    assert "hunter" not in caplog.text


async def test_a_password_in_the_wrong_place(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the URL or in the environment, where others see it, it is refused."""
    for wrong in (
        "postgresql://tang:hunter2@host/db",
        "postgresql://tang@host/db?password=hunter2",
        "postgresql://tang@host/db?sslkey=/etc/db.key&sslpassword=hunter2",
    ):
        error = await refused(open_store(wrong, ROW_KEY))
        assert error.code == "setting-invalid"
        assert "hunter2" not in str(error.reasons)
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    error = await refused(open_store(url, ROW_KEY))
    assert error.code == "setting-invalid"
    assert "hunter2" not in str(error.reasons)


async def test_a_server_that_does_not_flush(postgres: Postgres, url: str) -> None:
    """fsync=off is refused: it may lose a nonce's use in a power cut."""
    postgres.sql("ALTER SYSTEM SET fsync = off")
    try:
        postgres.sql("SELECT pg_reload_conf()")
        await _until(postgres, "off")
        error = await refused(open_store(url, ROW_KEY))
        assert error.code == "setting-invalid"
        assert "fsync" in error.sentence
        assert (await look(url)).flushes is False
    finally:
        postgres.sql("ALTER SYSTEM SET fsync = on")
        postgres.sql("SELECT pg_reload_conf()")
        await _until(postgres, "on")
    assert (await look(url)).flushes is True


async def _until(postgres: Postgres, value: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while postgres.sql("SHOW fsync") != value:
        assert time.monotonic() < deadline, "the server did not reload"
        await asyncio.sleep(0.1)


async def test_every_connection_flushes(postgres: Postgres, url: str) -> None:
    """With any default of the cluster, a commit here returns when it is on the disk."""
    name = re.findall(r"/(\w+)\?", url)[0]
    postgres.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    store = await open_store(url, ROW_KEY)

    def shown(connection: sa.Connection) -> dict[str, str]:
        names = ("synchronous_commit", "statement_timeout", "idle_in_transaction_session_timeout")
        query = "SELECT setting FROM pg_settings WHERE name = $1"
        return {name: composed.ask(connection, query, [name])[0][0] for name in names}

    limit_ms = int(postgresql.TRANSACTION_S * 1000)
    assert await store._database.write(shown) == {
        "synchronous_commit": "on",
        "statement_timeout": str(limit_ms),
        "idle_in_transaction_session_timeout": str(2 * limit_ms),
    }
    # As of a pooler that resets connections.
    reset = "SET synchronous_commit TO off"
    await store._database.look(lambda connection: composed.ask(connection, reset, []))
    assert (await store._database.write(shown))["synchronous_commit"] == "on"
    await store.close()


#: Parameters of a connection's start that PgBouncer takes; with any other it ends the connection, or
#: swallows the parameter where it was told to.
_TAKEN_BY_POOLERS: Final = frozenset(
    {b"user", b"database", b"application_name", b"client_encoding", b"datestyle", b"timezone"}
)


async def test_a_pooler_takes_the_start_of_a_connection() -> None:
    """Nothing that decides is left to parameters that PgBouncer ignores."""
    first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(4), "big")
        message = await reader.readexactly(size - 4)
        if not first.done():
            first.set_result(message)
        writer.close()

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"postgresql://guest@127.0.0.1:{port}/registry?sslmode=disable"
        assert (await refused(open_store(url, ROW_KEY))).code == "unavailable"
    # Version 3.0, then names and values, each ended by NUL (PostgreSQL, 55.7: StartupMessage).
    version, names = (await first)[:4], (await first)[4:].split(b"\0")[::2]
    assert version == b"\0\3\0\0"
    assert {name for name in names if name} <= _TAKEN_BY_POOLERS
    assert b"user" in names


async def test_the_log_has_no_values(store: SqlStore, caplog: pytest.LogCaptureFixture) -> None:
    """A driver that cannot encode a value repeats it; the log does not."""
    with caplog.at_level(logging.DEBUG):
        assert (
            await refused(store.audit.append(entry("note", address="secret \ud800")))
        ).code == "unavailable"
        assert (await refused(store.audit.append(entry("note", address="secret \x00")))).code == "unavailable"
    assert "secret" not in caplog.text
    assert "the database failed: DataError" in caplog.text
