"""Requirements of SQLite alone: durability, the file, and its remains."""

from __future__ import annotations

import asyncio
import logging
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect

from tang_attest.errors import Malformed, Unavailable
from tang_attest.ports.decisions import NewEvidence, Snapshot
from tang_attest.store import SqlStore, decisions, open_store
from tang_attest.store.database import engine, schema
from tang_attest.store.records import nonces
from tests.fakes import ROW_KEY
from tests.store.conftest import Stall
from tests.store.samples import SELECTION, decision, device, entry, key, policy, values

ROOT = Path(__file__).parents[3]

CHILD = """
import asyncio, sys
from tang_attest.store import open_store
from tests.fakes import ROW_KEY
from tests.store.samples import clock, decision

async def caller(store, number):
    for tick in range(1, 10**6):
        name = f"{number}-{tick}"
        await store.decisions.decide(decision(number, name, tick))
        print(name, flush=True)

async def main(url):
    store = await open_store(url, ROW_KEY)
    await asyncio.gather(*(caller(store, number) for number in range(1, 9)))

asyncio.run(main(sys.argv[1]))
"""


async def make(tmp_path: Path, devices: int = 1) -> tuple[SqlStore, str]:
    url = f"sqlite:///{tmp_path}/registry.db"
    store = await open_store(url, ROW_KEY, create=True)
    await store.policies.add_policy(policy(), entry())
    for number in range(1, devices + 1):
        await store.devices.add_device(device(f"d{number}"), "policy", key(f"k{number}"), entry())
    return store, url


def everything(tmp_path: Path) -> bytes:
    """Every byte of the database, its log and its index."""
    return b"".join(path.read_bytes() for path in sorted(tmp_path.glob("registry.db*")))


def modes(tmp_path: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}


# --- durable ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, number: int) -> None:
    """A process is killed while it writes, at five different times; every decision it told of is there."""
    store, url = await make(tmp_path, devices=8)
    await store.close()
    acknowledged = await asyncio.to_thread(_kill_while_writing, url, number)
    assert acknowledged
    store = await open_store(url, ROW_KEY)
    assert acknowledged <= {row.request_id for _, row in await store.audit.list_audit(limit=1_000_000)}
    await store.close()


