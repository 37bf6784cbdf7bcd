"""A registry for each database the contract runs on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

import pytest
import pytest_asyncio

from tang_attest.store import SqlStore, open_store, upgrade

P = ParamSpec("P")
R = TypeVar("R")

#: One more database is one more word here and one more branch in ``url``.
DATABASES = ("sqlite",)


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    assert request.param == "sqlite"
    return f"sqlite:///{tmp_path}/registry.db"


Opener = Callable[[], Awaitable[SqlStore]]


@pytest_asyncio.fixture
async def open_another(url: str) -> AsyncIterator[Opener]:
    """Opens the same database once more, as another process does."""
    await upgrade(url)
    stores = []

    async def opener() -> SqlStore:
        stores.append(await open_store(url))
        return stores[-1]

    yield opener
    for store in stores:
        await store.close()


@pytest_asyncio.fixture
async def store(open_another: Opener) -> SqlStore:
    """A registry with its tables and nothing in them."""
    return await open_another()


class Stall:
    """Holds the first call of a function, after it has done its work, until it is let go.

    The call is inside a transaction: what happens meanwhile is the race.  It stalls a thread, which is right for
    SQLite; a database whose work runs in the event loop needs a stall that yields to the loop.
    """

    def __init__(self) -> None:
        self._first = threading.Lock()
        self._entered = threading.Event()
        self._go = threading.Event()

    def around(self, function: Callable[P, R]) -> Callable[P, R]:
        """*function*, stalled."""

        def stalled(*args: P.args, **kwargs: P.kwargs) -> R:
            result = function(*args, **kwargs)
            if self._first.acquire(blocking=False):
                self._entered.set()
                assert self._go.wait(10), "nobody let go"
            return result

        return stalled

    async def entered(self) -> None:
        """Wait until the call is held."""
        assert await asyncio.to_thread(self._entered.wait, 10), "nobody called"

    def go(self) -> None:
        """Let go."""
        self._go.set()


@pytest.fixture
def stall() -> Iterator[Stall]:
    """A :class:`Stall` that lets go when the test fails."""
    stall = Stall()
    yield stall
    stall.go()
