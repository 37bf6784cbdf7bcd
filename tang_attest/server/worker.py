"""The life of one worker process: open, compose, answer, close."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from tang_attest.config import Settings
from tang_attest.daemon.files import OpenFiles
from tang_attest.daemon.supervisor import WorkerSlot
from tang_attest.errors import NotFound, TangAttestError
from tang_attest.ports.store import Store
from tang_attest.server.background import background
from tang_attest.server.chores import chore
from tang_attest.server.compose import Installation, World, opened
from tang_attest.server.site import compose_site, make_limiter
from tang_attest.server.tang import tang_site
from tang_attest.service.rounds.polls import Polls
from tang_attest.service.tang.plain import current_keys
from tang_attest.web import runner
from tang_attest.web.app import Site, make_app
from tang_attest.web.monitoring import health

#: Seconds between two checks that files can be opened.
_FILES_EVERY_S: Final = 1
#: Seconds between two checks that the database is still in use.
_DATABASE_EVERY_S: Final = 1
#: Codes after which no worker can go on: the database was copied away, or has a foreign mark that says so.
ENDING: Final = frozenset({"database-moved", "registry-tampered"})


_log = structlog.get_logger("serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """The listening sockets of one worker: for machines, for its metrics and for the console (none when they are
    off).
    """

    machines: Sequence[socket.socket]
    metrics: Sequence[socket.socket]
    console: Sequence[socket.socket] = ()
    tls: ssl.SSLContext | None
    console_tls: ssl.SSLContext | None = None


def run_worker(settings: Settings, world: World, listeners: Listeners, place: WorkerSlot) -> None:
    """Answer on *listeners* until a signal, or until the supervisor is gone.

    Raises what keeps a worker from starting, and ``database-moved`` once the database was copied away.
    """
    import uvloop

    # Objects made so far stay: no collection has to look at them again, and workers go on sharing their
    # memory.
    gc.freeze()
    uvloop.run(_serve(settings, world, listeners, place))


async def _serve(settings: Settings, world: World, listeners: Listeners, place: WorkerSlot) -> None:
    stop, polls = asyncio.Event(), Polls()
    ending = _Ending(stop)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    loop.add_reader(place.life, stop.set)  # the supervisor was killed
    release = asyncio.create_task(_release(stop, polls))
    with chore("files", _FILES_EVERY_S, OpenFiles().look):
        async with (
            _site(settings, world, polls, ending, listeners) as site,
            _shown_metrics(site, listeners.metrics),
        ):
            if place.index == 0:
                await _log_keys(site)
            await runner.run(
                make_app(site), listeners.machines, listeners.tls, place.ready, stop, site.limiter
            )
    release.cancel()
    ending.raise_error()


async def _log_keys(site: Site) -> None:
    """Log the thumbprints that machines compare; a failure is reported by the readiness check."""
    with suppress(TangAttestError):
        _log.info("signing-keys", thumbprints=list((await current_keys(site.advertised)).thumbprints))


class _Ending:
    """The end of a worker by an error, after which it answers nobody."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._error: TangAttestError | None = None

    async def look(self, store: Store) -> None:
        """Stop the worker if *store* cannot be used by any server again; other failures pass."""
        try:
            await store.check()
        except TangAttestError as error:
            if error.code in ENDING:
                self._error = error
                self._stop.set()

    def raise_error(self) -> None:
        """Raise the error that ended the worker, if there was one."""
        if self._error is not None:
            raise self._error


async def _release(stop: asyncio.Event, polls: Polls) -> None:
    """Requests of agents are held for most of a minute: they are not waited for."""
    await stop.wait()
    polls.close()


@asynccontextmanager
async def _site(
    settings: Settings, world: World, polls: Polls, ending: _Ending, listeners: Listeners
) -> AsyncIterator[Site]:
    """Compose the site of *settings*, with the installation open and its periodic work running."""
    limiter = make_limiter(settings)
    async with AsyncExitStack() as stack:
        try:
            installation = await stack.enter_async_context(opened(settings, world))
        except NotFound as error:
            # A drop-in tangd needs no installation of ours.
            if settings.tang_dir is None or error.code != "state-missing":
                raise
            yield tang_site(settings, settings.tang_dir, limiter)
            return
        served = compose_site(installation, polls=polls, limiter=limiter)
        await stack.enter_async_context(background(served))
        stack.enter_context(chore("database", _DATABASE_EVERY_S, partial(ending.look, installation.store)))
        if listeners.console:
            await stack.enter_async_context(_shown_console(installation, listeners))
        yield served.site


def _shown_console(installation: Installation, listeners: Listeners) -> AbstractAsyncContextManager[None]:
    """Show the console of *installation*, for as long as the block runs."""
    from tang_attest.server.console.pages import compose_desk  # slow to load, and off by default
    from tang_attest.web.console.app import make_console

    limiter = make_limiter(installation.settings)
    app = make_console(compose_desk(installation), limiter)
    return runner.guarded_beside(app, listeners.console, listeners.console_tls, limiter)


def _shown_metrics(site: Site, sockets: Sequence[socket.socket]) -> AbstractAsyncContextManager[None]:
    """Show the metrics of *site* on *sockets*, for as long as the block runs."""
    if site.metrics is None or not sockets:
        return nullcontext()
    return runner.beside(health.make_app(site.metrics, site.health), sockets)
