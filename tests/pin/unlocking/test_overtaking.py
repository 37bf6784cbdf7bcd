"""Disks of one machine that are opened at once: the quote that was made first arrives second."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import SECRET, Machine

pytestmark = pytest.mark.slow


class SlowLink:
    """Passes requests on to a server; evidence waits here until it is let go."""

    def __init__(self, port: int) -> None:
        self.held, self.go = threading.Event(), threading.Event()
        link = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Nothing."""

            def do_GET(self) -> None:
                self._pass_on(b"")

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if b'"attest"' in body:
                    link.held.set()
                    assert link.go.wait(120)
                self._pass_on(body)

            def _pass_on(self, body: bytes) -> None:
                server = http.client.HTTPConnection("127.0.0.1", port)
                server.request(self.command, self.path, body)
                answer = server.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Type", str(answer.headers["Content-Type"]))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                server.close()

        self._listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Let go, and listen no more."""
        self.go.set()
        self._listener.shutdown()
        self._listener.server_close()


@pytest.fixture
def link(server: Server) -> Iterator[SlowLink]:
    """A slow way to the server."""
    link = SlowLink(server.port)
    yield link
    link.close()


def test_the_quote_that_was_made_first_arrives_second(
    machine: Machine, jwe: bytes, server: Server, name: str, link: SlowLink
) -> None:
    """Both disks open, and the record has nothing odd."""
    slow = machine.encrypt(url=link.url, name=name)
    with ThreadPoolExecutor(1) as background:
        first = background.submit(machine.decrypt, slow)
        assert link.held.wait(120), "the first quote did not come"
        assert machine.decrypt(jwe).stdout == SECRET
        link.go.set()
        assert first.result().stdout == SECRET
    record = json.loads(server.operator.run("audit", "--device", name, "--json"))
    assert {entry["code"] for entry in record} == {"ok"}


def test_two_attest_children_of_one_sss_open_always(
    machine: Machine, jwe: bytes, server: Server, name: str
) -> None:
    """Sss runs its pins at once; a third of such boots ended at the passphrase."""
    pins = {"attest": [{"url": server.url, "name": name}] * 2}
    both = machine.run("clevis", "encrypt", "sss", json.dumps({"t": 2, "pins": pins}), "-y", stdin=SECRET)
    assert both.returncode == 0, both.stderr
    assert [machine.decrypt(both.stdout).stdout == SECRET for _ in range(8)] == [True] * 8
