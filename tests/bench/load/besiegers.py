"""Strangers of the siege bench: each attack that was once carried out, at a rate of bytes that is its whole budget."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import resource
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from tests.attester import members
from tests.bench.load.client import trusting
from tests.server import new_x

#: Bytes that a connection without any costs its maker in packets, as it is counted here.
_CONNECTION: Final = 180
#: Connections that one attacker process keeps, so that it lives itself.
_KEPT: Final = 8000


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what anybody may know of it: its port, and the keys of its machines."""

    port: int
    kids: tuple[str, ...]
    tls: bool = False

    def context(self) -> ssl.SSLContext | None:
        """For a client that trusts whatever answers."""
        return trusting() if self.tls else None


class Besieger:
    """Connections from some addresses in turn, and a budget of bytes for all of them."""

    def __init__(self, target: Target, addresses: tuple[str, ...], bytes_per_s: float) -> None:
        self.target, self._addresses = target, itertools.cycle(addresses)
        self._bytes_per_s, self._free_at = bytes_per_s, 0.0
        self._kept: list[socket.socket] = []

    async def spend(self, size: int) -> None:
        """Wait until *size* bytes more may be sent."""
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now) + size / self._bytes_per_s
        await asyncio.sleep(self._free_at - now)

    async def connect(self) -> socket.socket:
        """A connection from the next address."""
        await self.spend(_CONNECTION)
        connection = socket.socket()
        connection.setblocking(False)
        connection.bind((next(self._addresses), 0))
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self.target.port))
        return connection

    async def send(self, connection: socket.socket, data: bytes) -> None:
        """Send *data*, piece by piece, as the budget allows."""
        for at in range(0, len(data), 8192):
            piece = data[at : at + 8192]
            await self.spend(len(piece))
            async with asyncio.timeout(5):
                await asyncio.get_running_loop().sock_sendall(connection, piece)

    async def ask(self, message: bytes) -> None:
        """One request on a connection of its own; its answer is read and thrown away."""
        connection = await self.connect()
        try:
            await self.send(connection, message)
            async with asyncio.timeout(15):
                await asyncio.get_running_loop().sock_recv(connection, 65536)
        finally:
            connection.close()

    def keep(self, connection: socket.socket) -> None:
        """Leave it open, for as long as the server does."""
        self._kept.append(connection)
        if len(self._kept) > _KEPT:
            self._kept.pop(0).close()


def _post(target: str, body: bytes, *fields: str, length: int | None = None) -> bytes:
    lines = [
        f"POST {target} HTTP/1.1",
        "Host: x",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, *fields, "", ""]).encode() + body


_POINT: Final = json.dumps(dict(members(new_x()))).encode()
_OBJECTS: Final = json.dumps({"changes": [{}] * 65_000}).encode()
_MEMBERS: Final = json.dumps({f"m{number}": 1 for number in range(20_000)}).encode()
_BOGUS: Final = dict.fromkeys(("quote", "signature", "pcrs"), "A" * 200) | {"nonce": "A" * 76}
_TINY: Final = b"GET /x HTTP/1.1\r\nHost:x\r\n\r\n"


async def _unpack(it: Besieger) -> None:
    await it.ask(
        _post(f"/attest/announce/{it.target.kids[0]}", gzip.compress(_OBJECTS), "Content-Encoding: gzip")
    )


async def _members(it: Besieger) -> None:
    await it.ask(_post(f"/attest/announce/{it.target.kids[0]}", _MEMBERS))


async def _enroll(it: Besieger) -> None:
    body = {"name": f"pi-{os.urandom(4).hex()}", "token": "A" * 43, "ak": "AAAA", "ek": "AAAA"}
    await it.ask(_post("/attest/enroll", json.dumps(body).encode()))


async def _unproven(it: Besieger) -> None:
    body = json.loads(_POINT) | {"attest": _BOGUS}
    await it.ask(_post(f"/rec/{it.target.kids[0]}", json.dumps(body).encode()))


async def _unknown(it: Besieger) -> None:
    await it.ask(_post(f"/rec/{os.urandom(1900).hex()}", _POINT))


async def _document(it: Besieger) -> None:
    await it.ask(b"GET /admin/v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")


async def _connections(it: Besieger) -> None:
    it.keep(await it.connect())


async def _idle(it: Besieger) -> None:
    connection = await it.connect()
    await it.send(connection, _TINY)
    it.keep(connection)


async def _declared(it: Besieger) -> None:
    connection = await it.connect()
    await it.send(connection, _post(f"/rec/{it.target.kids[0]}", b"{", length=256 * 1024))
    it.keep(connection)


async def _heads(it: Besieger) -> None:
    connection = await it.connect()
    try:
        await it.send(connection, b"GET / HTTP/1.1\r\n")
        for number in range(100):
            await it.send(connection, f"X-{number}: ".encode() + b"x" * 16_000 + b"\r\n")
    finally:
        it.keep(connection)


async def _pipelined(it: Besieger) -> None:
    connection = await it.connect()
    try:
        for _ in range(200):
            await it.send(connection, _TINY * 40)
    finally:
        it.keep(connection)


async def _unread(it: Besieger) -> None:
    connection = await it.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        for _ in range(200):
            await it.send(connection, b"GET /admin/v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
    finally:
        it.keep(connection)


async def _hello(it: Besieger) -> None:
    """A ClientHello, whose answer costs the server a signature, and nothing after it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = it.target.context()
    if context is None:
        raise RuntimeError("this attack is over TLS")
    client = context.wrap_bio(incoming, outgoing)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    connection = await it.connect()
    await it.send(connection, outgoing.read())
    it.keep(connection)


@dataclass(frozen=True, slots=True)
class Attack:
    """*once* is done again and again, by so many at a time."""

    what: str
    once: Callable[[Besieger], Coroutine[Any, Any, None]]
    at_a_time: int = 50


#: By their names in the JSON.
ATTACKS: Final[Mapping[str, Attack]] = {
    "unpack": Attack("gzip of 65,000 objects", _unpack),
    "members": Attack("20,000 members", _members, 4),
    "unknown": Attack("unknown keys of 4 KB", _unknown),
    "enroll": Attack("tokens that are none", _enroll),
    "unproven": Attack("evidence that is none", _unproven),
    "document": Attack("the OpenAPI document", _document),
    "tiny": Attack("tiny requests, pipelined", _pipelined, 8),
    "connections": Attack("connections that say nothing", _connections),
    "idle": Attack("one tiny request, then nothing", _idle),
    "declared": Attack("256 KiB declared, a byte sent", _declared),
    "heads": Attack("heads of 1.6 MB", _heads, 20),
    "unread": Attack("answers that nobody reads", _unread, 20),
    "handshakes": Attack("TLS: connections without a word", _connections),
    "hello": Attack("TLS: half a handshake", _hello),
}
#: Those at a server that speaks TLS.
OVER_TLS: Final = frozenset({"handshakes", "hello"})


async def _again(once: Callable[[Besieger], Awaitable[None]], it: Besieger) -> None:
    while True:
        try:
            await once(it)
        except (OSError, TimeoutError):
            await it.spend(_CONNECTION)  # the server has had enough of this one


async def _all(attack: Attack, it: Besieger) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(attack.at_a_time):
            group.create_task(_again(attack.once, it))


def besiege(name: str, target: Target, addresses: tuple[str, ...], bytes_per_s: float) -> None:
    """The process of the strangers; it is ended from outside."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * _KEPT), hard))
    asyncio.run(_all(ATTACKS[name], Besieger(target, addresses, bytes_per_s)))
