"""Taking connections: counted, and ended when they say nothing."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final, cast

from aiohttp import web

from tang_attest.daemon.sockets import BACKLOG
from tang_attest.web.limits import Limiter

_NO_ROOM: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


class LimitedSite(web.BaseSite):
    """Takes the connections of *listener* for *runner*, as many as *limiter* allows."""

    def __init__(
        self,
        runner: web.BaseRunner,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        limiter: Limiter,
    ) -> None:
        super().__init__(runner)
        self._listener, self._tls, self._limiter = listener, tls, limiter

    @property
    def name(self) -> str:
        """Where it listens."""
        return str(self._listener.getsockname())

    async def start(self) -> None:
        """Listen."""
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner was not set up")
        handler = cast(Callable[[], asyncio.Protocol], server)
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Counted(handler, self._limiter),
            sock=self._listener,
            ssl=self._tls,
            backlog=BACKLOG,
            ssl_handshake_timeout=self._limiter.limits.handshake_s if self._tls else None,
        )


class _Counted(asyncio.Protocol):
    """What *make* makes, once the connection was counted; it hears everything that happens from then on."""

    __slots__ = ("_address", "_inner", "_limiter", "_make")

    def __init__(self, make: Callable[[], asyncio.Protocol], limiter: Limiter) -> None:
        self._make, self._limiter = make, limiter
        self._inner: asyncio.Protocol | None = None
        self._address: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        peer = transport.get_extra_info("peername")
        self._address = peer[0] if isinstance(peer, tuple) else None
        if self._limiter.connect(self._address):
            self._inner = self._make()
            self._inner.connection_made(transport)
            return
        cast(asyncio.Transport, transport).write(_NO_ROOM)
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._inner is not None:
            self._limiter.disconnect(self._address)
            self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._inner is None else self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()
