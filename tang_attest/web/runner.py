"""Listening, and stopping without a failed request."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from aiohttp import HttpVersion10, HttpVersion11, web

from tang_attest.web.app import MAX_LINE, Answerer
from tang_attest.web.gate.connections import Connection, LimitedSite, answer_single, connection_of
from tang_attest.web.gate.limits import Limiter, RequestLimits
from tang_attest.web.problems import hide_server

#: Seconds that a request under way has to end once the server stops.
_PATIENCE_S: Final = 5
#: Seconds that a connection which was just taken, or is being heard, has for its first request when the server
#: stops.
_ARRIVING_S: Final = 1
#: Seconds in which the unwanted rest of a body is read, so that its sender sees the answer.
_LINGER_S: Final = 2
#: Seconds between two looks for connections without a request.
_LOOK_S: Final = 0.02
#: Seconds between two looks for connections whose time is over.
_SWEEP_S: Final = 1
#: Bytes of a connection that are read ahead.
_READ_AHEAD: Final = 16 * 1024


def handling(limits: RequestLimits) -> dict[str, Any]:
    """Return the options for aiohttp's handling of a connection, in the words of its RequestHandler."""
    return {
        "access_log": None,
        "auto_decompress": False,  # a body is what came; see bodies.check_encoding
        "max_line_size": MAX_LINE,
        "max_field_size": MAX_LINE,
        "keepalive_timeout": limits.idle_s,
        "tcp_keepalive": False,  # its first probe is due after hours; no wait for a client is as long
        "lingering_time": _LINGER_S,
        "read_bufsize": _READ_AHEAD,
    }


def server_of(answer: Answerer, **options: Any) -> web.Server:
    """Return aiohttp's server that gets each answer from *answer*, with *options* of :func:`handling`.

    aiohttp's application would find a route, middlewares and signals for each request; here each is one.
    """
    loop = asyncio.get_running_loop()

    def request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return _Request(_as_spoken(message), payload, protocol, writer, task, loop)

    return web.Server(answer, request_factory=request, **options)


def _as_spoken(message: Any) -> Any:
    """Return *message*, in a version of HTTP that this server speaks: the answer repeats it.

    Another version is the last of its connection, and so is HTTP/1.0 with chunks, whose framing is in doubt
    (RFC 9112, 6.1).
    """
    if message.version == HttpVersion11:
        return message
    if message.version != HttpVersion10:
        return message._replace(version=HttpVersion11, should_close=True)
    return message._replace(should_close=True) if message.chunked else message


class _Request(web.BaseRequest):
    """A request whose answer does not name the server."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        await hide_server(self, response)


async def run(
    app: Answerer,
    sockets: Sequence[socket.socket],
    tls: ssl.SSLContext | None,
    listening: Callable[[], None],
    stop: asyncio.Event,
    limiter: Limiter,
) -> None:
    """Answer on *sockets*, which listen, until *stop*; call *listening* once requests are answered."""
    async with _running(app, limiter) as (runner, options, under_way):
        sites = [LimitedSite(runner, listener, tls, limiter, options) for listener in sockets]
        for site in sites:
            await site.start()
        listening()
        await stop.wait()
        for site in sites:
            await site.stop()
        await _arrive(runner)
        await under_way.wait(_PATIENCE_S)


async def _arrive(runner: web.BaseRunner) -> None:
    """Wait for the first requests of connections that were taken just before: their clients may be about to
    send them, and no other process has these connections.  Older ones without a request are kept by clients
    in reserve, and by load balancers.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _ARRIVING_S
    while loop.time() < deadline and runner.server is not None:
        connections = runner.server.connections
        if not any(isinstance(each, Connection) and each.is_arriving(_ARRIVING_S) for each in connections):
            return
        await asyncio.sleep(_LOOK_S)


async def answer_one(app: Answerer, connection: socket.socket, limiter: Limiter) -> None:
    """Answer on *connection*, which is there already, until one side ends it."""
    async with _running(app, limiter) as (runner, options, _):
        await answer_single(runner, connection, limiter, options)


@asynccontextmanager
async def _running(
    app: Answerer | web.Application, limiter: Limiter
) -> AsyncIterator[tuple[web.BaseRunner, dict[str, Any], _UnderWay]]:
    """Yield a runner of *app*, its options, and the counter of requests under way."""
    options = handling(limiter.limits)
    runner: web.BaseRunner
    if isinstance(app, web.Application):
        runner = web.AppRunner(app, shutdown_timeout=_PATIENCE_S, **options)
    else:
        runner = web.ServerRunner(server_of(app, **options), shutdown_timeout=_PATIENCE_S)
    await runner.setup()
    under_way = _UnderWay()
    if (server := runner.server) is not None:
        server.request_handler = under_way.around(server.request_handler)
    sweep = asyncio.create_task(_sweep(limiter))
    try:
        yield runner, options, under_way
    finally:
        sweep.cancel()
        await runner.cleanup()


@asynccontextmanager
async def beside(app: web.Application, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
    """Answer for *app* on *sockets*, in the clear, for as long as the block runs."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        for listener in sockets:
            await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def guarded_beside(
    app: web.Application, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None, limiter: Limiter
) -> AsyncIterator[None]:
    """Answer for *app* on *sockets*, within the limits of *limiter*, for as long as the block runs."""
    async with _running(app, limiter) as (runner, options, _):
        sites = [LimitedSite(runner, listener, tls, limiter, options) for listener in sockets]
        for site in sites:
            await site.start()
        try:
            yield
        finally:
            for site in sites:
                await site.stop()


async def _sweep(limiter: Limiter) -> None:
    """End the connections whose clients let them wait: nothing else checks while an answer cannot be
    written.
    """
    while True:
        await asyncio.sleep(_SWEEP_S)
        limiter.end_overdue()


class _UnderWay:
    """Counts the requests that are being read or answered.

    aiohttp lets handlers end, but drops bytes that arrive meanwhile: a request whose body is on its way would
    fail.
    """

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def around(self, answer: Answerer) -> Answerer:
        """Return *answer*, with a request counted while it is handled."""

        async def counted(request: web.BaseRequest) -> web.StreamResponse:
            self._count += 1
            self._none.clear()
            connection = connection_of(request)
            if connection is not None:
                connection.begun()
            try:
                return await answer(request)
            finally:
                self._count -= 1
                if not self._count:
                    self._none.set()

        return counted

    async def wait(self, seconds: float) -> None:
        """Wait until no request is under way, or *seconds* have passed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), seconds)
