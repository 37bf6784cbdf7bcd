"""The periodic work of notifications in one worker; nothing without receivers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Final

from tang_attest.errors import TangAttestError
from tang_attest.ports.notices import NoticeKind, Occurrence
from tang_attest.server.chores import chore
from tang_attest.server.compose import Installation
from tang_attest.server.notify.receivers import console_address, receivers, server_name
from tang_attest.server.notify.watch import RecordCheck, ends_soon
from tang_attest.service.notifications.deliver import Deliveries
from tang_attest.service.notifications.follow import NoticeFollower
from tang_attest.service.notifications.message import compose

_EVERY_S: Final = 1.0
#: Seconds between two looks at certificates.
_CERTIFICATES_EVERY_S: Final = 600.0
_RECORD_EVERY_S: Final = 60.0

#: Makes messages of events that the audit record does not have.
Report = Callable[[Sequence[Occurrence]], Awaitable[None]]


@asynccontextmanager
async def notifying(installation: Installation) -> AsyncIterator[Report]:
    """Follow the audit record and deliver messages while the block runs."""
    settings, store, clock = installation.settings, installation.store, installation.world.clock
    known = receivers(settings)
    if not known:
        yield _nothing
        return
    wanted = {name: [NoticeKind(kind) for kind in each.events] for name, each in settings.notify.items()}
    composed = partial(compose, server=server_name(), url=console_address(settings))
    follower = NoticeFollower(store, clock, wanted, composed)
    deliveries = Deliveries(store, clock, known)

    async def look_at_certificates() -> None:
        await follower.report(await ends_soon(installation))

    async with AsyncExitStack() as stack:
        with suppress(TangAttestError):  # the first round begins otherwise
            await follower.begin()
            await look_at_certificates()
        stack.push_async_callback(deliveries.close)
        stack.enter_context(chore("notices", _EVERY_S, follower.round))
        stack.enter_context(chore("deliveries", _EVERY_S, deliveries.round))
        stack.enter_context(chore("certificates", _CERTIFICATES_EVERY_S, look_at_certificates))
        record = RecordCheck(installation, follower.report)
        stack.enter_context(chore("record", _RECORD_EVERY_S, record.round))
        yield follower.report


async def _nothing(_: Sequence[Occurrence]) -> None:
    """No receiver, no message."""
