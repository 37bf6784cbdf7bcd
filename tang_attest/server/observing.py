"""What ``serve`` limits, counts and shows."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import structlog

from tang_attest.cli.state import SystemClock
from tang_attest.config import Settings
from tang_attest.daemon.sockets import bind
from tang_attest.errors import TangAttestError
from tang_attest.ports.store import Store
from tang_attest.ports.world import Clock
from tang_attest.server.chores import again_and_again
from tang_attest.service.audit.refusals import Refusals
from tang_attest.service.rounds.polls import Polls
from tang_attest.service.tang.server_keys import ServerKeys
from tang_attest.service.upkeep.readiness import Readiness
from tang_attest.web import runner
from tang_attest.web.app import Site
from tang_attest.web.gate.limits import Limiter, RequestLimits
from tang_attest.web.monitoring import health
from tang_attest.web.monitoring.health import Health

if TYPE_CHECKING:
    from tang_attest.web.monitoring.metrics import Metrics

#: Seconds between two looks at what was left out and turned away.
_EVERY_S = 10

_log = structlog.get_logger("limits")


def make_limiter(settings: Settings) -> Limiter:
    """The limits of *settings*, for one worker."""
    return Limiter(
        RequestLimits(
            address_rate=settings.address_rate,
            device_rate=settings.device_rate,
            connections=settings.max_connections,
            address_connections=settings.address_connections,
            requests=settings.max_requests,
            exempt=settings.exempt_networks,
        )
    )


def bind_metrics(settings: Settings) -> list[list[socket.socket]]:
    """For each worker the sockets on which it shows its metrics: none when nobody asked."""
    addresses = [settings.metrics_address(worker) for worker in range(settings.workers)]
    return [
        [] if address is None else bind(*address, 1, "Setting metrics_listen")[0] for address in addresses
    ]


def observe(
    settings: Settings,
    store: Store,
    keys: ServerKeys,
    clock: Clock,
    limiter: Limiter,
    polls: Polls,
    refusals: Refusals,
) -> tuple[Health, Metrics | None]:
    """Who answers for this worker's health, and who counts, if anybody reads that."""
    readiness = Readiness(store, keys.usable)
    if settings.metrics_listen is None:
        return Health(readiness), None
    from tang_attest.web.monitoring.metrics import Metrics, Sources  # slow to load

    def seen() -> Awaitable[Mapping[str, int]]:
        return store.seen(clock.now())

    def held() -> int:
        return polls.count

    def left_out() -> int:
        return refusals.left_out

    sources = Sources(store.queues, seen, readiness.check, held, left_out, store.tampered)
    return Health(readiness), Metrics(limiter, sources)


def count_only(settings: Settings, limiter: Limiter) -> Metrics | None:
    """Who counts for a mere tangd."""
    if settings.metrics_listen is None:
        return None
    from tang_attest.web.monitoring.metrics import Metrics

    return Metrics(limiter, None)


def show_metrics(site: Site, sockets: Sequence[socket.socket]) -> AbstractAsyncContextManager[None]:
    """Show the metrics of *site* on *sockets*, for as long as the block runs."""
    if site.metrics is None or not sockets:
        return nullcontext()
    return runner.beside(health.make_app(site.metrics, site.health), sockets)


@asynccontextmanager
async def kept_refusals(store: Store, limiter: Limiter) -> AsyncIterator[Refusals]:
    """Refusals of which nothing is forgotten at a regular end."""
    refusals = Refusals(store, SystemClock())
    told = Counter[str]()

    async def look() -> None:
        await refusals.flush()
        if news := limiter.refused - told:
            told.update(news)
            _log.warning("limited", **{name.replace("-", "_"): count for name, count in news.items()})

    task = asyncio.create_task(again_and_again("refusals", _EVERY_S, look))
    try:
        yield refusals
    finally:
        task.cancel()
        with suppress(TangAttestError):  # the log has it
            await refusals.flush(everything=True)
