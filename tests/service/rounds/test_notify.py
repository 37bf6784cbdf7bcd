"""Hooks and webhooks: who is told, with what, and what a bad one costs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tang_attest.config import Settings
from tang_attest.errors import Unavailable
from tang_attest.ports.rounds import RoundRecord
from tang_attest.programs.hook import run_hook
from tang_attest.programs.run import run_program
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.server.courier import SettingsCourier
from tang_attest.service.rounds.notify import Notify
from tang_attest.web.webhook import post_signed
from tests.attester import Attester
from tests.client_pki import ClientCa, write_key
from tests.server import Server

SECRET = b"sixteen bytes or more"


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server with one machine."""
    async with Server(tmp_path / "state") as started:
        await started.enroll(Attester())
        yield started


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Directory of hooks and the secret."""
    (tmp_path / "hooks").mkdir()
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    return Settings(state=tmp_path, hook_dir=tmp_path / "hooks", webhook_secret=tmp_path / "secret")


def hook(settings: Settings, name: str, text: str) -> None:
    """A program in the hook directory."""
    assert settings.hook_dir is not None
    path = settings.hook_dir / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


async def refuse(server: Server, *notify: str) -> None:
    """A round that ends badly."""
    device = await server.store.devices.get_device("pi-b")
    assert device.clock is not None
    await server.store.rounds.record_round(
        RoundRecord(
            device_id=device.id,
            at=server.clock.now(),
            outcome=RoundOutcome.REFUSED,
            code="pcr-mismatch",
            details={"reasons": [{"code": "pcr-mismatch", "sentence": "PCR 7 differs."}]},
            silent_since=server.clock.now(),
            notify=notify,
        )
    )


class Listener:
    """Somebody's web server."""

    def __init__(self, *statuses: int) -> None:
        self.statuses, self.seen = list(statuses), list[tuple[dict[str, str], bytes]]()

    async def answer(self, request: web.Request) -> web.Response:
        """The next status; the last one for ever."""
        self.seen.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})


async def listening(*statuses: int) -> tuple[Listener, TestServer]:
    listener, app = Listener(*statuses), web.Application()
    app.router.add_post("/{path:.*}", listener.answer)
    started = TestServer(app)
    await started.start_server()
    return listener, started


async def audited(server: Server) -> list[tuple[str, str, Any]]:
    """Results of notifications."""
    rows = [row for _, row in await server.store.audit.list_audit("pi-b") if row.event == "notify"]
    return [(row.verdict, row.code, row.details.get("problem")) for row in rows]


async def test_a_hook_reads_json(server: Server, settings: Settings, tmp_path: Path) -> None:
    """On its stdin, without a shell in between and with little of our environment."""
    hook(settings, "page", f"cat >{tmp_path}/told; env >{tmp_path}/env")
    os.environ["A_SECRET_OF_THE_SERVER"] = "x"
    await refuse(server, "hook:page")
    assert await Notify(server.store, SettingsCourier(settings), server.clock, 0).deliver() == 1
    del os.environ["A_SECRET_OF_THE_SERVER"]
    told = json.loads((tmp_path / "told").read_text())
    assert (told["device"], told["outcome"], told["code"]) == ("pi-b", "refused", "pcr-mismatch")
    assert "A_SECRET" not in (tmp_path / "env").read_text()
    assert await audited(server) == [("done", "ok", None)]
    assert await Notify(server.store, SettingsCourier(settings), server.clock, 0).deliver() == 0


async def test_a_webhook_is_signed(server: Server, settings: Settings) -> None:
    """HMAC-SHA-256 over the time and the body."""
    listener, started = await listening(204)
    await refuse(server, f"webhook:{started.make_url('/hook')}")
    await Notify(server.store, SettingsCourier(settings), server.clock, 0).deliver()
    headers, body = listener.seen[0]
    signed = headers["Tang-Attest-Timestamp"].encode() + b"\n" + body
    mac = hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
    assert headers["Tang-Attest-Signature"] == f"sha256={mac}"
    assert json.loads(body)["device"] == "pi-b"
    assert await audited(server) == [("done", "ok", None)]
    await started.close()


