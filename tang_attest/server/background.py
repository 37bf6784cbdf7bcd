"""The periodic work of a worker beside answering; it ends with the block that began it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import structlog

from tang_attest.errors import TangAttestError
from tang_attest.ports.store import Store
from tang_attest.server.chores import chore
from tang_attest.server.courier import SettingsCourier
from tang_attest.server.notify.work import notifying
from tang_attest.server.sealing import sealing
from tang_attest.server.site import Served
from tang_attest.service.audit.refusals import Refusals
from tang_attest.service.rounds.notify import Notify
from tang_attest.service.upkeep.forgetting import Forgetting
from tang_attest.web.gate.limits import Limiter

#: Seconds between two sweeps of nonces that expired long ago.
_PRUNE_EVERY_S: Final = 300
#: Seconds between two sweeps for silent machines, and between two deliveries of notifications.
_WATCH_EVERY_S: Final = 1.0
#: Seconds between two reports of refusals that were not recorded one by one, and of limited requests.
_REFUSALS_EVERY_S: Final = 10

_log = structlog.get_logger("serve")
_limits_log = structlog.get_logger("limits")


@asynccontextmanager
async def background(served: Served) -> AsyncIterator[None]:
    """Do the periodic work of *served* while the block runs.

    At the end of the block the counted refusals are written first, and every remaining row is sealed
    afterwards.
    """
    installation, store = served.installation, served.installation.store
    clock, settings = installation.world.clock, installation.settings
    async with AsyncExitStack() as stack:
        stack.enter_context(chore("sweep", _PRUNE_EVERY_S, Forgetting(store.decisions, clock).sweep))
        remembering = asyncio.create_task(_remember(store))
        stack.callback(remembering.cancel)
        report = await stack.enter_async_context(notifying(installation))
        await stack.enter_async_context(sealing(installation, report))
        stack.enter_context(chore("watching", _WATCH_EVERY_S, served.watching.sweep))
        notify = Notify(store, SettingsCourier(settings), clock)
        stack.enter_context(chore("watching", _WATCH_EVERY_S, notify.deliver))
        await stack.enter_async_context(_kept(served.refusals, served.site.limiter))
        yield


async def _remember(store: Store) -> None:
    """Learn from the audit record the versions that rows must have; a new process knows none."""
    try:
        await store.remember_versions()
    except TangAttestError as error:
        _log.warning("versions", code=error.code, sentence=error.sentence)


@asynccontextmanager
async def _kept(refusals: Refusals, limiter: Limiter) -> AsyncIterator[None]:
    """Write the counted *refusals* regularly and at the end, and log newly limited requests."""
    logged = Counter[str]()

    async def look() -> None:
        await refusals.flush()
        if news := limiter.refused - logged:
            logged.update(news)
            _limits_log.warning("limited", **{name.replace("-", "_"): count for name, count in news.items()})

    try:
        with chore("refusals", _REFUSALS_EVERY_S, look):
            yield
    finally:
        with suppress(TangAttestError):  # the log has it
            await refusals.flush(everything=True)
