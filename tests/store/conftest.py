"""A registry for each database the contract runs on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import greenlet  # type: ignore[import-untyped]  # a package of its own has its types
import pytest
import pytest_asyncio
from sqlalchemy.util import await_only

from tang_attest.service.audit.chain import AuditSealer
from tang_attest.store import SqlStore, open_store
from tang_attest.store.database.engine import SqliteDatabase
from tests import registry
from tests.fakes import ROW_KEY, FakeClock
from tests.store.samples import NOW

P = ParamSpec("P")
R = TypeVar("R")

#: One more database is one more word here and one more branch in ``url``.
DATABASES = ("sqlite", "postgresql")


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with nothing in it; perhaps with tables."""
    if request.param == "postgresql":
        found: str = request.getfixturevalue("postgres_url")
        return found
    return f"sqlite:///{tmp_path}/registry.db"


@pytest.fixture(params=DATABASES)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "postgresql":
        found: str = request.getfixturevalue("empty_postgres_url")
        return found
    return f"sqlite:///{tmp_path}/registry.db"


#: Seconds for what comes at once on an idle machine.
_PATIENCE_S = 120

Opener = Callable[[], Awaitable[SqlStore]]


@pytest_asyncio.fixture
async def open_another(url: str) -> AsyncIterator[Opener]:
    """Opens the same database once more, as another process does."""
    if url.startswith("sqlite"):
        await registry.copy_empty(Path(url.removeprefix("sqlite:///")))
    stores = []

    async def opener() -> SqlStore:
        stores.append(await open_store(url, ROW_KEY))
        return stores[-1]

    yield opener
    for store in stores:
        await store.close()


@pytest_asyncio.fixture
async def store(open_another: Opener) -> SqlStore:
    """A registry with its tables and nothing in them."""
    return await open_another()


#: The key of the audit record's chain.
CHAIN_KEY = bytes(range(32))


@pytest.fixture
def clock() -> FakeClock:
    """The time of the samples."""
    clock = FakeClock()
    clock.time = NOW
    return clock


@pytest.fixture
def sealer(store: SqlStore, clock: FakeClock) -> AuditSealer:
    """A sealer of the registry's audit record."""
    return AuditSealer(store.audit, CHAIN_KEY, clock)


class Stall:
    """Holds the first call of a function, after it has done its work, until it is let go.

    The call is inside a transaction: what happens meanwhile is the race.  In a thread (SQLite) it waits there.  In the
    event loop waiting has to let others run: PostgreSQL's driver awaits, and SQLite's transaction is held at its commit,
    which is the part that a thread has.
    """

    def __init__(self) -> None:
        self._first = threading.Lock()
        self._entered = threading.Event()
        self._go = threading.Event()
        self._at_commit = False

    def around(self, function: Callable[P, R]) -> Callable[P, R]:
        """*function*, stalled."""

        def stalled(*args: P.args, **kwargs: P.kwargs) -> R:
            result = function(*args, **kwargs)
            if self._first.acquire(blocking=False):
                self._hold()
            return result

        return stalled

    def around_commit(self, commit: Callable[P, R]) -> Callable[P, R]:
        """*commit*, held before its work, if it is that of a held call."""

        def held(*args: P.args, **kwargs: P.kwargs) -> R:
            if self._at_commit:
                self._at_commit = False
                self._wait()
            return commit(*args, **kwargs)

        return held

    def _hold(self) -> None:
        if not _in_event_loop():
            self._wait()
        elif greenlet.getcurrent().parent is not None:  # of PostgreSQL's driver
            self._entered.set()
            assert await_only(asyncio.to_thread(self._go.wait, _PATIENCE_S)), "nobody let go"
        else:
            self._at_commit = True

    def _wait(self) -> None:
        self._entered.set()
        assert self._go.wait(_PATIENCE_S), "nobody let go"

    async def entered(self) -> None:
        """Wait until the call is held."""
        assert await asyncio.to_thread(self._entered.wait, _PATIENCE_S), "nobody called"

    def go(self) -> None:
        """Let go."""
        self._go.set()


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stall]:
    """A :class:`Stall` that lets go when the test fails."""
    stall = Stall()
    monkeypatch.setattr(SqliteDatabase, "_commit", stall.around_commit(SqliteDatabase._commit))
    yield stall
    stall.go()
