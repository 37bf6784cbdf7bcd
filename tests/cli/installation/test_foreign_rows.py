"""Commands over a database to which somebody else wrote: they show what is theirs, and name the row that is not."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.attester import Attester
from tests.cli.installation.test_db import at
from tests.cli.transcript import environment
from tests.server import Server


@pytest.fixture(autouse=True)
def _operator() -> Iterator[None]:
    with environment():
        yield


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two machines, each with a policy and a refused boot; an admin token for each."""

    async def fill() -> None:
        async with Server(tmp_path / "state") as server:
            for name in ("pi-b", "pi-c"):
                attester = Attester()
                kid = await server.enroll(attester, name)
                attester.extend(4, name.encode())
                assert (await server.unlock(attester, kid)).code == "pcr-mismatch"

    asyncio.run(fill())
    return tmp_path / "state"


def change(state: Path, statement: str) -> None:
    """Somebody writes to the database."""
    with closing(sqlite3.connect(state / "tang-attest.db")) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE device SET labels = '[\"x\"]' WHERE name = 'pi-b'", "device"),
        ("UPDATE policy SET cap_pcr = 3 WHERE recorded_for = 'pi-b'", "policy"),
        (
            "UPDATE observation SET code = 'ok' WHERE device_id = (SELECT id FROM device WHERE name = 'pi-b')",
            "observation",
        ),
    ],
)
def test_the_other_machine_is_shown(
    state: Path, statement: str, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    """By every listing, by status and by doctor, for people and for programs."""
    change(state, statement)
    for words in (["device", "list"], ["observation", "list"], ["policy", "list"], ["status"]):
        caplog.clear()
        stdout, stderr, code = at(state, *words)
        met = table in words or words == ["status"]
        assert "pi-c" in stdout, (words, stderr)
        assert code == 1 if met else code == 0 or "pi-b" not in stdout
        assert code == at(state, *words, "--json")[2]
        if met:
            assert f"of table {table} is not what this server wrote." in caplog.text
            assert f"of table {table} is not what this server wrote (registry-tampered)" in stderr
            assert "hint: find out who wrote to the database" in stderr
    found = json.loads(at(state, "status", "--json")[0])["database"]
    assert [each["name"] for each in found] == [f"table {table}"]
    named = [each["name"] for each in json.loads(at(state, "device", "list", "--json")[0])]
    assert named == (["pi-c"] if table == "device" else ["pi-b", "pi-c"])
    stdout, _, code = at(state, "doctor")
    assert (code, f"of table {table} is not what this server wrote" in stdout) == (1, True), stdout
    assert "device pi-c" in stdout
    assert at(state, "device", "show", "pi-c")[2] == 0
    if table == "device":
        _, stderr, code = at(state, "device", "show", "pi-b")
        assert (code, "(registry-tampered)" in stderr) == (1, True), stderr


def test_an_entry_that_cannot_be_read(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others are listed, for people, for programs and as CSV, and audit verify names it."""
    change(state, "UPDATE audit SET details = 'x' WHERE device = 'pi-b' AND event = 'unlock'")
    for options in ((), ("--json",), ("--csv",)):
        stdout, stderr, code = at(state, "audit", "list", *options)
        assert (code, "pi-c" in stdout) == (1, True), stderr
        assert "was not written by this server (registry-tampered)" in stderr
        assert "of table audit was not written by this server." in caplog.text
    assert "device pi-c" in at(state, "doctor")[0]
