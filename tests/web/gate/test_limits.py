"""Limits of clients: each limit, its answer, and that it stops no other client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import socket
import sqlite3
import ssl
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from tang_attest.daemon.sockets import bind, port_of
from tang_attest.errors import Unavailable
from tang_attest.protocol.challenge import Purpose, make_nonce, milliseconds
from tang_attest.protocol.values.points import Point
from tang_attest.web import runner
from tang_attest.web.app import make_app
from tang_attest.web.gate.bodies import MAX_BODY
from tang_attest.web.gate.limits import ADDRESS_BURST_S, DEVICE_BURST_S, Limiter, RequestLimits, TokenBuckets
from tang_attest.web.gate.tls import server_context
from tests.attester import Attester, members
from tests.cli.installation.test_serve import self_signed
from tests.cli.serving import serving
from tests.cli.transcript import environment, run
from tests.server import Server, new_x

STRANGER = "127.0.0.2"
NO_RATES = RequestLimits(address_rate=0, device_rate=0)


class Time:
    """A monotonic clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@contextlib.asynccontextmanager
async def started(tmp_path: Path, **limits: Any) -> AsyncIterator[Server]:
    """A server with these limits, and no rates unless they are named.

    For a rate time stands still: on a busy machine a hundred requests would take longer than the bucket's refill.
    """
    server = Server(
        tmp_path / "state", limits=RequestLimits(**({"address_rate": 0, "device_rate": 0} | limits))
    )
    if {"address_rate", "device_rate"} & set(limits):
        server.limiter = Limiter(server.limiter.limits, clock=Time())
    async with server:
        yield server


async def ask(
    server: Server, target: str, body: object = None, *, source: str = STRANGER
) -> tuple[int, Any, Any]:
    """Status, body and headers of a POST from the address *source*."""
    connector = aiohttp.TCPConnector(local_addr=(source, 0))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(server.client.make_url(target), json=body or dict(members(new_x()))) as answer,
    ):
        return answer.status, await answer.json(content_type=None), answer.headers