async def test_a_webhook_is_tried_again(server: Server, settings: Settings) -> None:
    """A few times, and what never worked is in the audit record."""
    listener, started = await listening(500, 503, 200)
    await refuse(server, f"webhook:{started.make_url('/')}")
    await Notify(server.store, SettingsCourier(settings), server.clock, 0).deliver()
    assert len(listener.seen) == 3
    listener.statuses[:] = [302]
    await server.store.rounds.record_round(
        RoundRecord(
            device_id=(await server.store.devices.get_device("pi-b")).id,
            at=server.clock.now(),
            outcome=RoundOutcome.UNREACHABLE,
            code="device-unreachable",
            details={},
            notify=(f"webhook:{started.make_url('/')}",),
        )
    )
    await Notify(server.store, SettingsCourier(settings), server.clock, 0).deliver()
    assert len(listener.seen) == 6, "a redirection is not followed"
    assert await audited(server) == [
        ("refused", "webhook-failed", "The webhook answered 302."),
        ("done", "ok", None),
    ]
    await started.close()


async def test_a_webhook_without_a_secret_is_not_sent(tmp_path: Path) -> None:
    """Nobody could tell it from a forgery."""
    listener, started = await listening(200)
    (tmp_path / "short").write_text("short")
    for secret in (None, tmp_path / "absent", tmp_path / "short"):
        with pytest.raises(Unavailable) as caught:
            await post_signed(secret, str(started.make_url("/")), b"{}")
        assert caught.value.code == "webhook-failed"
        assert "short" not in caught.value.sentence.split("fewer")[0]
    assert listener.seen == []
    await started.close()


async def test_a_webhook_that_does_not_answer(settings: Settings) -> None:
    """It is given up in time."""
    begun = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # nobody accepts
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(Unavailable, match="not reached: TimeoutError"):
            await post_signed(settings.webhook_secret, url, b"{}", limit_s=0.3)
    assert time.monotonic() - begun < 20


async def test_a_webhook_trusts_the_systems_certificates(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CA without key identifiers in the system's store counts, with any Python; without it there is no delivery."""
    ca = ClientCa(tmp_path / "ca")
    key = ec.generate_private_key(ec.SECP256R1())
    crt = tmp_path / "server.crt"
    crt.write_bytes(ca.issue_server("localhost", key.public_key()).public_bytes(Encoding.PEM))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(crt, write_key(tmp_path / "server.key", key))
    app = web.Application()
    app.router.add_post("/", Listener(204).answer)
    started = TestServer(app, scheme="https", host="localhost")
    await started.start_server(ssl=tls)
    url = str(started.make_url("/"))
    with pytest.raises(Unavailable, match="not reached: ClientConnectorCertificateError"):
        await post_signed(settings.webhook_secret, url, b"{}")
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.file))
    await post_signed(settings.webhook_secret, url, b"{}")
    await started.close()


async def test_bad_hooks(settings: Settings, tmp_path: Path) -> None:
    """Absent, failing, hanging: each says so, and a hanging one is ended with what it started."""
    hook(settings, "fails", "exit 3")
    hook(settings, "hangs", f"sleep 300 & echo $! >{tmp_path}/child; wait")
    for name, limit_s, code, words in (
        ("absent", 120, "program-missing", "Cannot run"),
        ("fails", 120, "hook-failed", "ended with 3"),
        ("hangs", 4, "hook-failed", "was killed"),
    ):
        with pytest.raises(Unavailable) as caught:
            await run_hook(settings.hook_dir, name, b"{}" * 100_000, limit_s=limit_s)
        assert caught.value.code == code
        assert words in caught.value.sentence
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 120
    while _runs(child):
        assert time.monotonic() < deadline, "what the hook started still runs"
        await asyncio.sleep(0.05)
    with pytest.raises(Unavailable, match="no hook directory"):
        await run_hook(None, "page", b"")


async def test_a_program_says_much() -> None:
    """Only the beginning is kept."""
    code, said = await run_program(["sh", "-c", "yes | head -c 1000000 >&2; exit 7"], limit_s=120)
    assert (code, len(said)) == (7, 4096)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
