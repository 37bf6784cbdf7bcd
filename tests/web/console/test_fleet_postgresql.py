"""Ten thousand machines on PostgreSQL: no statement of a page reads a whole table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from tang_attest.store.database import tables
from tests.attester import Attester
from tests.server import Server
from tests.store.database.test_plans import Statement, statements
from tests.store.samples import policy
from tests.web.console.conftest import console_of, enter_at
from tests.web.console.test_fleet import PAGES_OF_FLEET, fill
from tests.web.console.test_story import refuse

#: Machines with valid seals, which pages show, and copies of each under other names, which were seen before.
_SEALED, _COPIES = 600, 17
#: Rows that one step of a plan may read: pages show 50 or 200 rows, and counts end at 1,000, of about every second row.
_MOST_ROWS: Final = 2500


def is_query(_: object, sql: str) -> bool:
    return sql.lstrip("( ").startswith(("SELECT", "WITH"))


def copy(connection: sa.Connection) -> None:
    """Add copies of machines and of their refused boots; their seals are of no use, for no page shows them."""
    changed = {
        "name": "'z' || part || device.name",
        "ak_spki": "decode(md5(part || device.name), 'hex')",
        "ek_spki": "NULL",
        "serial": "decode(md5(part || 'serial' || device.name), 'hex')",
        "last_seen_at": "device.last_seen_at - part",
    }
    columns = [column.name for column in tables.device.c if column.name != "id"]
    values = [changed.get(name, f"device.{name}") for name in columns]
    _copy(
        connection,
        "device",
        columns,
        values,
        f"device, generate_series(1, {_COPIES - 1}) AS part WHERE device.name LIKE 'm%%'",
    )
    columns = [column.name for column in tables.observation.c if column.name != "id"]
    changed = {"device_id": "copied.id", "serial": "decode(md5('boot' || copied.name), 'hex')"}
    values = [changed.get(name, f"observation.{name}") for name in columns]
    source = "observation JOIN device ON device.id = observation.device_id"
    _copy(
        connection,
        "observation",
        columns,
        values,
        f"{source} JOIN device AS copied ON copied.name LIKE 'z%%' || device.name",
    )


def _copy(
    connection: sa.Connection, table: str, columns: Sequence[str], values: Sequence[str], source: str
) -> None:
    """Insert *values*, expressions for *columns*, of each row of *source*."""
    statement = f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} FROM {source}"  # noqa: S608 - no input
    connection.exec_driver_sql(statement)


def steps(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a plan's node and those below it."""
    yield node
    for below in node.get("Plans", ()):
        yield from steps(below)


def _machines(connection: sa.Connection) -> int:
    return int(connection.scalar(sa.select(sa.func.count()).select_from(tables.device)) or 0)


def long_reads(plan: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Return the scans of *plan* that read more than :data:`_MOST_ROWS` rows: kind, table and rows."""
    found = []
    for node in steps(plan):
        if "Relation Name" not in node and "Index Name" not in node:
            continue
        rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        if (read := round(rows * node["Actual Loops"])) > _MOST_ROWS:
            found.append(
                (str(node["Node Type"]), str(node.get("Relation Name", node.get("Index Name"))), read)
            )
    return found


def plan_of(connection: sa.Connection, statement: Statement) -> dict[str, Any]:
    """Run *statement* and return its plan with the rows that each step read.

    Tables of this size are sometimes read faster from end to end than by an index.  That is forbidden here, so that only
    a statement without a fitting index does so.
    """
    sql, parameters = statement
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
    found = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters).scalar_one()
    made: list[dict[str, Any]] = json.loads(found) if isinstance(found, str) else found
    plan: dict[str, Any] = made[0]["Plan"]
    return plan


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_no_page_reads_a_whole_table(tmp_path: Path, postgres_url: str) -> None:
    """Each step of each plan reads as many rows as the page shows or counts, and a whole read is noticed."""
    async with Server(tmp_path / "state", database=postgres_url) as server:
        await refuse(server, Attester())
        await server.reference_values.create_policy("first", policy().selection, 15)
        database = server.store._database
        await database.write(lambda connection: fill(connection, _SEALED, 100, _SEALED // 2))
        await database.write(copy)
        assert await database.read(_machines) >= 10_000
        await database.write(lambda connection: connection.exec_driver_sql("ANALYZE"))
        async with console_of(server) as client:
            visitor = await enter_at(server, client, "admin")
            seen: dict[str, list[Statement]] = {}
            for path in (*PAGES_OF_FLEET, "/machines?name=m", "/machines?name=m001", "/policies?name=own-00"):
                with statements(is_query) as asked:
                    assert (await visitor.get(path)).status == 200, path
                seen[path] = asked
        assert all(seen.values()), "each page asks something"
        found = {}
        for path, asked in seen.items():
            for statement in asked:
                plan = await database.read(partial(plan_of, statement=statement))
                if reads := long_reads(plan):
                    found[path, statement[0]] = reads
        assert [(path, reads) for (path, _), reads in found.items()] == []
        whole = await database.read(
            lambda connection: plan_of(connection, ("SELECT * FROM device WHERE last_code = 'x'", ()))
        )
        assert [table for _, table, _ in long_reads(whole)] == ["device"]