async def until(condition: Callable[[], bool]) -> None:
    """Wait; the test's own time limit ends it."""
    while not condition():  # noqa: ASYNC110 - what changes is the server's
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def connected(
    port: int, source: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# --- buckets -----------------------------------------------------------------------------------------------------


def test_a_bucket_empties_and_fills() -> None:
    """As many at once as the rate gives in the burst's time; then one for each interval, and Retry-After is true."""
    time = Time()
    buckets = TokenBuckets(2, 3, clock=time)
    assert [buckets.take("a") for _ in range(6)] == [0] * 6
    wait = buckets.take("a")
    assert wait == pytest.approx(0.5)
    assert buckets.take("b") == 0
    time.now += wait
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0
    time.now += 1000
    assert [buckets.take("a") > 0 for _ in range(7)] == [False] * 6 + [True]


def test_buckets_are_as_many_as_they_are() -> None:
    """A stranger with all the addresses of the world costs what was set aside; who asked last is remembered."""
    buckets = TokenBuckets(1, 1, size=100, clock=Time())
    for number in range(10_000):
        buckets.take(str(number))
    assert len(buckets) == 100
    assert buckets.take("9999") > 0
    assert buckets.take("0") == 0


def test_a_bucket_keeps_no_word_of_a_stranger() -> None:
    """However long a kid is: 12,000 of 4 KB each cost less than 3 MB."""
    limiter = Limiter(RequestLimits(address_rate=0, device_rate=1), clock=Time())
    tracemalloc.start()
    for number in range(12_000):
        limiter.admit_about(f"{number:04000}", "192.0.2.1")
    assert tracemalloc.get_traced_memory()[0] < 3_000_000
    tracemalloc.stop()
    for _ in range(DEVICE_BURST_S - 1):
        limiter.admit_about(f"{7:04000}", "192.0.2.1")
    with pytest.raises(Unavailable, match="asks too often about this device"):
        limiter.admit_about(f"{7:04000}", "192.0.2.1")


def test_rate_zero_is_no_limit() -> None:
    """And nothing is remembered."""
    buckets = TokenBuckets(0, 1, clock=Time())
    assert {buckets.take("a") for _ in range(1000)} == {0}
    assert len(buckets) == 0


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_what_one_address_is(one: str, other: str, shared: bool) -> None:
    """A customer has a /64 of IPv6 at least; a socket for both families names IPv4 in IPv6."""
    limiter = Limiter(RequestLimits(address_rate=1), clock=Time())
    for _ in range(ADDRESS_BURST_S):
        limiter.admit(one)
    if shared:
        with pytest.raises(Unavailable, match="asks too often"):
            limiter.admit(other)
    else:
        limiter.admit(other)


def test_exempt_networks_and_unix_sockets_have_no_limit() -> None:
    """A proxy speaks for many."""
    limits = RequestLimits(address_rate=1, address_connections=1, exempt=(ip_network("192.0.2.0/24"),))
    limiter = Limiter(limits, clock=Time())
    for address in ("192.0.2.7", None):
        for _ in range(100):
            limiter.admit(address)
            limiter.admit_about("kid", address)
            limiter.connect(address)


def test_a_reboot_storm_behind_one_address_passes_by_default() -> None:
    """1,000 machines at the same moment: a connection and two requests each, then 100 s in which a quarter retries."""
    time = Time()
    limiter = Limiter(clock=time)
    for machine in range(1000):
        limiter.connect("192.0.2.1")
        for _ in range(2):
            limiter.admit("192.0.2.1")
            limiter.admit_about(f"kid {machine}", "192.0.2.1")
    for _ in range(100):
        time.now += 1
        for machine in range(250):
            limiter.admit("192.0.2.1")
            limiter.admit_about(f"kid {machine}", "192.0.2.1")
    assert not limiter.refused


# --- over the network --------------------------------------------------------------------------------------------


async def test_an_address_that_asks_too_often(tmp_path: Path, exchanges: list[Point]) -> None:
    """429, a code and Retry-After for it and nobody else; the audit record and the disk do not hear of it."""
    async with started(tmp_path, address_rate=1) as server:
        attester = Attester()
        kid = await server.enroll(attester)
        exchanges.clear()
        before = len(await server.store.audit.list_audit(limit=1000))
        statuses = [(await ask(server, f"/rec/{'A' * 43}"))[0] for _ in range(ADDRESS_BURST_S + 3)]
        assert statuses == [404] * ADDRESS_BURST_S + [429] * 3
        _, problem, headers = await ask(server, "/attest/enroll", {})
        assert problem["code"] == "too-many-requests"
        assert problem["action"].startswith("Ask again after the seconds")
        assert int(headers["Retry-After"]) >= 1
        assert server.limiter.refused == {"address": 4}
        assert len(await server.store.audit.list_audit(limit=1000)) == before
        assert exchanges == []
        assert (await server.unlock(attester, kid)).status == 200


async def test_a_stranger_does_not_lock_a_machine_out(tmp_path: Path) -> None:
    """A client that asks about a kid all the time is told to wait; the machine itself opens its disk meanwhile."""
    async with started(tmp_path, device_rate=1) as server:
        attester = Attester()
        kid, other = await server.enroll(attester), await server.enroll(Attester(), "pi-c")
        answers = [await ask(server, f"/rec/{kid}") for _ in range(33)]
        assert [status for status, _, _ in answers[:30]] == [401] * 30
        assert [status for status, _, _ in answers[31:]] == [429] * 2
        assert answers[-1][1]["code"] == "too-many-requests"
        assert (await ask(server, f"/attest/announce/{kid}", {}))[0] == 429
        assert (await ask(server, f"/attest/agent/{kid}", {}))[0] == 429
        assert (await ask(server, f"/rec/{other}"))[0] == 401
        assert (await server.unlock(attester, kid)).status == 200


async def test_too_much_work(tmp_path: Path, exchanges: list[Point]) -> None:
    """503 at once for who comes when as many are worked on as are allowed; then it goes on."""
    async with started(tmp_path, requests=1) as server:
        attester = Attester()
        kid = await server.enroll(attester)
        challenge = await server.challenge(kid)
        with server.limiter.work():
            answer = await server.unlock(attester, kid, challenge=challenge)
        assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, "unavailable", "1")
        assert exchanges == []
        assert (await server.unlock(attester, kid)).status == 200


