"""A server that misbehaves in the way that the first part of the path names: ``http://127.0.0.1:PORT/hang``.

It knows no keys.  GET is answered with 503, so that a configuration may list it beside a real server.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

NONCE = "n" * 32
SELECTION = "sha256:0,2,4,7"
#: Sequences that a terminal would obey: colors, a title, a cleared screen (also as a C1 control), a carriage return.
ESCAPES = "\x1b[31m\x1b]0;owned\x07\x1b[2J\u009b2J\rPCR\x7f\x08"

_POINT = "A" * 88


def answer(status: int, body: bytes, kind: str = "application/problem+json", *headers: str) -> bytes:
    """A whole HTTP response."""
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def problem(status: int, code: str, **members: object) -> bytes:
    """A problem."""
    body = {"status": status, "code": code, "detail": "It happened.", "action": "Do something.", **members}
    return answer(status, json.dumps(body).encode())


def challenge(**changes: object) -> bytes:
    """A 401, with *changes* to its challenge."""
    wanted = {"nonce": NONCE, "selection": SELECTION, "expires_in": 120, "evidence": ["quote"]}
    return problem(401, "evidence-required", challenge=wanted | changes)


def announce(**changes: object) -> bytes:
    """A 200 with the challenge of an announcement."""
    wanted = {"nonce": NONCE, "selection": SELECTION, "expires_in": 120, "evidence": ["quote"], "cap_pcr": 15}
    return answer(200, json.dumps(wanted | changes).encode())


def reply(**changes: object) -> bytes:
    """A 200 with something like Y."""
    key = {"alg": "ECMR", "crv": "P-521", "kty": "EC", "x": _POINT, "y": _POINT}
    return answer(200, json.dumps(key | changes).encode(), "application/jwk+json")


def _after_evidence(last: bytes) -> Callable[[bool], bytes]:
    return lambda proved: last if proved else challenge()


#: Answer of each path to a POST; the argument is True if the request holds evidence.
ANSWERS: dict[str, Callable[[bool], bytes]] = {
    "redirect": lambda _: answer(302, b"", "text/html", "Location: http://127.0.0.1:1/"),
    "garbage": lambda _: b"\x00\xff\x1b[2Jnot HTTP\r\n\r\n",
    "not-json": lambda _: answer(401, b"<html>" + ESCAPES.encode()),
    "close": lambda _: b"",
    "short": lambda _: answer(200, b"x" * 100)[:-50],
    "plain-404": lambda _: answer(404, b"", "text/html"),
    "busy": lambda _: answer(503, b"", "text/html", "Retry-After: 7"),
    "too-many": lambda _: problem(429, "unavailable"),
    "unknown": lambda _: problem(404, "key-unknown"),
    "no-challenge": lambda _: problem(401, "evidence-required"),
    "nonce-command": lambda _: challenge(nonce="$(touch /tmp/owned)aaaaaaaaaaaaaaaa"),
    "nonce-line": lambda _: challenge(nonce="aaaaaaaaaaaaaaaaaaaa\nbbbbbbbbbbbbbbb"),
    "selection-option": lambda _: challenge(selection="sha256:0 -c 0x81010001"),
    "selection-sha1": lambda _: challenge(selection="sha1:0"),
    "selection-list": lambda _: challenge(selection=["sha256:0"]),
    "announce-command": lambda _: announce(nonce="$(touch /tmp/owned)aaaaaaaaaaaaaaaa"),
    "announce-cap": lambda _: announce(cap_pcr="a[$(touch /tmp/owned)]"),
    "announce-sha1": lambda _: announce(selection="sha1:0"),
    "always-expired": lambda _: problem(
        401, "nonce-expired", challenge={"nonce": NONCE, "selection": SELECTION, "evidence": ["quote"]}
    ),
    "escapes": _after_evidence(problem(403, "pcr-mismatch", detail=ESCAPES * 30, action=ESCAPES, pcrs=[4, 7])),
    "other-curve": _after_evidence(reply(crv="P-256")),
    "not-a-point": _after_evidence(reply()),
    "injection": _after_evidence(reply(x='","d":"AAAA", "x":"AAAA')),
    "private": _after_evidence(reply(d=_POINT)),
}  # fmt: skip


@dataclass
class OddServer:
    """One that gives every POST the same bytes, which a test may change; the argument is that of ``ANSWERS``."""

    url: str = ""
    says: Callable[[bool], bytes] = lambda _: b""
    gets: bytes = field(default_factory=lambda: answer(503, b"", "text/html"))
    #: Bodies of the POSTs.
    posted: list[bytes] = field(default_factory=list)

    def serve(self, connection: socket.socket, _stop: threading.Event) -> None:
        """Answer one request."""
        with connection, contextlib.suppress(OSError):
            head, body = _read(connection)
            posted = head.startswith(b"POST")
            if posted:
                self.posted.append(body)
            connection.sendall(self.says(b'"attest"' in body) if posted else self.gets)


@contextmanager
def odd_server() -> Iterator[OddServer]:
    """Yields the server while it runs."""
    server = OddServer()
    with _listening(server.serve) as server.url:
        yield server


@contextmanager
def bad_server() -> Iterator[str]:
    """Yields the URL that the paths are appended to."""
    with _listening(_serve) as url:
        yield url


@contextmanager
def _listening(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop = threading.Event()
        threading.Thread(target=_accept, args=(listener, serve, stop), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()


def _accept(
    listener: socket.socket, serve: Callable[[socket.socket, threading.Event], None], stop: threading.Event
) -> None:
    while not stop.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(connection, stop), daemon=True).start()


def _serve(connection: socket.socket, stop: threading.Event) -> None:
    with connection, contextlib.suppress(OSError):
        head, body = _read(connection)
        if not head.startswith(b"POST"):
            connection.sendall(answer(503, b"", "text/html"))
            return
        mode = head.split(b"/", 2)[1].decode()
        if mode == "hang":
            stop.wait(120)
        elif mode == "trickle":
            _trickle(connection, stop)
        elif mode == "huge":
            connection.sendall(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n")
            while not stop.is_set():
                connection.sendall(b"x" * 65536)
        else:
            connection.sendall(ANSWERS[mode](b'"attest"' in body))


def _trickle(connection: socket.socket, stop: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n")
    while not stop.is_set():
        connection.sendall(b"x")
        time.sleep(0.2)


def _read(connection: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or b"\r\n\r\n"
    head, body = data.split(b"\r\n\r\n", 1)
    length = next(
        (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length and (more := connection.recv(65536)):
        body += more
    return head, body
