"""Acceptance of connections: counted before they cost anything, and ended when their client lets them wait.

Rules of this module:

* A connection is counted when it is taken, before a TLS handshake and before anything is read.
* One request of a connection is read and answered at a time.  Bytes behind it are kept unread, and are
  bounded.
* A client that has sent its request and closed its side still gets its answer, as with tangd.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, cast

import structlog
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader

from tang_attest.daemon.sockets import BACKLOG
from tang_attest.errors import Malformed, TangAttestError, Unavailable
from tang_attest.web.gate import handshakes
from tang_attest.web.gate.holdings import Held
from tang_attest.web.gate.limits import Limiter
from tang_attest.web.problems import raw_problem, status_of

#: Bytes of a request's head: the longest target that still gets tangd's 414, and as much for fields as curl
#: sends twenty times over.
MAX_HEAD: Final = 20 * 1024
_END_OF_HEAD: Final = b"\r\n\r\n"
#: Bytes behind a request that is being answered; an honest client sends the next request when it has the
#: answer.
_MAX_KEPT: Final = 256 * 1024
#: Seconds that TLS's close_notify may take.
_GOODBYE_S: Final = 2.0
#: Connections that are taken in a row before others have their turn.
_IN_A_ROW: Final = 64
#: Seconds after which a worker without descriptors tries again.
_SHORT_S: Final = 0.2

_log = structlog.get_logger("web")


class _SentAtOnce(BaseProtocol):
    """aiohttp's base of a handler, but for TCP_NODELAY, which an accepted connection has of its listener: set
    through a transport it costs three system calls and a socket object for each connection.
    """

    __slots__ = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self.transport = cast(asyncio.Transport, transport)


class Connection(web.RequestHandler, _SentAtOnce):
    """aiohttp's handler of a connection, with its client's time, heads and pipelining bounded."""

    __slots__ = (
        "_answered",
        "_ended",
        "_head",
        "_heard_at",
        "_held",
        "_kept",
        "_limiter",
        "_payload",
        "_seen",
    )

    def __init__(
        self,
        server: web.Server,
        limiter: Limiter,
        held: Held,
        options: Mapping[str, Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(server, loop=loop, **options)
        self._limiter, self._held = limiter, held
        self._answered = self._seen = self._head = 0
        self._payload: StreamReader | None = None
        self._kept, self._ended = b"", False
        self._heard_at = loop.time()

    # --- calls of the runner --------------------------------------------------------------------------------

    def is_arriving(self, seconds: float) -> bool:
        """Return True until a request came, if the connection or bytes of it came in the last *seconds*."""
        return not self._request_count and self._loop.time() - self._heard_at < seconds

    def begun(self) -> None:
        """Note that a request is being handled."""
        self._held.work()

    def reading(self) -> None:
        """Note that the body of the request is being read."""
        self._held.wait(self._limiter.limits.body_s + 1)

    # --- answers --------------------------------------------------------------------------------------------

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Write an answer within the time for it; every answer passes here, also one that aiohttp makes by
        itself.
        """
        if isinstance(resp, web.HTTPException):  # an ``Expect`` beside a target that is no path
            error = Malformed("request-malformed", "Nothing here meets this expectation.")
            self._say(error, resp.status, type(resp).__name__)
            raise ConnectionError
        self._held.wait(self._limiter.limits.write_s)
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._answered += 1
            self._wait_for_head()
            if self._kept or self._ended:
                self._loop.call_soon(self._go_on)

    # --- calls of the transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, in the clear or after the handshake."""
        self._held.cut = cast(asyncio.Transport, transport).abort
        self._wait_for_head()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give up the connection's place."""
        self._limiter.disconnect(self._held)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read a head or a body; keep bytes behind a request until that is answered."""
        if not data:  # aiohttp goes on with the bytes it has
            super().data_received(data)
            return
        if not self._seen:
            self._heard_at = self._loop.time()
            if handshakes.is_tls(data):
                handshakes.FAILED.note(self._held.address, handshakes.HTTPS_TO_HTTP)
        while data and not self._force_close:
            if self._kept or self._is_whole():
                self._keep(data)
                return
            expects_head = self._expects_head()
            size = self._next_size(data) if expects_head else MAX_HEAD
            self._feed(data[:size], expects_head=expects_head)
            data = data[size:]

    def resume_reading(self, *options: bool, **named: bool) -> None:
        """Go on after a body had too much unread; aiohttp calls it for every piece of a body that is taken."""
        if self._reading_paused:
            super().resume_reading(*options, **named)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio.Protocol's own
        """Keep the connection for an answer that is due (true); a body that is not whole will not be."""
        self._ended = True
        if self.transport is None or self.transport.get_extra_info("sslcontext") is not None:
            return None  # TLS has no half of a connection
        if self._payload is not None and not self._payload.is_eof():
            self._payload.set_exception(ConnectionResetError("the client hung up"))
        return self._request_count > self._answered

    # --- heads, bodies, and bytes behind them ---------------------------------------------------------------

    def _next_size(self, data: bytes) -> int:
        """Return the number of bytes of *data* to read on: to the end of a head, as far as that is the first
        one in there.
        """
        end = data.find(_END_OF_HEAD, 0, MAX_HEAD)
        return min(MAX_HEAD - self._head, end + len(_END_OF_HEAD) if end >= 0 else MAX_HEAD)

    def _expects_head(self) -> bool:
        return self._request_count == self._answered and (self._payload is None or self._payload.is_eof())

    def _is_whole(self) -> bool:
        """Return True when a whole request is here that was not answered yet."""
        return self._request_count > self._answered and self._payload is not None and self._payload.is_eof()

    def _feed(self, piece: bytes, *, expects_head: bool) -> None:
        payload = self._payload
        super().data_received(piece)
        if self._request_count > self._seen:
            if payload is not None and not payload.is_eof():
                # Bytes after a body that never ended are aiohttp's own word for chunks that cannot be read.
                payload.set_exception(ConnectionResetError("the chunks cannot be read"))
            self._seen, self._head = self._request_count, 0
            self._payload = self._messages[-1][1] if self._messages else None
        elif expects_head:
            self._head += len(piece)
            if self._head >= MAX_HEAD:
                error = Malformed("request-too-large", f"The head has more than {MAX_HEAD} bytes.")
                self._say(error, 431, "LineTooLong")
                self.force_close()

    def _keep(self, data: bytes) -> None:
        self._kept += data
        if self.transport is None:
            return
        if len(self._kept) > _MAX_KEPT:
            self.transport.abort()
        else:
            self.transport.pause_reading()

    def _go_on(self) -> None:
        """Take the bytes behind the request, whose answer is written."""
        if self.transport is None or self._request_count > self._answered:
            return
        kept, self._kept = self._kept, b""
        if kept:
            self.data_received(kept)
        if self._kept or self.transport is None:
            return
        if not self._ended:
            self.transport.resume_reading()
        elif self._request_count == self._answered:
            self.force_close()

    def _wait_for_head(self) -> None:
        # aiohttp closes an idle connection first; a second later it is cut.
        self._held.wait(self._limiter.limits.idle_s + 1)

    # --- errors ---------------------------------------------------------------------------------------------

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that aiohttp cannot read, or that a defect left unanswered, and end the
        connection.
        """
        del request, message  # bytes of any client
        if isinstance(exc, ConnectionError):
            raise exc  # of ours, below: the answer is sent already
        if status >= 500:
            _log.error("defect", exc_info=exc)
            self._write(Unavailable("internal", "The server failed to handle the request."), status)
        else:
            error = Malformed("request-malformed", "This is no HTTP that can be read.")
            self._say(error, status, type(exc).__name__)
        raise ConnectionError

    def _say(self, error: TangAttestError, status: int, cause: str) -> None:
        """Answer and log a request that no handler sees; an address over its limit is not logged."""
        level = _log.info
        try:
            self._limiter.admit(self._held.address)
        except Unavailable as refusal:
            level, error, status = _log.debug, refusal, status_of(refusal)
        level("request", address=self._held.address, status=status, code=error.code, cause=cause)
        self._write(error, status)

    def _write(self, error: TangAttestError, status: int) -> None:
        self._limiter.unhandled[status, error.code] += 1
        if self.transport is not None:
            self.transport.write(raw_problem(error, status))