@pytest.mark.parametrize("queue", ["finds", "_writes"])
async def test_a_full_queue(tmp_path: Path, exchanges: list[Point], queue: str) -> None:
    """Evidence that is good is answered 503 when there is no room to write it down, and nothing is released."""
    async with started(tmp_path) as server:
        attester = Attester()
        kid = await server.enroll(attester)
        challenge = await server.challenge(kid)
        getattr(server.store.decisions, queue)._queue_limit = 0
        server.store.decisions._recalled.forget(kid)  # or the key needs no look
        answer = await server.unlock(attester, kid, challenge=challenge)
        assert (answer.status, answer.code) == (503, "unavailable")
        assert exchanges == []


async def test_the_store_is_away(tmp_path: Path, exchanges: list[Point]) -> None:
    """503, and no exchange."""
    async with started(tmp_path) as server:
        attester = Attester()
        kid = await server.enroll(attester)
        challenge = await server.challenge(kid)
        await server.store.close()
        answer = await server.unlock(attester, kid, challenge=challenge)
        assert (answer.status, answer.code) == (503, "unavailable")
        assert exchanges == []


async def half_a_body(
    server: Server, length: int, sent: bytes = b"{", target: str = f"/rec/{'A' * 43}"
) -> tuple[asyncio.StreamReader, Any]:
    """A connection on which the first bytes of a body were sent."""
    reader, writer = await asyncio.open_connection(server.client.host, server.client.port)
    writer.write(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode() + sent)
    await writer.drain()
    return reader, writer


async def test_a_slow_body_is_cut(tmp_path: Path) -> None:
    """408, a code, and the connection is closed."""
    async with started(tmp_path, body_s=0.2) as server:
        reader, writer = await half_a_body(server, 1000)
        answer = await reader.read()  # to its end: it was closed
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request-slow"' in answer
        assert server.limiter.refused == {"slow": 1}
        writer.close()


async def test_too_many_bodies_on_their_way(tmp_path: Path) -> None:
    """One address may send half of all bytes at a time; more is 503."""
    async with started(tmp_path, bodies=4000, body_s=600) as server:
        _, first = await half_a_body(server, 2500, b"x" * 1900)
        await until(lambda: server.limiter.bodies == 1900)
        reader, second = await half_a_body(server, 2500, b"x" * 101)
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        assert server.limiter.refused == {"bodies": 1}
        for writer in (first, second):
            writer.close()
            await writer.wait_closed()
        await until(lambda: server.limiter.bodies == 0)
        assert not server.limiter.bodies_of


async def test_declared_sizes_hold_nothing(tmp_path: Path) -> None:
    """A hundred clients that promise the most and send a byte each take no room from an honest one."""
    async with started(tmp_path, bodies=MAX_BODY, body_s=600) as server:
        attester = Attester()
        kid = await server.enroll(attester)
        halves = [await half_a_body(server, MAX_BODY, target=f"/rec/{kid}") for _ in range(100)]
        await until(lambda: server.limiter.bodies == 100)
        assert (await server.unlock(attester, kid)).status == 200
        assert not server.limiter.refused
        for _, writer in halves:
            writer.close()
            await writer.wait_closed()
        await until(lambda: server.limiter.bodies == 0)


