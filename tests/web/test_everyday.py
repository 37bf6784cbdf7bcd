"""Everyday accidents of networks and clients are no defects: one line of log, nothing of ours in it, and nothing to alert.

A server as it is deployed (its own process, its own event loop) is sent each of the everyday's accidents.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tang_attest.web.gate.limits import RequestLimits
from tests.attester import Attester, members
from tests.cli.serving import PATIENCE_S, Serving, serving
from tests.server import Server, new_x

KID = "A" * 43
IDLE_S = RequestLimits().idle_s
POST = f"POST /rec/{KID} HTTP/1.1\r\nHost: t\r\n".encode()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the server's files."""
    return tmp_path_factory.mktemp("everyday")


@pytest.fixture(scope="module")
def known(directory: Path) -> str:
    """The key of a device."""
    import asyncio

    async def enroll() -> str:
        async with Server(directory / "state") as server:
            return await server.enroll(Attester())

    return asyncio.run(enroll())


@pytest.fixture(scope="module")
def server(directory: Path, known: str) -> Iterator[Serving]:
    """A server that shows its metrics."""
    assert known
    with serving(directory, "--metrics-listen", "127.0.0.1:0", "--log-format", "json") as running:
        yield running


def send(port: int, *parts: bytes, pause_s: float = 0.02, half: bool = False, hear: bool = False) -> bytes:
    """Send *parts*, then go away; *half* closes the client's side first, *hear* waits for what comes back."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            if half:
                connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionError):
            while (half or hear) and (data := connection.recv(65536)):
                received += data
        return received


#: Events that belong to no request; a failed handshake is told once in a while, beside the request that it looks like.
OF_THE_SERVER = ("listening", "limited", "audit-head", "handshake-failed")


def lines_of(server: Serving) -> list[dict[str, Any]]:
    """The log without what the server says of itself."""
    return [record for record in server.records() if record["event"] not in OF_THE_SERVER]


def settled(server: Serving, before: int) -> list[dict[str, Any]]:
    """The lines since the first *before*, once something was logged and nothing can follow."""
    deadline = time.monotonic() + PATIENCE_S
    while len(lines_of(server)) <= before or is_connected(server.port):
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.01)
    return lines_of(server)[before:]


def is_connected(port: int) -> bool:
    """Return True if the server at *port* has a connection, or one waits for it (proc(5): ESTABLISHED, CLOSE_WAIT)."""
    rows = Path("/proc/net/tcp").read_text()
    return re.search(rf"^ *\d+: \w+:{port:04X} \w+:\w+ (01|08) ", rows, re.MULTILINE) is not None


def alarming(server: Serving) -> list[str]:
    """The series that an alert of 5xx looks at."""
    [port] = server.listening()["metrics"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        assert "Server" not in answer.headers
        text = answer.read().decode()
    return re.findall(r'^tang_attest_requests_total\{.*status="5.*$', text, re.MULTILINE)


ACCIDENTS: dict[str, tuple[bytes, ...]] = {
    "hang-up in a body": (POST + b"Content-Length: 100\r\n\r\n{",),
    "hang-up before a body": (POST + b"Content-Length: 100\r\n\r\n",),
    "hang-up in a large body": (POST + b"Content-Length: 200000\r\n\r\n", b"x" * 50_000),
    "hang-up in chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b'5\r\n{"a":\r\n'),
    "hang-up within a chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"ff\r\n{"),
    "hang-up after asking first": (POST + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n",),
    "bad chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"zz\r\n"),
    "bad chunk at once": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",),
    "bad end of a chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n{x\r\n"),
    "huge chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"ffffffffffffffff\r\n{"),
    "bad gzip": (POST + b"Content-Encoding: gzip\r\nContent-Length: 7\r\n\r\nnotgzip",),
    "cut gzip": (POST + b"Content-Encoding: gzip\r\nContent-Length: 12\r\n\r\n" + gzip.compress(b"{}")[:12],),
    "br": (POST + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",),
    "zstd": (POST + b"Content-Encoding: zstd\r\nContent-Length: 2\r\n\r\n{}",),
    "encoded chunks": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"zz\r\n"),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n{}",),
    "length and chunks": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n{}",),
    "negative length": (POST + b"Content-Length: -3\r\n\r\n{}",),
    "huge length": (POST + b"Content-Length: 99999999999999999999999\r\n\r\n{}",),
    "no host": (b"GET /adv HTTP/1.1\r\n\r\n",),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",),
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n",),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",),
    "HTTP/9": (b"GET /adv HTTP/9.9\r\nHost: t\r\n\r\n",),
    "NUL in a field": (b"GET /adv HTTP/1.1\r\nHost: t\r\nA: \x00\r\n\r\n",),
    "bytes in a target": (b"GET /\xff\xfe HTTP/1.1\r\nHost: t\r\n\r\n",),
    "long target": (b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n",),
    "long head": (b"GET /adv HTTP/1.1\r\nHost: t\r\n" + (b"A: " + b"x" * 9_000 + b"\r\n") * 4,),
    "CONNECT": (b"CONNECT example.org:443 HTTP/1.1\r\nHost: t\r\n\r\n",),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: t\r\n\r\n",),
    "upgrade": (b"GET /adv HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",),
    "OPTIONS * that expects": (b"OPTIONS * HTTP/1.1\r\nHost: t\r\nExpect: the-unexpected\r\n\r\n",),
    "CONNECT that asks first": (
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\n\r\n",
    ),
    "unknown expectation": (POST + b"Content-Length: 2\r\nExpect: the-unexpected\r\n\r\n{}",),
    "HTTP/1.0 and gone": (b"POST /attest/enroll HTTP/1.0\r\nContent-Length: 50\r\n\r\n{",),
    "gone before the answer": (b"GET /adv HTTP/1.1\r\nHost: t\r\n\r\n" * 20,),
}
#: Requests to another host, and answered as such.
ANSWERED = (
    "OPTIONS *",
    "CONNECT",
    "CONNECT that asks first",
    "upgrade",
    "unknown expectation",
    "gone before the answer",
)


@pytest.mark.parametrize("hear", [False, True], ids=["gone", "waits"])
@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_is_a_line_and_no_defect(server: Serving, known: str, accident: str, hear: bool) -> None:
    """About a key that is unknown and one that is known: a line for each request, no traceback, no 5xx, and it goes on."""
    for kid in (KID, known):
        before = len(lines_of(server))
        parts = [part.replace(KID.encode(), kid.encode()) for part in ACCIDENTS[accident]]
        received = send(server.port, *parts, half=hear)
        told = settled(server, before)
        asked = b"".join(parts).count(b"GET /adv HTTP/1.1\r\nHost: t\r\n\r\n")
        # A client that is gone before it is heard leaves some of its questions unanswered.
        assert len(told) == asked or (len(told) < asked and not hear) or len(told) == 1, told
        for record in told:
            assert record["event"] == "request", record
            assert record["level"] == "info", record
            assert record["status"] < 500, record
            assert accident in ANSWERED or record["code"] in (
                "request-malformed",
                "request-too-large",
                "key-unknown",
                "encoding-unsupported",
            ), record
        assert b"Traceback" not in server.log.read_bytes()
        assert b"\r\nServer:" not in received
        if received and accident not in ANSWERED:
            head, _, body = received.partition(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 100 "):
                head, _, body = body.partition(b"\r\n\r\n")
            assert b"Content-Type: application/problem+json" in head, received
            assert json.loads(body)["code"]
    assert alarming(server) == []
    assert send(
        server.port, b"GET /adv HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n", hear=True
    ).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("count", [1, 3])
def test_a_client_that_closed_its_side_is_answered(server: Serving, known: str, count: int) -> None:
    """As tangd does: everything that was asked, then the end."""
    body = json.dumps(dict(members(new_x()))).encode()
    ask = f"POST /rec/{known} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    received = send(server.port, ask * count, half=True)
    assert received.count(b"HTTP/1.1 401 ") == count
    assert received.count(b'"code":"evidence-required"') == count


@pytest.mark.parametrize(
    "target", ["OPTIONS *", "OPTIONS /", "CONNECT example.org:443", "GET /adv", "TRACE /", "PRI *", "GET *"]
)
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n", "Expect: the-unexpected\r\n"])
def test_an_answered_half_closed_connection_ends_at_once(server: Serving, target: str, expect: str) -> None:
    """No idle time passes between the answer and the end, for any target."""
    began = time.monotonic()
    received = send(server.port, f"{target} HTTP/1.1\r\nHost: t\r\n{expect}\r\n".encode(), half=True)
    assert received.startswith(b"HTTP/1.1 ")
    assert time.monotonic() - began < IDLE_S / 2


def test_requests_one_after_another_and_in_pieces(server: Serving, known: str) -> None:
    """A connection is used for many, byte by byte, chunked or not, and in between a client asks first."""
    body = json.dumps(dict(members(new_x()))).encode()
    target = f"POST /rec/{known} HTTP/1.1\r\nHost: t\r\n".encode()
    plain = target + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunked = target + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    pieces = [bytes([byte]) for byte in plain] + [
        chunked,
        plain + chunked + plain,
        chunked[:100],
        chunked[100:],
    ]
    last = target + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    received = send(server.port, *pieces, last, pause_s=0.001, hear=True)
    assert received.count(b"HTTP/1.1 401 ") == 7
    assert received.count(b'"nonce":"') == 7