def _send_at_once(socket_: socket.socket) -> None:
    """Let no answer wait for an acknowledgment (TCP_NODELAY).  Accepted connections inherit it (Linux)."""
    if socket_.family in (socket.AF_INET, socket.AF_INET6):
        socket_.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


#: Returns the handler of a connection that was counted.
_Make = Callable[[Held], Connection]


class LimitedSite(web.BaseSite):
    """Takes the connections of *listener* for *runner*, as many as *limiter* allows."""

    def __init__(
        self,
        runner: web.BaseRunner,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        limiter: Limiter,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__(runner)
        self._listener, self._tls, self._limiter, self._options = listener, tls, limiter, options
        self._accepting: _Accepting | None = None

    @property
    def name(self) -> str:
        """Return the address of the listener."""
        return str(self._listener.getsockname())

    async def start(self) -> None:
        """Begin to listen."""
        await super().start()
        server, loop = self._runner.server, asyncio.get_running_loop()
        if server is None:
            raise RuntimeError("the runner was not set up")

        def make(held: Held) -> Connection:
            return Connection(server, self._limiter, held, self._options, loop)

        _send_at_once(self._listener)
        if self._tls is not None:
            self._accepting = _Accepting(self._listener, self._tls, self._limiter, make)
            self._accepting.start()
            return
        self._server = await loop.create_server(
            lambda: _Gate(make, self._limiter), sock=self._listener, backlog=BACKLOG
        )

    async def stop(self) -> None:
        """Stop listening."""
        if self._accepting is not None:
            self._accepting.stop()
        await super().stop()


class _Single(Connection):
    """The only connection of a process; ``lost`` is set at its end."""

    __slots__ = ("lost",)

    lost: asyncio.Event

    def connection_lost(self, exc: BaseException | None) -> None:
        """Note the end of the connection."""
        super().connection_lost(exc)
        self.lost.set()


async def answer_single(
    runner: web.BaseRunner, connection: socket.socket, limiter: Limiter, options: Mapping[str, Any]
) -> None:
    """Answer on *connection*, in the clear, until one side ends it."""
    server, loop, lost = runner.server, asyncio.get_running_loop(), asyncio.Event()
    if server is None:
        raise RuntimeError("the runner was not set up")

    def make(held: Held) -> Connection:
        single = _Single(server, limiter, held, options, loop)
        single.lost = lost
        return single

    _send_at_once(connection)
    await loop.connect_accepted_socket(lambda: _Gate(make, limiter), connection)
    await lost.wait()


class _Gate(asyncio.Protocol):
    """Takes a connection in the clear: counts it, and hands it on, or answers that there is no room."""

    __slots__ = ("_limiter", "_make")

    def __init__(self, make: _Make, limiter: Limiter) -> None:
        self._make, self._limiter = make, limiter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        tcp = cast(asyncio.Transport, transport)
        peer = tcp.get_extra_info("peername")
        try:
            held = self._limiter.connect(peer[0] if isinstance(peer, tuple) else None, tcp.abort)
        except Unavailable as refusal:
            tcp.write(raw_problem(refusal))
            tcp.close()
            return
        connection = self._make(held)
        tcp.set_protocol(connection)
        connection.connection_made(tcp)


class _Accepting:
    """Takes connections for TLS.

    The event loop's own servers report a connection after its handshake, and never one whose handshake does
    not end.
    """

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext, limiter: Limiter, make: _Make) -> None:
        self._listener, self._tls, self._limiter, self._make = listener, tls, limiter, make
        self._handshakes: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to take connections."""
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def stop(self) -> None:
        """Stop taking connections, and end the handshakes that are under way."""
        if self._again is not None:
            self._again.cancel()
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        for task in self._handshakes:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_IN_A_ROW):
            try:
                connection, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    self._rest()
                return
            self._begin(connection, peer[0] if isinstance(peer, tuple) else None)

    def _rest(self) -> None:
        """Make room when no descriptor is left, and try again in a moment."""
        self._limiter.make_room()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._again = loop.call_later(_SHORT_S, self.start)

    def _begin(self, connection: socket.socket, address: str | None) -> None:
        try:
            held = self._limiter.connect(address, partial(_hang_up, connection))
        except Unavailable:
            connection.close()
            return
        held.wait(self._limiter.limits.handshake_s + 1)
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._shake_hands(connection, held))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, held: Held) -> None:
        connect: Callable[..., Awaitable[object]] = asyncio.get_running_loop().connect_accepted_socket
        try:
            await connect(
                lambda: self._make(held),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._limiter.limits.handshake_s,
                ssl_shutdown_timeout=_GOODBYE_S,
            )
        except (OSError, asyncio.CancelledError) as error:  # ssl.SSLError is an OSError
            self._limiter.disconnect(held)
            if isinstance(error, ssl.SSLError):
                handshakes.FAILED.note(held.address, handshakes.reason_of(error))
            connection.close()
            if isinstance(error, asyncio.CancelledError):
                raise


def _hang_up(connection: socket.socket) -> None:
    """End a handshake; the task that waits for its bytes sees the end."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it is gone


def connection_of(request: web.BaseRequest) -> Connection | None:
    """Return the connection of *request*; ``None`` on a listener that is not limited."""
    protocol = request.protocol
    return protocol if isinstance(protocol, Connection) else None
