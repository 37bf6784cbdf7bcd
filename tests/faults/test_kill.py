"""kill -9 of the server at random moments under load: what machines were told is in the registry."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from tests.cli.serving import program, serving
from tests.faults.load import MACHINES, Site, begin, load, until_opened, workers


def torment(site: Site, rounds: int) -> None:
    """Start, load, kill; *rounds* times.  In every other round a worker is killed first, which is replaced."""
    moments = random.Random(rounds)
    tokens = site.tokens(MACHINES + 4 * rounds)
    for number in range(rounds):
        with serving(site.directory, *site.flags) as server:
            if number == 0:
                begin(site, server)
            with load(site, lambda: server.port, [tokens.pop() for _ in range(4)]) as stop:
                until_opened(site)  # a busy machine needs longer than the moments below
                time.sleep(moments.uniform(0.0, 0.6))
                if number % 2:
                    kill(*workers(server.process.pid))
                    until_opened(site)
                kill(server.process.pid, *workers(server.process.pid))
                stop.set()
            server.process.wait(120)
    with serving(site.directory, *site.flags) as server:
        assert server.stop() == 0  # the one before could not seal its last rows
    sealed = program("--state", site.directory / "state", *site.flags, "audit", "verify", "--json")
    assert sealed.returncode == 0, sealed.stderr
    assert json.loads(sealed.stdout)["unsealed"] == 0
    codes = site.check()
    assert codes["ok"] >= rounds, codes
    assert codes["broken"] >= 1, codes
    # A machine whose answer was lost sends the evidence again: it was used, or it was never written.
    assert set(codes) <= {"ok", "broken", "nonce-used", "clock-backwards"}, codes


def kill(*pids: int) -> None:
    """SIGKILL."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def integrity(site: Site) -> str:
    """SQLite's check of its own file."""
    connection = sqlite3.connect(site.directory / "state" / "tang-attest.db")
    try:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.timeout(900)
def test_sqlite(tmp_path: Path) -> None:
    """A few rounds in every run."""
    site = Site(tmp_path).init()
    torment(site, 3)
    assert integrity(site) == "ok"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sqlite_fifty_times(tmp_path: Path) -> None:
    """Fifty rounds."""
    site = Site(tmp_path).init()
    torment(site, 50)
    assert integrity(site) == "ok"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_postgresql(tmp_path: Path, empty_postgres_url: str) -> None:
    """The server of the machines is killed, the database is not."""
    torment(Site(tmp_path, empty_postgres_url).init(), 8)