def _kill_while_writing(url: str, number: int) -> set[str]:
    command = [sys.executable, "-c", CHILD, url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(0.05 + 0.03 * number)
        child.send_signal(signal.SIGKILL)
        lines = [first, *child.stdout]
    # The last line may be cut, but a whole line was acknowledged.
    return {line.strip() for line in lines if line.endswith("\n")}


async def test_every_connection_flushes(tmp_path: Path) -> None:
    """A power cut is not a kill -9: synchronous=FULL is what a decision rests on."""
    store, _ = await make(tmp_path)
    names = ("synchronous", "journal_mode", "foreign_keys", "secure_delete", "busy_timeout")

    def pragmas(connection):
        return tuple(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in names)

    # The tests wait for a busy disk longer than the product does (tests/conftest.py).
    assert engine.BUSY_MS == 5000
    assert await store._database.write(pragmas) == (2, "wal", 1, 1, 60_000)
    assert await store._database.read(pragmas) == (2, "wal", 1, 1, 60_000)
    await store.close()


# --- the file -----------------------------------------------------------------------------------------------------


async def test_only_the_owner_reads_the_file(tmp_path: Path) -> None:
    """Nor its log: the keys in it are sealed, the names are not."""
    store, _ = await make(tmp_path)
    assert modes(tmp_path) == {"registry.db": 0o600, "registry.db-shm": 0o600, "registry.db-wal": 0o600}
    await store.close()


@pytest.mark.parametrize("keep_reader", [False, True])
async def test_a_removed_key_is_nowhere(tmp_path: Path, keep_reader: bool) -> None:
    """Neither in the file nor in its log, also while another process has the database open."""
    store, url = await make(tmp_path, devices=3)
    other = await open_store(url, ROW_KEY) if keep_reader else None
    if other is not None:
        assert await other.decisions.find_key("k2") is not None
    sealed = key("k2").jwe.encode()
    assert sealed in everything(tmp_path)
    await store.devices.remove_device("d2", entry("device remove"))
    assert sealed not in everything(tmp_path)
    assert sealed[:64] not in everything(tmp_path)
    assert key("k1").jwe.encode() in everything(tmp_path)
    await store.close()
    if other is not None:
        await other.close()


async def test_no_copy_is_left_when_pages_were_split_and_merged(tmp_path: Path) -> None:
    """Rows move between pages as others come and go; what they leave behind is overwritten too."""
    store, _ = await make(tmp_path, devices=60)
    order = sorted(range(1, 61), key=lambda number: number * 37 % 61)
    for number in order:
        name = f"k{number}"
        await store.devices.remove_device(f"d{number}", entry())
        content = everything(tmp_path)
        sealed = key(name).jwe.encode()
        for part in range(0, len(sealed) - 64, 64):
            assert sealed[part : part + 64] not in content, f"{name}, bytes {part}"
    await store.close()


async def test_a_reader_that_blocks_the_erasure_is_told(tmp_path: Path) -> None:
    """Another process reads an old snapshot: the device is gone, and its sealed key is in the log until then."""
    store, _ = await make(tmp_path)
    reader = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM device").fetchone()
    _shorten_wait(store)
    with pytest.raises(Unavailable, match="is made, but another process"):
        await store.devices.remove_device("d1", entry())
    assert await store.devices.list_devices() == []
    reader.close()
    await store.close()


def _shorten_wait(store: SqlStore) -> None:
    def prepare(connection, *_):
        connection.execute("PRAGMA busy_timeout=50")

    database: Any = store._database
    sa.event.listen(database._database._engine, "checkout", prepare)


# --- when it is away ------------------------------------------------------------------------------------------------


async def test_a_locked_database_is_unavailable_for_the_whole_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every caller is told, once, without SQL; afterwards everything works."""
    store, _ = await make(tmp_path)
    _shorten_wait(store)
    lock = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    calls = [store.decisions.decide(decision(1, f"n{tick}", tick)) for tick in range(1, 5)]
    with caplog.at_level(logging.ERROR):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, Unavailable) and result.code == "unavailable" for result in results)
    assert {str(result) for result in results} == {"The database could not be used."}
    assert [record.message for record in caplog.records] == [
        "the database failed: OperationalError: database is locked"
    ]
    assert await store.decisions.find_key("k1") is not None, "a reader does not wait for a writer"
    lock.rollback()
    lock.close()
    await store.decisions.decide(decision(1, "n1", 1))
    await store.close()


async def test_a_writer_looks_for_a_free_lock_each_millisecond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gaps between the batches of another worker are short; SQLite itself would sleep up to 100 ms and miss them."""
    store, _ = await make(tmp_path)
    lock = sqlite3.connect(tmp_path / "registry.db", isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN IMMEDIATE")
    looks: list[float] = []

    def monotonic() -> float:
        looks.append(time.monotonic())
        if len(looks) == 21:  # the first sets the end of the patience
            lock.rollback()
        return looks[-1]

    monkeypatch.setattr(engine, "time", SimpleNamespace(monotonic=monotonic))
    await store.decisions.decide(decision(1, "n1", 1))
    assert len(looks) == 21
    lock.close()
    await store.close()


async def test_a_full_disk_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that did not fit is not there, and reading goes on."""
    store, url = await make(tmp_path)
    await store.close()
    monkeypatch.setattr(engine, "_PRAGMAS", (*engine._PRAGMAS, "max_page_count=60"))
    store = await open_store(url, ROW_KEY)
    notes = [entry("note", details={"text": "x" * 2000}) for _ in range(100)]
    results = [await _outcome(store.audit.append(note)) for note in notes]
    assert results[0] == "written"
    assert results[-1] == "The database could not be used."
    rows = [row for _, row in await store.audit.list_audit(limit=1000) if row.event == "note"]
    assert len(rows) == results.count("written")
    await store.close()


async def _outcome(call) -> str:
    try:
        await call
    except Unavailable as error:
        return error.sentence
    return "written"


# --- short work in the event loop ---------------------------------------------------------------------------------


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads in which decisions were written, in their order."""
    found: list[str] = []
    write = decisions.write

    def noting(connection, items):
        found.append(threading.current_thread().name)
        return write(connection, items)

    monkeypatch.setattr(decisions, "write", noting)
    return found


def inner(store: SqlStore) -> engine.SqliteDatabase:
    """The database under the check of its seals."""
    assert isinstance(store._database, engine.AuthenticDatabase)
    assert isinstance(store._database._database, engine.SqliteDatabase)
    return store._database._database


async def test_a_decision_is_written_in_the_event_loop(tmp_path: Path, threads: list[str]) -> None:
    """Without a thread at each statement; evidence, which takes long to seal, is written in the thread."""
    store, _ = await make(tmp_path)
    await store.decisions.decide(decision(1, "n1", 1))
    await store.decisions.decide(
        decision(1, "n2", 2, evidence=NewEvidence(Snapshot(SELECTION, values()), True))
    )
    await store.close()
    assert [name.startswith("tang-attest-write") for name in threads] == [False, True]


async def test_a_decision_that_finds_the_lock_taken_waits_in_the_thread(
    tmp_path: Path, threads: list[str]
) -> None:
    """The event loop goes on meanwhile, and the decision is written once the other process is done."""
    store, _ = await make(tmp_path)
    lock = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    decided = asyncio.create_task(store.decisions.decide(decision(1, "n1", 1)))
    assert await store.decisions.find_key("k1") is not None
    await asyncio.sleep(0.05)
    assert not decided.done()
    lock.rollback()
    lock.close()
    await decided
    await store.decisions.decide(decision(1, "n2", 2))
    await store.close()
    assert [name.startswith("tang-attest-write") for name in threads] == [True, False]


async def test_a_decision_waits_for_the_thread_of_its_own_process(
    tmp_path: Path, threads: list[str], stall: Stall
) -> None:
    """A transaction that was begun before work of the thread would hold the lock that this work waits for."""
    store, _ = await make(tmp_path)
    held = stall.around(lambda: None)
    working = asyncio.create_task(inner(store)._run_in_writer(held))
    await stall.entered()
    decided = asyncio.create_task(store.decisions.decide(decision(1, "n1", 1)))
    await asyncio.sleep(0.05)
    assert not decided.done()
    stall.go()
    await asyncio.gather(working, decided)
    await store.close()
    assert [name.startswith("tang-attest-write") for name in threads] == [True]


async def test_a_caller_that_leaves_during_the_commit_leaves_no_lock(tmp_path: Path, stall: Stall) -> None:
    """The commit that it waited for is made, and the next decision and other processes can write."""
    store, url = await make(tmp_path)
    leaving = asyncio.create_task(inner(store).write_briefly(stall.around(lambda _: None)))
    await stall.entered()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    stall.go()
    await store.decisions.decide(decision(1, "n1", 1))
    other = await open_store(url, ROW_KEY)
    await other.decisions.decide(decision(1, "n2", 2))
    await other.close()
    await store.close()


async def test_a_caller_that_leaves_before_the_thread_begins_leaves_its_work(
    tmp_path: Path, stall: Stall
) -> None:
    """Work that waits for the thread is done all the same: so the last job of the thread is done when all are."""
    store, _ = await make(tmp_path)
    held = stall.around(lambda: None)
    working = asyncio.create_task(store._database.write(lambda _: held()))
    await stall.entered()
    leaving = asyncio.create_task(store.policies.add_policy(policy("other"), entry()))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    stall.go()
    await working
    await store.decisions.decide(decision(1, "n1", 1))
    assert {found.name for found in await store.policies.list_policies()} == {"policy", "other"}
    await store.close()


@pytest.mark.parametrize("fails", ["the work", "the commit"])
async def test_short_work_that_fails_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Nothing of it is left, and what is written next is written."""
    store, _ = await make(tmp_path)
    await store.decisions.decide(decision(1, "n1", 1))
    with monkeypatch.context() as patch:
        if fails == "the commit":
            patch.setattr(DefaultDialect, "do_commit", _fail)
        else:
            patch.setattr(nonces, "used", _fail)
        with pytest.raises(Unavailable):
            await store.decisions.decide(decision(1, "n2", 2))
    assert [row.request_id for _, row in await store.audit.list_audit(limit=1) if row.event == "unlock"] == [
        "n1"
    ]
    lock = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    lock.rollback()
    lock.close()
    await store.decisions.decide(decision(1, "n2", 2))
    await store.close()


def _fail(*_: object) -> None:
    raise sqlite3.OperationalError("disk I/O error")


# --- opening --------------------------------------------------------------------------------------------------------


async def test_opening_makes_nothing(tmp_path: Path) -> None:
    """A wrong path must not look like an empty registry."""
    with pytest.raises(Unavailable) as caught:
        await open_store(f"sqlite:///{tmp_path}/registry.db", ROW_KEY)
    assert caught.value.code == "state-missing"
    assert modes(tmp_path) == {}
    with pytest.raises(Unavailable) as caught:
        await open_store(f"sqlite:///{tmp_path}/missing/registry.db", ROW_KEY, create=True)
    assert caught.value.code == "file-unreadable"


@pytest.mark.parametrize(
    ("revision", "code"), [(None, "state-missing"), ("0000", "schema-old"), ("9999", "schema-new")]
)
async def test_another_schema_is_refused(tmp_path: Path, revision: str | None, code: str) -> None:
    """Missing, older, newer."""
    store, url = await make(tmp_path)
    await store.close()
    raw = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
    if revision is None:
        raw.execute("DROP TABLE alembic_version")
    else:
        raw.execute("UPDATE alembic_version SET version_num=?", (revision,))
    raw.close()
    with pytest.raises(Unavailable) as caught:
        await open_store(url, ROW_KEY)
    assert caught.value.code == code
    if revision == "9999":
        assert schema.REVISION in caught.value.sentence
        with pytest.raises(Unavailable):
            await open_store(url, ROW_KEY, create=True)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """Says so without a traceback."""
    (tmp_path / "registry.db").write_bytes(b"hello " * 1000)
    with pytest.raises(Unavailable) as caught:
        await open_store(f"sqlite:///{tmp_path}/registry.db", ROW_KEY)
    assert caught.value.code == "unavailable"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://user:secret@host/db",
        "nosuch://a:secret@b/c",
    ],
)
async def test_a_wrong_url(url: str) -> None:
    """Is a wrong setting; the sentence does not repeat a password."""
    with pytest.raises(Malformed) as caught:
        await open_store(url, ROW_KEY)
    assert caught.value.code == "setting-invalid"
    assert "secret" not in caught.value.sentence


async def test_creating_twice_keeps_what_is_there(tmp_path: Path) -> None:
    """``init`` on an existing registry is an upgrade that does nothing."""
    store, url = await make(tmp_path)
    await store.close()
    store = await open_store(url, ROW_KEY, create=True)
    assert len(await store.devices.list_devices()) == 1
    await store.close()
