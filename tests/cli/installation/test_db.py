"""Commands over PostgreSQL, and what a long one says."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tang_attest.cli import progress
from tests.cli.serving import request, serving
from tests.cli.transcript import environment, run
from tests.postgres import away

#: The program's own; a transcript's environment sets another pace.
EVERY_S = progress.EVERY_S


@pytest.fixture(autouse=True)
def _operator() -> Iterator[None]:
    with environment():
        yield


def at(state: Path, *arguments: str, database: str | None = None) -> tuple[str, str, int]:
    """A command over *state*."""
    given = ["--database", database] if database else []
    return run("--state", str(state), *given, *arguments)


@pytest.mark.slow
def test_the_way_to_postgresql_and_back(tmp_path: Path, empty_postgres_url: str) -> None:
    """Everything arrives twice, the servers answer from it, and the last copy is like the first."""
    state = tmp_path / "state"
    assert at(state, "init")[2] == 0
    assert at(state, "policy", "create", "web", "--selection", "sha256:7")[2] == 0
    listed = at(state, "keys", "list")
    assert at(state, "db", "copy", "--to", empty_postgres_url)[2] == 0
    (state / "tang-attest.db").unlink()
    assert at(state, "keys", "list", database=empty_postgres_url) == listed
    with serving(tmp_path, "--database", empty_postgres_url) as server:
        assert request(server.port, "GET", "/adv")[0] == 200
        # A second server: the same database, and a copy of the kek.
        (tmp_path / "second" / "state").mkdir(parents=True, mode=0o700)
        shutil.copy(state / "kek", tmp_path / "second" / "state")
        with serving(tmp_path / "second", "--database", empty_postgres_url) as other:
            assert request(other.port, "GET", "/adv")[0] == 200
            assert at(state, "keys", "rotate", database=empty_postgres_url)[2] == 0
            assert request(server.port, "GET", "/adv")[0] == request(other.port, "GET", "/adv")[0] == 200
    back = f"sqlite:///{tmp_path}/back.db"
    assert at(state, "db", "copy", "--to", back, database=empty_postgres_url)[2] == 0
    listed = at(state, "keys", "list", database=back)
    assert at(state, "db", "reclaim", database=empty_postgres_url)[2] == 0
    assert listed == at(state, "keys", "list", database=empty_postgres_url)


def test_init_on_postgresql(tmp_path: Path, empty_postgres_url: str) -> None:
    """The first server makes the tables; a second init is refused and leaves nothing; a wrong kek is noticed."""
    first, second = tmp_path / "first", tmp_path / "second"
    thumbprint = at(first, "init", database=empty_postgres_url)[0].strip()
    assert sorted(path.name for path in first.iterdir()) == ["kek"]
    assert thumbprint in at(first, "keys", "list", database=empty_postgres_url)[0]
    _, stderr, code = at(second, "init", database=empty_postgres_url)
    assert (code, "state-exists" in stderr) == (1, True)
    assert list(second.iterdir()) == []
    assert at(second, "init")[2] == 0
    _, stderr, code = at(second, "device", "list", database=empty_postgres_url)
    assert (code, "is not the one that the database was made with" in stderr) == (1, True)


def test_init_without_a_server(tmp_path: Path) -> None:
    """A database that is away leaves no half of a state."""
    with away() as url:
        _, stderr, code = at(tmp_path / "state", "init", database=url)
    assert (code, "(unavailable)" in stderr) == (1, True)
    assert list((tmp_path / "state").iterdir()) == []


def test_upgrade_on_postgresql(tmp_path: Path, postgres_url: str, empty_postgres_url: str) -> None:
    """Nothing to do is said; no tables is an error."""
    assert "already" in at(tmp_path, "db", "upgrade", database=postgres_url)[1]
    _, stderr, code = at(tmp_path, "db", "upgrade", database=empty_postgres_url)
    assert (code, "state-missing" in stderr) == (1, True)
    stdout, stderr, code = at(tmp_path, "db", "status", "--json", database=postgres_url)
    assert ('"server": "PostgreSQL 1' in stdout, stderr, code) == (True, "", 0)


async def test_a_long_command_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every two seconds, and nothing before."""
    assert EVERY_S == 2
    at_once = asyncio.sleep
    asked, answers = asyncio.Queue[float](), asyncio.Queue[None]()

    async def sleep(seconds: float) -> None:
        asked.put_nowait(seconds)
        await answers.get()

    async def later() -> None:
        answers.put_nowait(None)
        assert await asked.get() == EVERY_S

    monkeypatch.setattr(asyncio, "sleep", sleep)
    async with progress.shown("reading") as done:
        assert await asked.get() == EVERY_S
        await later()
        done(5, 10)
        await later()
        done(7, 0)
        await later()
    answers.put_nowait(None)
    await at_once(0)
    assert capsys.readouterr().err.splitlines() == [
        "tang-attest: reading: 2 s",
        "tang-attest: reading: 4 s, 5 of 10 rows",
        "tang-attest: reading: 6 s, 7 rows",
    ]
