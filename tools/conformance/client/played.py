"""A server that is played: one listener, and an address with a behavior of its own for each first part of a path."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final

_MAX_BODY: Final = 1024 * 1024


@dataclass(frozen=True)
class Seen:
    """A request: the address that it was for, and the rest of its path."""

    method: str
    address: str
    path: str
    headers: Mapping[str, str]
    _: KW_ONLY
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        """The body as JSON.  Raises ValueError."""
        return json.loads(self.body)


#: A behavior: from a request to the bytes that are sent before the connection is closed.
Behavior = Callable[[Seen], bytes]


def reply(status: int, body: bytes, kind: str, **headers: str) -> bytes:
    """Return a whole HTTP response; the names of *headers* have underscores for hyphens."""
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def problem(status: int, code: str, /, **members: Any) -> bytes:
    """Return a problem of section 6; *members* are added, and those that are None left out."""
    body = {
        "type": f"urn:tang-attest:{code}",
        "title": "Refused",
        "status": status,
        "code": code,
        "detail": "It happened.",
        "action": "Do something.",
        "request_id": "0" * 16,
    } | members
    kept = {name: value for name, value in body.items() if value is not None}
    return reply(status, json.dumps(kept).encode(), "application/problem+json", WWW_Authenticate="TPM2-Quote")


def answer(status: int, value: Any, kind: str = "application/json") -> bytes:
    """Return JSON."""
    return reply(status, json.dumps(value).encode(), kind)


@dataclass
class Played:
    """The listener's URL, its behaviors by address, and the requests that came."""

    url: str = ""
    behaviors: dict[str, Behavior] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def respond(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """Return the response to a request."""
        _, address, rest = f"{target}//".split("/", 2)
        seen = Seen(method, address, "/" + rest.rstrip("/"), headers, body=body, at=time.monotonic())
        self.seen.append(seen)
        behavior = self.behaviors.get(address)
        return behavior(seen) if behavior else reply(404, b"", "text/plain")


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        request = self.rfile.readline(65536).decode("latin-1").split()
        if len(request) != 3:
            return
        headers: dict[str, str] = {}
        while (line := self.rfile.readline(65536).strip()) and len(headers) < 100:
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self.rfile.read(min(int(headers.get("content-length", "0")), _MAX_BODY))
        played: Played = self.server.played  # type: ignore[attr-defined]  # set below
        try:
            self.wfile.write(played.respond(request[0], request[1], headers, body))
        except OSError:
            return


@contextmanager
def listening() -> Iterator[Played]:
    """Yield the server while it listens on loopback."""
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        played = Played(f"http://127.0.0.1:{server.server_address[1]}")
        server.played = played  # type: ignore[attr-defined]  # for the handler
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield played
        finally:
            server.shutdown()
            thread.join()
