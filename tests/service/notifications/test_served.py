"""Notifications of real servers: two workers, a restart, and each event once."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tang_attest.config import Settings
from tang_attest.ports.audit import AuditEntry
from tang_attest.server.compose import World, opened
from tests.cli.serving import PATIENCE_S, program, serving
from tests.client_pki import SERVER, ClientCa
from tests.ports import free_port

SECRET = "sixteen bytes or more"


class Inbox:
    """A web server in a thread, and what it was sent."""

    def __init__(self) -> None:
        self.messages = queue.Queue[dict[str, Any]]()
        inbox = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.messages.put(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/"


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """A running :class:`Inbox`."""
    inbox = Inbox()
    thread = threading.Thread(target=inbox.server.serve_forever)
    thread.start()
    yield inbox
    inbox.server.shutdown()
    thread.join()
    inbox.server.server_close()


@pytest.mark.slow
async def test_two_workers_and_a_restart(tmp_path: Path, inbox: Inbox) -> None:
    """A certificate that ends soon is told once; after a restart, only what is new."""
    certificate, key = ClientCa(tmp_path / "pki").machine("localhost", SERVER, days=5)
    (tmp_path / "secret").write_text(SECRET)
    receivers = {"hub": {"kind": "webhook", "url": inbox.url, "secret_file": str(tmp_path / "secret")}}
    flags: list[str | Path] = ["--workers", "2", "--tls-certificate", certificate, "--tls-key", key]
    settings = Settings(state=tmp_path / "state")
    assert program("--state", str(settings.state), "init").returncode == 0
    with serving(tmp_path, *flags, TANG_ATTEST_NOTIFY=json.dumps(receivers)) as server:
        first = inbox.messages.get(timeout=PATIENCE_S)
        assert (first["event"], first["names"]) == ("certificate", ["tls_certificate"])
        assert server.stop() == 0
        log = server.log.read_text()
    async with opened(settings, World()) as installation:
        now = installation.world.clock.now()
        entry = AuditEntry(now, "device suspend", "operator:alice", "done", device="pi-b")
        await installation.store.audit.append(entry)
    with serving(tmp_path, *flags, TANG_ATTEST_NOTIFY=json.dumps(receivers)) as server:
        second = inbox.messages.get(timeout=PATIENCE_S)
        assert (second["event"], second["names"]) == ("suspension", ["pi-b"])
        assert server.stop() == 0
        log += server.log.read_text()
    assert inbox.messages.empty()
    assert "defect" not in log
    assert SECRET not in log


def test_the_command_says_what_was_delivered(tmp_path: Path, inbox: Inbox) -> None:
    """Each receiver by itself; the exit code is that of the worst."""
    (tmp_path / "secret").write_text(SECRET)
    hub = {"kind": "webhook", "url": inbox.url, "secret_file": str(tmp_path / "secret")}
    phone = {"kind": "ntfy", "url": f"http://127.0.0.1:{free_port()}/alerts"}
    given = json.dumps({"hub": hub, "phone": phone})
    done = program("notify", "test", "--only", "hub", TANG_ATTEST_NOTIFY=given)
    assert (done.returncode, done.stderr) == (0, "tang-attest: hub: delivered\n")
    message = inbox.messages.get(timeout=PATIENCE_S)
    assert (message["event"], message["names"]) == ("test", [])
    both = program("notify", "test", TANG_ATTEST_NOTIFY=given)
    assert both.returncode == 1
    assert both.stderr.startswith("tang-attest: hub: delivered\ntang-attest: phone: not delivered: ")
    assert SECRET not in both.stderr + program("notify", "list", "--json", TANG_ATTEST_NOTIFY=given).stdout
