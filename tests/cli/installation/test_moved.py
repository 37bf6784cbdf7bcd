"""A database that was copied away refuses every use, and says where it went and how it is taken back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tang_attest.store.maintenance import operations
from tests.cli.fleet import Machines
from tests.cli.serving import PATIENCE_S, initialize, serving
from tests.cli.transcript import environment, run

ACTION = (
    "hint: name the new database in the setting 'database';"
    " to use this one again, run 'tang-attest db reclaim' on the server\n"
)

#: Commands that read, that write, and that look after whole databases.
COMMANDS = (
    "admin-token list",
    "approve pi-b",
    "audit list",
    "audit verify",
    "backup never-made",
    "db copy --to sqlite:///third.db",
    "db status",
    "db upgrade",
    "device list",
    "device suspend pi-b --reason lost",
    "device remove pi-b",
    "ek-root list",
    "keys list",
    "keys rotate",
    "keys rotate-kek",
    "observation list",
    "policy list",
    "token create --record",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with an installation of one machine in ``state``."""
    monkeypatch.chdir(tmp_path)
    initialize(tmp_path / "state")
    with environment(), Machines() as machines:
        token = run("token", "create", "--record", "--allow-unverified-ek")[0].strip()
        assert machines.act(f"pi-b enrolls with {token}") == "enrolled"
        yield tmp_path


def copied(target: str, *flags: str) -> None:
    """Copy the database to *target*."""
    _, stderr, code = run(*flags, "db", "copy", "--to", target)
    assert code == 0, stderr


@pytest.fixture
def moved(home: Path) -> Path:
    """The installation, after its database was copied to ``second.db``."""
    copied("sqlite:///second.db")
    return home


def test_each_command_refuses(moved: Path) -> None:
    """With the code, the new place, and the command that takes the old one back; nothing is written."""
    before = (moved / "state/tang-attest.db").read_bytes()
    for command in COMMANDS:
        _, stderr, code = run(*command.split())
        assert code == 1, command
        assert f"this database was copied to sqlite:///{moved}/second.db on " in stderr, command
        assert "(database-moved)\n" in stderr, command
        assert stderr.endswith(ACTION), command
    assert (moved / "state/tang-attest.db").read_bytes() == before
    assert not {"never-made", "third.db"} & {path.name for path in moved.iterdir()}


def test_doctor_and_status_say_it(moved: Path) -> None:
    """``doctor`` has it as a problem, and ``db status`` still shows the rows."""
    stdout, _, code = run("doctor", "--json")
    [found] = [finding for finding in json.loads(stdout) if finding["subject"] == "database"]
    assert (code, found["level"]) == (1, "problem")
    assert f"copied to sqlite:///{moved}/second.db" in found["sentence"]
    stdout, _, code = run("db", "status", "--json")
    assert (code, json.loads(stdout)["moved_to"]) == (1, f"sqlite:///{moved}/second.db")
    assert json.loads(stdout)["rows"]["device"] == 1


def test_the_copy_is_in_use(moved: Path) -> None:
    """It has no mark, and goes on where the old one stopped."""
    stdout, _, code = run("--database", "sqlite:///second.db", "device", "list", "--json")
    assert (code, [device["name"] for device in json.loads(stdout)]) == (0, ["pi-b"])
    copied("sqlite:///third.db", "--database", "sqlite:///second.db")
    assert run("--database", "sqlite:///third.db", "device", "list")[2] == 0


def test_reclaim_takes_it_back(moved: Path) -> None:
    """Once, with an entry in the record; a second time it changes nothing."""
    stdout, _, code = run("db", "reclaim", "--json")
    assert (code, json.loads(stdout)) == (0, {"reclaimed": True, "copy": f"sqlite:///{moved}/second.db"})
    assert run("device", "suspend", "pi-b", "--reason", "lost")[2] == 0
    events = [entry["event"] for entry in json.loads(run("audit", "list", "--json")[0])]
    assert events[:2] == ["device suspend", "db reclaim"]
    stdout, _, code = run("db", "reclaim", "--json")
    assert (code, json.loads(stdout)) == (0, {"reclaimed": False, "copy": None})
    copied("sqlite:///fourth.db")
    assert run("device", "list")[2] == 1


def test_a_forged_mark_sends_nobody_anywhere(home: Path) -> None:
    """An attacker who writes a mark stops the use, but their place is not repeated."""
    with closing(sqlite3.connect(home / "state/tang-attest.db")) as database, database:
        database.execute("CREATE TABLE moved (place TEXT, at TEXT, seal BLOB)")
        database.execute(
            "INSERT INTO moved VALUES ('sqlite:////evil.db', '2026-11-27T00:00:00+00:00', X'00')"
        )
    for command in (["device", "list"], ["backup", "never-made"], ["db", "upgrade"]):
        _, stderr, code = run(*command)
        assert (code, "evil" in stderr, "(registry-tampered)" in stderr) == (1, False, True)
    assert run("db", "reclaim")[2] == 0
    assert run("device", "list")[2] == 0


def test_a_copy_that_fails_leaves_the_database_in_use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target that is filled already, the database itself, a wrong kek, and a failure in the middle."""
    initialize(home / "other")
    for target in (f"sqlite:///{home}/other/tang-attest.db", f"sqlite:///{home}/state/tang-attest.db"):
        _, stderr, code = run("db", "copy", "--to", target)
        assert (code, "(database-not-empty)" in stderr) == (1, True)
    (home / "other/tang-attest.db").unlink()
    wrong = ("--state", "other", "--database", f"sqlite:///{home}/state/tang-attest.db")
    assert (
        "is not the one that the database was made with"
        in run(*wrong, "db", "copy", "--to", "sqlite:///x")[1]
    )

    async def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(operations, "restore", fail)
        patch.setattr("tang_attest.store.restore", fail)
        assert run("db", "copy", "--to", "sqlite:///second.db")[2] == 1
    assert run("device", "list")[2] == 0


@pytest.mark.slow
def test_a_server_that_runs_ends(home: Path) -> None:
    """It would go on answering from a database that nobody looks at any longer."""
    with serving(home, "--workers", "2") as server:
        copied("sqlite:///second.db")
        assert server.process.wait(PATIENCE_S) == 1
        assert "(database-moved)" in server.log.read_text()


def test_postgresql_and_back(home: Path, empty_postgres_url: str) -> None:
    """Each of the two refuses once its rows are in the other; no password is shown, and the copy is whole."""
    copied(empty_postgres_url)
    _, stderr, code = run("device", "list")
    assert (code, "copied to postgresql://" in stderr, "asyncpg" in stderr) == (1, True, False)
    at_server = ("--database", empty_postgres_url)
    assert run(*at_server, "device", "suspend", "pi-b", "--reason", "lost")[2] == 0
    copied("sqlite:///back.db", *at_server)
    for command in (
        ["device", "list"],
        ["backup", "never-made"],
        ["db", "upgrade"],
        ["token", "create", "--record"],
    ):
        _, stderr, code = run(*at_server, *command)
        assert (code, f"copied to sqlite:///{home}/back.db" in stderr) == (1, True)
    [device] = json.loads(run("--database", "sqlite:///back.db", "device", "list", "--json")[0])
    assert device["suspended_reason"] == "lost"
    assert run(*at_server, "db", "reclaim")[2] == 0
    assert run(*at_server, "device", "list")[2] == 0
