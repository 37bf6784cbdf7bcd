"""The database is restarted, crashes, freezes or is full, while machines unlock: 503 meanwhile, and nothing lost."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.serving import serving, serving_started
from tests.faults.load import Site, begin, load, next_codes, until_opened, until_refused, workers
from tests.postgres import Postgres

#: Permitted answers while the database fails.
MEANWHILE = {"ok", "nonce-used", "clock-backwards", "unavailable"}


@pytest.fixture
def server_of_its_own() -> Iterator[Postgres]:
    """A PostgreSQL server that may be ended without anybody else's test failing."""
    with Postgres() as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["restarted", "crashed"])
def test_postgresql_goes_and_comes(
    tmp_path: Path, server_of_its_own: Postgres, number: signal.Signals
) -> None:
    """An orderly restart and a crash: clear refusals, then machines open again by themselves."""
    site = Site(tmp_path, server_of_its_own.url(server_of_its_own.create())).init()
    with serving(tmp_path, *site.flags) as server:
        begin(site, server)
        with load(site, lambda: server.port):
            for _ in range(3):
                until_opened(site)
                server_of_its_own.stop(number)
                time.sleep(0.5)
                server_of_its_own.start()
            until_opened(site)
        assert server.stop() == 0
    assert set(site.check()) <= MEANWHILE


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_postgresql_freezes(tmp_path: Path, server_of_its_own: Postgres) -> None:
    """Connections stay and nobody answers: machines hear it, none waits for long, and it goes on afterwards."""
    site = Site(tmp_path, server_of_its_own.url(server_of_its_own.create())).init()
    with serving_started(tmp_path, *site.flags) as server:  # with the limits of the product
        begin(site, server)
        with load(site, lambda: server.port):
            until_opened(site)
            server_of_its_own.freeze()
            until_refused(site)
            server_of_its_own.thaw()
            until_opened(site)
        assert server.stop() == 0
    assert set(site.check()) <= MEANWHILE
    # Two limits of five seconds one after the other, and a machine that is busy.
    assert max(told.seconds for told in site.told) < 60


@pytest.mark.timeout(900)
def test_sqlite_on_a_full_disk(tmp_path: Path) -> None:
    """The log of the database cannot grow: no Y leaves, and once there is room machines open again."""
    site = Site(tmp_path).init()
    # The server's own log is on no full disk: systemd's journal takes it.
    with serving(tmp_path, "--log-level", "warning") as server:
        begin(site, server)
        with load(site, lambda: server.port):
            until_opened(site)
            with no_room(*workers(server.process.pid)):
                until_refused(site)
                # A decision alone still fits where several did not.
                while "ok" in next_codes(site):
                    pass
                assert "ok" not in next_codes(site)
            until_opened(site)
        assert server.stop() == 0
    assert set(site.check()) <= MEANWHILE


@contextlib.contextmanager
def no_room(*pids: int) -> Iterator[None]:
    """Processes *pids* may write no file beyond its first MiB, as on a disk that is full: SQLite's log grows to more."""
    unlimited = resource.RLIM_INFINITY
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (2**20, unlimited))
    try:
        yield
    finally:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
