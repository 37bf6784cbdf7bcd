"""Listening, and stopping without a failed request."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from tang_attest.daemon.sockets import BACKLOG
from tang_attest.web.app import MAX_LINE

#: Seconds that a request under way has to end once the server was told to.
_PATIENCE_S: Final = 5
_KEEP_ALIVE_S: Final = 30


async def run(
    app: web.Application,
    sockets: Sequence[socket.socket],
    tls: ssl.SSLContext | None,
    listening: Callable[[], None],
    stop: asyncio.Event,
) -> None:
    """Answer on *sockets*, which listen, until *stop*; *listening* hears when requests are answered."""
    under_way = _UnderWay()
    app.middlewares.append(under_way.count)
    runner = web.AppRunner(
        app,
        access_log=None,
        max_line_size=MAX_LINE,
        max_field_size=MAX_LINE,
        keepalive_timeout=_KEEP_ALIVE_S,
        shutdown_timeout=_PATIENCE_S,
    )
    await runner.setup()
    try:
        sites = [web.SockSite(runner, listener, ssl_context=tls, backlog=BACKLOG) for listener in sockets]
        for site in sites:
            await site.start()
        listening()
        await stop.wait()
        for site in sites:
            await site.stop()
        await under_way.wait(_PATIENCE_S)
    finally:
        await runner.cleanup()


class _UnderWay:
    """The requests that are being read or answered.

    aiohttp lets handlers end, but throws away what arrives meanwhile: a request whose body is on its way would fail.
    """

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @property
    def count(self) -> Middleware:
        """A middleware that counts."""

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._count += 1
            self._none.clear()
            try:
                return await handler(request)
            finally:
                self._count -= 1
                if not self._count:
                    self._none.set()

        return middleware

    async def wait(self, seconds: float) -> None:
        """Until there is none, or *seconds* have passed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), seconds)
