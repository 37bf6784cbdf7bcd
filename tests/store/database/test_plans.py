"""SQLite's plans for the statements of an unlock: it looks rows up, and reads no table from end to end."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tang_attest.ports.decisions import PolicyPcrs, RolloutResult, Snapshot
from tang_attest.protocol.changes.rollout import RolloutOutcome
from tang_attest.store import open_store
from tests.fakes import ROW_KEY
from tests.store.records.test_rollouts import begin
from tests.store.samples import SELECTION, clock, decision, policy, state, values

Statement = tuple[str, Any]


def _is_for_sqlite(cursor: object, _: str) -> bool:
    return isinstance(cursor, sqlite3.Cursor)


@contextmanager
def statements(counts: Callable[[object, str], bool] = _is_for_sqlite) -> Iterator[list[Statement]]:
    """Every statement that SQLAlchemy sends meanwhile, with its parameters as the driver gets them.

    *counts* decides by the driver's cursor and the SQL; by default, those to a SQLite database.
    """
    seen: list[Statement] = []

    def note(_: object, cursor: object, sql: str, parameters: Any, *__: object) -> None:
        if counts(cursor, sql):
            seen.append((sql, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)


@contextmanager
def traced() -> Iterator[list[str]]:
    """Every statement that SQLite executes meanwhile on connections that are made meanwhile, with its values."""
    seen: list[str] = []

    def trace(connection: Any, _: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.set_trace_callback(seen.append)

    sa.event.listen(sa.Engine, "connect", trace)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "connect", trace)


def scans(file: Path, sql: str, parameters: Any = ()) -> list[str]:
    """Steps of the plan that read a whole table; a list that came as a parameter is none."""
    one = parameters[0] if isinstance(parameters, list) else parameters
    with closing(sqlite3.connect(file)) as connection, connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", one).fetchall()
    connection.close()
    return [step for *_, step in plan if step.startswith("SCAN") and "json_each" not in step]


async def test_an_unlock_reads_no_whole_table(tmp_path: Path) -> None:
    """Finding a key, and writing a decision that permits, refuses, or counts for a rollout."""
    file = tmp_path / "registry.db"
    store = await open_store(f"sqlite:///{file}", ROW_KEY, create=True)
    _, ids = await begin(store, 1)
    await store.close()
    with traced() as seen:
        store = await open_store(f"sqlite:///{file}", ROW_KEY)
        opening = len(seen)
        assert await store.decisions.find_pcrs("kid-d0") == PolicyPcrs(SELECTION, policy().cap_pcr)
        bound = await store.decisions.find_key("kid-d0")
        assert bound is not None
        assert bound.rollout is not None
        result = RolloutResult(bound.rollout, RolloutOutcome.REFUSED, "pcr-mismatch")
        snapshot = Snapshot(SELECTION, values("odd"), b"log")
        # Recalled now.
        assert await store.decisions.find_pcrs("kid-d0") == PolicyPcrs(SELECTION, policy().cap_pcr)
        await store.decisions.decide(decision(ids["d0"], "n1", 1, clock=clock(1), met=state()))
        await store.decisions.decide(
            decision(ids["d0"], "n2", 2, clock=clock(2), observation=snapshot, rollout=result)
        )
    await store.close()
    asked = [sql for sql in seen[opening:] if sql.startswith(("SELECT", "UPDATE", "INSERT", "DELETE"))]
    assert len(asked) >= 12
    assert not {sql: steps for sql in asked if (steps := scans(file, sql))}


def test_a_scan_is_noticed(tmp_path: Path) -> None:
    """The premise of the test above."""
    file = tmp_path / "some.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE some (kid TEXT PRIMARY KEY, name TEXT)")
    connection.close()
    assert scans(file, "SELECT * FROM some WHERE kid = 'k'") == []
    assert scans(file, "SELECT * FROM some WHERE name = 'n'") == ["SCAN some"]
