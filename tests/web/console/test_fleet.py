"""Ten thousand machines: a page costs as many queries and as much time as with ten."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from tang_attest.store.database import authentic, tables
from tang_attest.store.records import devices, policies
from tests.attester import Attester
from tests.server import Server
from tests.store.database.test_plans import scans, statements
from tests.store.samples import NOW, device, policy
from tests.web.console.conftest import Enter
from tests.web.console.test_story import refuse
from tests.web.console.visitor import Visitor

_MACHINES: Final = 10_000
#: Machines with a policy of their own, and machines whose last boot was refused.
_OWN, _REFUSED = 500, 2000
PAGES_OF_FLEET: Final = (
    "/",
    "/machines",
    "/machines?name=m04",
    "/machines/pi-b",
    "/refusals/1",
    "/policies",
    "/policies/shared",
    "/audit",
    "/enroll",
    "/operators",
)


def fill(
    connection: sa.Connection, machines: int = _MACHINES, own_policies: int = _OWN, refusals: int = _REFUSED
) -> None:
    """Add the fleet: sealed rows, without the audit entries of an enrollment each."""
    shared = policies.add(connection, policy("shared"))
    [kept] = authentic.load(connection, tables.observation)
    names = ("at", "selection", "pcr_values", "code", "reset_count", "event_log")
    boot = {name: kept[name] for name in names}
    own = [policies.add(connection, policy(f"own-{number:04}")) for number in range(own_policies)]
    for number in range(machines):
        made = replace(device(f"m{number:05}"), labels=("site=berlin",))
        number_of = devices.add(connection, made, own[number] if number < own_policies else shared)
        refused = number % (machines // refusals) == 0
        columns: dict[str, Any] = {
            "last_seen_at": NOW,
            "last_code": "pcr-mismatch" if refused else "ok",
            "last_state": None if refused else "recorded",
        }
        authentic.update(connection, tables.device, tables.device.c.id == number_of, columns)
        if refused:
            authentic.insert(connection, tables.observation, {**boot, "device_id": number_of})


async def costs(visitor: Visitor, path: str) -> int:
    """The number of statements of a page that was shown before."""
    assert (await visitor.get(path)).status == 200, path
    with statements() as seen:
        await visitor.get(path)
    return len([sql for sql, _ in seen if sql.startswith(("SELECT", "INSERT", "UPDATE"))])


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_no_page_grows_with_the_fleet(server: Server, enter: Enter) -> None:
    """As many statements, no whole table, and the first page in 100 ms of the processor."""
    await refuse(server, Attester())
    await server.reference_values.create_policy("first", policy().selection, 15)
    visitor = await enter("admin")
    server.clock.advance(minutes=2)
    small = {path: await costs(visitor, path) for path in PAGES_OF_FLEET if path != "/policies/shared"}
    await server.store._database.write(fill)
    with statements() as seen:
        large = {path: await costs(visitor, path) for path in PAGES_OF_FLEET}
    del large["/policies/shared"]
    # A list shows 50 rows instead of one, with a look at their keys.
    assert {path: count for path, count in large.items() if count > small[path] + 2} == {}

    file = Path(server.directory / "tang-attest.db")
    tables_of_fleet = ("device", "policy", "observation", "audit", "reference_state")
    whole = {
        (step, sql)
        for sql, parameters in seen
        if sql.startswith("SELECT")
        for step in scans(file, sql, parameters)
        # The newest entries of the record are at its end: a walk of as many steps as are shown.
        if step in {f"SCAN {table}" for table in tables_of_fleet} and "WHERE" in sql
    }
    assert whole == set()

    best = min([await processor_time(visitor) for _ in range(10)])
    assert best < 0.1, f"{best * 1000:.0f} ms"


async def processor_time(visitor: Visitor) -> float:
    """Seconds of the processor for the first page, its client's included."""
    began = time.process_time()
    shown = await visitor.get("/")
    spent = time.process_time() - began
    assert "1,000+" in shown.text
    return spent