@contextlib.asynccontextmanager
async def listening(server: Server, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """*server* as ``serve`` runs it; its port."""
    [sockets] = bind("127.0.0.1", 0, 1)
    ready, stop = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(
        runner.run(make_app(server.site), sockets, tls, ready.set, stop, server.limiter)
    )
    await ready.wait()
    yield port_of(sockets[0])
    stop.set()
    await task


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_no_answer_waits_for_an_acknowledgment(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Every connection has TCP_NODELAY: without it the second of two answers waits 40 ms."""

    async def option() -> int:
        async with started(tmp_path) as server, listening(server) as port, connected(port):
            await until(lambda: server.limiter.connections == 1)
            [held] = server.limiter._held._all
            transport = getattr(held.cut, "__self__")  # noqa: B009 - a method of the transport
            accepted: socket.socket = transport.get_extra_info("socket")
            return accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    with asyncio.Runner(loop_factory=loop) as running:
        assert running.run(option()) == 1


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("sent", [0, 20], ids=["nothing yet", "a part"])
async def test_a_connection_that_was_just_taken_is_answered(tmp_path: Path, sent: int) -> None:
    """A server that stops has the connection alone, so it waits for the request that is about to come."""
    [sockets] = bind("127.0.0.1", 0, 1)
    ready, stop = asyncio.Event(), asyncio.Event()
    async with started(tmp_path) as server:
        running = asyncio.create_task(
            runner.run(make_app(server.site), sockets, None, ready.set, stop, server.limiter)
        )
        await ready.wait()
        async with connected(port_of(sockets[0])) as (reader, writer):
            await until(lambda: server.limiter.connections == 1)
            writer.write(HEALTH[:sent])
            stop.set()
            for _ in range(10):  # turns of the loop, in which it begins to stop
                await asyncio.sleep(0)
            writer.write(HEALTH[sent:])
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await running


async def test_a_connection_in_reserve_holds_up_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client has had the time for a request; another that is just being heard still has it."""
    monkeypatch.setattr(runner, "_ARRIVING_S", 200.0)
    [sockets] = bind("127.0.0.1", 0, 1)
    ready, stop = asyncio.Event(), asyncio.Event()
    async with started(tmp_path) as server:
        running = asyncio.create_task(
            runner.run(make_app(server.site), sockets, None, ready.set, stop, server.limiter)
        )
        await ready.wait()
        async with connected(port_of(sockets[0])), connected(port_of(sockets[0])) as (reader, writer):
            await until(lambda: server.limiter.connections == 2)
            for held in server.limiter._held._all:
                transport = getattr(held.cut, "__self__")  # noqa: B009 - a method of the transport
                transport.get_protocol()._heard_at -= 200
            writer.write(HEALTH[:20])
            await until(lambda: _is_heard(server))
            stop.set()
            for _ in range(10):  # turns of the loop, in which it begins to stop
                await asyncio.sleep(0)
            writer.write(HEALTH[20:])
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            await asyncio.wait_for(running, 100)


def _is_heard(server: Server) -> bool:
    """Return True once one of the connections was heard less than the patched time ago."""
    transports = [getattr(held.cut, "__self__") for held in server.limiter._held._all]  # noqa: B009 - as above
    return any(transport.get_protocol().is_arriving(100) for transport in transports)


async def test_connections_of_one_address(tmp_path: Path) -> None:
    """The one too many is told so and closed, others are not; when one goes, the next may come."""
    async with started(tmp_path, address_connections=2) as server, listening(server) as port, connected(port):
        async with connected(port):
            async with connected(port) as (reader, _):
                assert (await reader.read()).startswith(
                    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n"
                )
            async with connected(port, STRANGER) as (reader, writer):
                writer.write(HEALTH)
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        await until(lambda: server.limiter.connections == 1)
        async with connected(port) as (reader, writer):
            writer.write(HEALTH)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        assert server.limiter.refused == {"address-connections": 1}


async def test_when_full_who_holds_most_loses_the_oldest(tmp_path: Path) -> None:
    """A stranger who takes every connection pushes out connections of their own; everybody else gets in and stays."""
    async with (
        started(tmp_path, connections=6) as server,
        listening(server) as port,
        AsyncExitStack() as stack,
    ):
        strangers = [await stack.enter_async_context(connected(port, STRANGER)) for _ in range(4)]
        mine, _ = await stack.enter_async_context(connected(port))
        strangers.append(await stack.enter_async_context(connected(port, STRANGER)))
        await until(lambda: server.limiter.connections == 6)
        for number in range(3):
            reader, writer = await stack.enter_async_context(connected(port, f"127.0.0.{3 + number}"))
            writer.write(HEALTH)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            assert await ending(strangers[number][0]) == b""
            assert server.limiter.connections == 6
        assert not mine.at_eof()
        assert not strangers[-1][0].at_eof()
        assert server.limiter.refused == {"connections": 3}


async def test_when_full_a_request_that_is_worked_for_stays(tmp_path: Path) -> None:
    """Held requests of agents are not idle: the one too many is told 503."""
    async with started(tmp_path, connections=1) as server:
        attester = Attester()
        kid = await server.enroll(attester)
        ticket = make_nonce(
            server.secret.derive("nonce"), Purpose.POLL, kid, milliseconds(server.clock.now()), b"x" * 16
        )
        body = json.dumps({"ticket": ticket}).encode()
        async with listening(server) as port, connected(port) as (_, writer):
            writer.write(
                f"POST /attest/agent/{kid} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await until(lambda: server.polls.count == 1)
            async with connected(port, STRANGER) as (reader, _):
                assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
            assert server.polls.count == 1
            server.polls.close()


def test_whoever_holds_most_gives_way() -> None:
    """The address with most connections yields; a /64 is one; an exempt network only when nobody else can."""
    limits = RequestLimits(connections=9, exempt=(ip_network("192.0.2.0/24"),))
    time = Time()
    limiter, cut = Limiter(limits, clock=time), list[str]()
    for name in (
        "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4",
        "2001:db8::1", "2001:db8::2", "2001:db8::3", "198.51.100.1", "198.51.100.1",
    ):  # fmt: skip
        limiter.connect(name, partial(cut.append, name)).wait(10)
    for number in range(7):
        limiter.connect(f"203.0.113.{number}").work()
    assert cut[:3] == ["2001:db8::1", "2001:db8::2", "198.51.100.1"]
    assert sorted(cut[3:5]) == ["198.51.100.1", "2001:db8::3"]
    assert cut[5:] == ["192.0.2.1", "192.0.2.2"]
    time.now += 11
    limiter.end_overdue()
    assert cut[7:] == ["192.0.2.3", "192.0.2.4"]
    assert limiter.refused == {"connections": 7, "unread": 2}
    assert limiter.connections == 7


async def test_a_flood_of_an_address_is_not_read(tmp_path: Path) -> None:
    """A client that asks too often gets 429 when it connects, with a problem; an address beside it is served."""
    async with started(tmp_path, address_rate=1) as server, listening(server) as port:
        async with connected(port, STRANGER) as (reader, writer):
            writer.write(HEALTH * 50)
            answers = await ending(reader)
        assert answers.count(b"HTTP/1.1 200 ") == ADDRESS_BURST_S
        assert answers.count(b"HTTP/1.1 429 ") == 1
        async with connected(port, STRANGER) as (reader, _):
            answer = await ending(reader)
        assert answer.startswith(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: ")
        assert b'"code":"too-many-requests"' in answer
        async with connected(port, "127.0.0.3") as (reader, writer):
            writer.write(HEALTH)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("field", [b"A: " + b"x" * 16_000, b"A: x", b"A" * 200 + b":"])
async def test_heads_are_bounded(tmp_path: Path, field: bytes) -> None:
    """Sixteen KiB a field are no right to 128 of them: 431, a problem, and the end, after 20 KiB in all."""
    async with started(tmp_path) as server, listening(server) as port:
        async with connected(port) as (reader, writer):
            writer.write(b"GET /adv HTTP/1.1\r\nHost: x\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(20):
                    writer.write((field + b"\r\n") * 10)
                    await writer.drain()
                writer.write(b"y" * 100_000)
                await writer.drain()
            answer = await ending(reader)
        assert answer == b"" or answer[9:12] in (b"431", b"400")
        assert answer == b"" or b"application/problem+json" in answer
        assert server.limiter.connections == 0


async def test_what_comes_behind_a_request_is_bounded(tmp_path: Path) -> None:
    """Requests behind one that waits stay as bytes; a stranger who sends more than that is cut."""
    async with started(tmp_path, write_s=60) as server:
        attester = Attester()
        kid = await server.enroll(attester)
        ticket = make_nonce(
            server.secret.derive("nonce"), Purpose.POLL, kid, milliseconds(server.clock.now()), b"x" * 16
        )
        body = json.dumps({"ticket": ticket}).encode()
        async with listening(server) as port, connected(port) as (reader, writer):
            writer.write(
                f"POST /attest/agent/{kid} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            await until(lambda: server.polls.count == 1)
            head = b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 15_000 + b"\r\n\r\n"
            tracemalloc.start()
            for _ in range(400):  # six megabytes; the transport takes what the server does not
                writer.write(head)
            await asyncio.sleep(0.5)
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            assert held < 6_500_000 + 1_000_000  # unsent bytes of this client are in this process too
            server.polls.close()
            assert (await reader.readline()).startswith(b"HTTP/1.1 204 ")
            answers = b""
            while answers.count(b"HTTP/1.1 200 ") < 400:
                answers += (data := await reader.read(65536))
                assert data


async def test_who_never_reads_is_cut(tmp_path: Path) -> None:
    """A stranger asks and asks and reads nothing: the connection ends, and an honest one beside it does not."""
    async with (
        started(tmp_path, write_s=0.5, idle_s=600) as server,
        listening(server) as port,
        connected(port) as (mine, _),
    ):
        with socket.socket() as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stranger.bind((STRANGER, 0))
            stranger.connect(("127.0.0.1", port))
            stranger.setblocking(False)
            await until(lambda: server.limiter.connections == 2)
            requests = left = b"GET /admin/v1/openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100
            for _ in range(3000):
                try:
                    left = left[stranger.send(left) :] or requests
                except BlockingIOError:
                    await asyncio.sleep(0.005)
                except ConnectionError:
                    break
                if server.limiter.refused["unread"]:
                    break
            await until(lambda: server.limiter.connections == 1)
        assert server.limiter.refused["unread"] == 1
        assert not mine.at_eof()


async def ending(reader: asyncio.StreamReader) -> bytes:
    """Return everything until the end, however that is marked."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            received += data
    return received


@pytest.mark.parametrize(("said", "idle_s"), [(b"", 0.3), (b"GET /adv HT", 0.3), (HEALTH, 3)])
async def test_a_connection_that_says_nothing_is_closed(tmp_path: Path, said: bytes, idle_s: float) -> None:
    """Nothing at all, half a head, or no second request after one that had the time to come: it ends by itself."""
    async with started(tmp_path, idle_s=idle_s) as server, listening(server) as port:
        async with connected(port) as (reader, writer):
            writer.write(said)
            answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ") if said == HEALTH else answer == b""


async def test_handshakes_count_as_connections(tmp_path: Path) -> None:
    """One address cannot take every descriptor with handshakes that never come; when all is full, one of its own goes."""
    tls = server_context(*self_signed(tmp_path, "one"))
    limits = {"connections": 6, "address_connections": 4}
    async with (
        started(tmp_path, **limits) as server,
        listening(server, tls) as port,
        AsyncExitStack() as stack,
    ):
        silent = [await stack.enter_async_context(connected(port, STRANGER)) for _ in range(6)]
        await until(lambda: server.limiter.refused["address-connections"] == 2)
        assert server.limiter.connections == 4
        for reader, _ in silent[4:]:
            assert await ending(reader) == b""
        more = [await stack.enter_async_context(connected(port, "127.0.0.3")) for _ in range(4)]
        await until(lambda: server.limiter.refused["connections"] == 2)
        assert await ending(silent[0][0]) == b""
        assert not more[-1][0].at_eof()
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        writer.write(HEALTH)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()


async def test_a_handshake_that_does_not_come_is_cut(tmp_path: Path) -> None:
    """Over TLS a connection counts before its handshake, which has a time of its own."""
    tls = server_context(*self_signed(tmp_path, "one"))
    async with started(tmp_path, handshake_s=0.3) as server, listening(server, tls) as port:
        async with connected(port) as (reader, _):
            await until(lambda: server.limiter.connections == 1)
            assert await ending(reader) == b""
        await until(lambda: server.limiter.connections == 0)
        server.limiter.limits = replace(server.limiter.limits, handshake_s=60)  # an honest one has time
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        writer.write(HEALTH)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        assert server.limiter.connections == 1
        writer.close()
        await writer.wait_closed()


def test_limits_are_settings(tmp_path: Path) -> None:
    """A server that was told counts this host too, and stops it."""
    with environment():
        assert run("--state", str(tmp_path / "state"), "init")[2] == 0
    flags = ("--limit-exempt", "", "--address-rate", "1", "--address-connections", "4")
    with serving(tmp_path, *flags) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.settimeout(120)
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 11)
            received = b""
            while received.count(b"HTTP/1.1 ") < 11:
                received += connection.recv(65536)
        assert received.count(b"HTTP/1.1 200 ") == 10
        assert received.count(b"HTTP/1.1 429 ") == 1


# --- what a challenge costs --------------------------------------------------------------------------------------


def resident(pid: int) -> int:
    """Bytes of memory of the workers of the server *pid*."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = sum(int(Path(f"/proc/{child}/statm").read_text().split()[1]) for child in children)
    return pages * os.sysconf("SC_PAGE_SIZE")


def unsealed(database: Path) -> int:
    """Return the number of audit rows without a seal."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        query = "SELECT count(*) FROM audit WHERE id > (SELECT coalesce(max(last_id), 0) FROM audit_seal)"
        return int(connection.execute(query).fetchone()[0])


async def test_a_challenge_costs_nothing_that_stays(tmp_path: Path) -> None:
    """Thousands of challenges leave no row, not one changed byte on the disk, and no memory."""
    async with started(tmp_path) as server:
        kid = await server.enroll(Attester())
    body = json.dumps(dict(members(new_x()))).encode()
    request = f"POST /rec/{kid} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def disk() -> dict[str, str]:
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((tmp_path / "state").iterdir())
            if not path.name.endswith("-shm")  # SQLite's index of the log, which is memory
        }

    with (
        serving(tmp_path, "--log-level", "error") as process,
        socket.create_connection(("127.0.0.1", process.port)) as connection,
    ):
        connection.settimeout(120)

        def ask_for(count: int) -> None:
            for _ in range(count):
                connection.sendall(request)
                answer = b""
                while not answer.endswith(b"}"):
                    answer += connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 401 ")

        ask_for(1000)  # one-time initialization is done
        # The server's own sealer writes until every audit row has its seal, in more than one step on a busy machine.
        await until(lambda: not unsealed(tmp_path / "state" / "tang-attest.db"))
        before, memory = disk(), resident(process.process.pid)
        ask_for(4000)
        assert disk() == before
        assert resident(process.process.pid) - memory < 1_000_000  # 250 bytes for each would be as much
