"""An HTTP client for the load generator: one thread, epoll, and as little Python for each request as will do.

A client's acts are a generator: it yields requests and is sent the answers.  :func:`drive` runs many of
them at once, either with a connection for each request or with one connection for each client.  Over TLS every
connection has a whole handshake: each curl of clevis is a process of its own, so no two share a session.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
from collections.abc import Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

#: Seconds without any progress after which a server counts as dead.
_PATIENCE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A response."""

    status: int
    body: bytes


Client = Generator[bytes, Answer, None]


def request(method: str, target: str, body: bytes = b"") -> bytes:
    """A request as curl writes it: HTTP/1.1, without ``Connection: close``."""
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\nAccept: */*\r\n"
    if method == "POST":
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


@dataclass(slots=True)
class _Slot:
    client: Client
    connection: socket.socket
    #: Requests that wait for the connection.
    message: bytes
    received: bytearray = field(default_factory=bytearray)
    shaking: bool = False


class _Loop:
    """The connections of one :func:`drive`."""

    def __init__(self, port: int, keep_alive: bool, tls: bool) -> None:
        self._port, self._keep_alive = port, keep_alive
        self._context = trusting() if tls else None
        self._poll = select.epoll()
        self._slots: dict[int, _Slot] = {}

    def run(self, clients: Iterable[Client]) -> None:
        try:
            for client in clients:
                if (message := next(client, None)) is not None:
                    self._open(client, message)
            while self._slots:
                ready = self._poll.poll(_PATIENCE)
                if not ready:
                    raise RuntimeError(f"no answer in {_PATIENCE:.0f} s")
                for descriptor, events in ready:
                    slot = self._slots[descriptor]
                    if slot.message and events == select.EPOLLOUT:
                        self._connected(slot)
                    elif slot.shaking:
                        self._shake(slot)
                    else:
                        self._receive(slot)
        finally:
            for slot in self._slots.values():
                slot.connection.close()
            self._poll.close()

    def _open(self, client: Client, message: bytes) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        slot = _Slot(client, connection, message)
        self._slots[connection.fileno()] = slot
        # On loopback the connection is there at once, unless the listener's queue is full.
        if connection.connect_ex(("127.0.0.1", self._port)) == errno.EINPROGRESS:
            self._poll.register(connection, select.EPOLLOUT)
        else:
            self._poll.register(connection, select.EPOLLIN)
            self._begin(slot)

    def _connected(self, slot: _Slot) -> None:
        self._poll.modify(slot.connection, select.EPOLLIN)
        self._begin(slot)

    def _begin(self, slot: _Slot) -> None:
        if self._context is None:
            self._send(slot)
            return
        slot.connection = self._context.wrap_socket(slot.connection, do_handshake_on_connect=False)
        slot.shaking = True
        self._shake(slot)

    def _shake(self, slot: _Slot) -> None:
        try:
            slot.connection.do_handshake()  # type: ignore[attr-defined]  # an SSLSocket since _begin
        except ssl.SSLWantReadError:
            return
        slot.shaking = False
        self._send(slot)

    def _send(self, slot: _Slot) -> None:
        # A request is far smaller than the socket's buffer.
        slot.connection.sendall(slot.message)
        slot.message = b""

    def _receive(self, slot: _Slot) -> None:
        try:
            data = slot.connection.recv(65536)
        except ssl.SSLWantReadError:  # session tickets
            return
        slot.received += data
        answer = parse(slot.received)
        if answer is None:
            if not data:
                raise RuntimeError(
                    f"the connection was closed within an answer: {bytes(slot.received[:200])!r}"
                )
            return
        if not self._keep_alive:
            self._drop(slot)
        try:
            slot.message = slot.client.send(answer)
        except StopIteration:
            if self._keep_alive:
                self._drop(slot)
            return
        if self._keep_alive:
            slot.received.clear()
            self._send(slot)
        else:
            self._open(slot.client, slot.message)

    def _drop(self, slot: _Slot) -> None:
        self._poll.unregister(slot.connection)
        del self._slots[slot.connection.fileno()]
        if isinstance(slot.connection, ssl.SSLSocket):
            with suppress(OSError):  # says that it goes, as curl does, and does not wait for an answer
                slot.connection.unwrap()
        slot.connection.close()


def trusting() -> ssl.SSLContext:
    """Context of a TLS client that takes every certificate; signatures of handshakes are checked all the same."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def drive(port: int, clients: Iterable[Client], *, keep_alive: bool, tls: bool = False) -> None:
    """Run *clients* against 127.0.0.1:*port* until each of them has returned.

    Without *keep_alive* every request has a connection of its own, closed by the client as soon as it has the
    answer.  Raises :class:`RuntimeError` when an answer cannot be read or none comes.
    """
    _Loop(port, keep_alive, tls).run(clients)


def parse(received: bytearray) -> Answer | None:
    """The answer, if all of it is here."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(received[:end])
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    if len(received) < end + 4 + length:
        return None
    return Answer(int(head[9:12]), bytes(received[end + 4 : end + 4 + length]))


def ask(port: int, method: str, target: str, body: bytes = b"") -> Answer:
    """One request, one answer."""
    answers: list[Answer] = []

    def client() -> Client:
        answers.append((yield request(method, target, body)))

    drive(port, [client()], keep_alive=False)
    return answers[0]
