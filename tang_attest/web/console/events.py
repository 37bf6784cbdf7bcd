"""Live events: a page hears that something changed, and loads itself again.

An event says *that*, never *what*: the page that follows is made for its visitor like every other.  One task
in each worker looks at the newest rows while a page listens, so ten pages cost as much as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import structlog
from aiohttp import ClientConnectionResetError, web

from tang_attest.errors import TangAttestError, Unavailable
from tang_attest.ports.attention import ChangeMark
from tang_attest.web.console.desk import Desk
from tang_attest.web.console.guard import Visit, session_of
from tang_attest.web.tasks import running

#: Streams of one worker; each is an open connection.
MAX_STREAMS: Final = 64
#: Seconds between two looks at the newest rows, and between two signs of life.
LOOK_S: Final = 1.0
PING_S: Final = 15.0
#: Rows that are read to learn which machines an event is about; more are about every machine.
_MOST_ROWS: Final = 500

_CHANGED: Final = b"event: changed\ndata: 1\n\n"
_PING: Final = b": ping\n\n"

_log = structlog.get_logger("console")


@dataclass(eq=False, slots=True)
class _Stream:
    """One listening page; ``machine`` limits it to events about that device."""

    machine: str | None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class LiveEvents:
    """The streams of one worker."""

    def __init__(self, desk: Desk) -> None:
        self._desk, self._look_s, self._ping_s = desk, LOOK_S, PING_S
        self._streams: set[_Stream] = set()
        self._mark: ChangeMark | None = None
        self._closed = False

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look for changes while the block runs."""
        async with running(self._watch()):
            yield

    async def close(self, _app: web.Application | None = None) -> None:
        """End every stream: aiohttp would wait for them when the server stops."""
        self._closed = True
        for stream in self._streams:
            stream.changed.set()

    async def answer(self, _desk: Desk, visit: Visit) -> web.StreamResponse:
        """Send events until the visitor goes, their session ends, or the server stops.  Raises ``unavailable``."""
        if self._closed or len(self._streams) >= MAX_STREAMS:
            raise Unavailable("unavailable", "Too many pages listen for events.", retry_after=5)
        stream = _Stream(visit.request.query.get("machine"))
        stream.changed.set()  # something may have happened since the page was made
        self._streams.add(stream)
        response = web.StreamResponse(headers={"X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        try:
            if self._mark is None:  # the first stream; what happens from now on is news
                await self.look()
            await response.prepare(visit.request)
            await self._send(visit.request, response, stream)
        except (ClientConnectionResetError, ConnectionResetError):
            pass  # a closed page shows at the next write
        finally:
            self._streams.discard(stream)
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, stream: _Stream) -> None:
        await response.write(b"retry: 3000\n\n")
        while not self._closed:
            with suppress(TimeoutError):
                await asyncio.wait_for(stream.changed.wait(), self._ping_s)
            piece = _CHANGED if stream.changed.is_set() else _PING
            stream.changed.clear()
            if await self._is_over(request):
                return
            await response.write(piece)

    async def _is_over(self, request: web.Request) -> bool:
        """Return True when the session of a stream has ended; without a database nobody knows."""
        try:
            return await session_of(request, self._desk.sign_in, used=False) is None
        except TangAttestError:
            return False

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            if not self._streams:
                self._mark = None
                continue
            try:
                await self.look()
            except TangAttestError as error:
                _log.warning("events", code=error.code, sentence=error.sentence)

    async def look(self) -> None:
        """Wake the streams that are about what changed since the last look."""
        attention, known = self._desk.store.attention, self._mark
        self._mark = await attention.change_mark()
        if known is None or known == self._mark:
            return
        devices = await attention.changed_devices(known, _MOST_ROWS)
        # As many rows as were asked for may not be all.
        every = self._mark.audit - known.audit >= _MOST_ROWS
        for stream in self._streams:
            if every or stream.machine is None or stream.machine in devices:
                stream.changed.set()
