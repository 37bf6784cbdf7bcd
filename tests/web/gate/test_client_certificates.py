"""A server that demands client certificates: beside the quote, never instead of it."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError

from tang_attest.web.gate.limits import RequestLimits
from tang_attest.web.gate.tls import server_context
from tests.attester import Attester, members
from tests.cli.serving import PATIENCE_S, initialize, request, serving
from tests.client_pki import SERVER, ClientCa, client_context, server_certificate
from tests.server import Server, evidence, new_x

#: Clients without a valid certificate, by their fault.
WITHOUT_CERTIFICATE: dict[str, Callable[[ClientCa, Path], tuple[Path, Path] | None]] = {
    "nothing": lambda ca, directory: None,
    "expired": lambda ca, directory: ca.machine("expired", days=-1),
    "for servers only": lambda ca, directory: ca.machine("web", usage=SERVER),
    "of another CA": lambda ca, directory: ClientCa(directory / "other", "others").machine(),
    "of another CA with its name": lambda ca, directory: ClientCa(directory / "twin").machine("twin"),
    "self-signed": lambda ca, directory: server_certificate(directory / "self"),
}
BOTH = pytest.mark.parametrize(
    "version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"]
)


@pytest.fixture
def ca(tmp_path: Path) -> ClientCa:
    return ClientCa(tmp_path / "ca")


@pytest.fixture
async def server(tmp_path: Path, ca: ClientCa) -> AsyncIterator[Server]:
    """It demands certificates of *ca*; its client shows one."""
    tls = server_context(*server_certificate(tmp_path), ca.file)
    async with Server(tmp_path / "state", tls=tls) as server:
        server.client_tls = client_context(ca.machine())
        yield server


async def traces(server: Server) -> list[str]:
    """Traces of any request."""
    return [row.event for _, row in await server.store.audit.list_audit(limit=1000)]


async def test_a_certificate_replaces_no_quote(server: Server) -> None:
    """A client with one is asked for evidence like any other, and refused with bad evidence."""
    attester = Attester()
    kid = await server.enroll(attester)
    assert (await server.unlock(attester, kid)).status == 200
    unproven = await server.post(f"/rec/{kid}", dict(members(new_x())))
    assert (unproven.status, unproven.code) == (401, "evidence-required")
    attester.extend(4, b"another kernel")
    refused = await server.unlock(attester, kid)
    assert (refused.status, refused.code) == (403, "pcr-mismatch")
    stranger = Attester()
    forged = await server.unlock(stranger, kid)
    assert (forged.status, forged.code) == (403, "signature-invalid")


@BOTH
@pytest.mark.parametrize("shown", WITHOUT_CERTIFICATE)
async def test_a_quote_replaces_no_certificate(
    server: Server, ca: ClientCa, tmp_path: Path, shown: str, version: ssl.TLSVersion
) -> None:
    """A machine that the policy would answer gets no connection: no answer, no audit record, no use of its nonce."""
    attester = Attester()
    kid = await server.enroll(attester)
    allowed, server.client_tls = server.client_tls, client_context(WITHOUT_CERTIFICATE[shown](ca, tmp_path))
    server.client_tls.minimum_version = server.client_tls.maximum_version = version
    x = dict(members(new_x()))
    before = await traces(server)
    with pytest.raises((ClientError, OSError)):
        await server.challenge(kid)
    # Also with a challenge that it got when it could.
    stranger, server.client_tls = server.client_tls, allowed
    challenge = await server.challenge(kid)
    proof = x | {"attest": evidence(attester, kid, x, challenge)}
    server.client_tls = stranger  # nor over the connection that is open: each context has its own
    for target in (f"/rec/{kid}", "/adv", "/attest/enroll", f"/attest/agent/{kid}", "/healthz", "/nowhere"):
        with pytest.raises((ClientError, OSError)):
            await server.post(target, proof)
    assert await traces(server) == before
    server.client_tls = allowed
    assert (await server.post(f"/rec/{kid}", proof)).status == 200
    assert await traces(server) == ["unlock", *before]


def ask(connection: ssl.SSLSocket) -> None:
    """As curl does: the request is on its way before the handshake's end has been heard."""
    connection.do_handshake()
    connection.sendall(b"GET /adv HTTP/1.1\r\n\r\n")
    connection.recv(1)


ALERTS = {
    "nothing": {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"},
    "expired": {"SSLV3_ALERT_CERTIFICATE_EXPIRED"},
    "for servers only": {"SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"},
    "of another CA": {"TLSV1_ALERT_UNKNOWN_CA"},
    "of another CA with its name": {"TLSV1_ALERT_DECRYPT_ERROR"},
}


@pytest.mark.parametrize("shown", ALERTS)
def test_who_is_refused_hears_why(tmp_path: Path, ca: ClientCa, shown: str) -> None:
    """The alert is sent before the connection is closed, and a client that says nothing more is forgotten."""
    initialize(tmp_path / "state")
    certificate, key = server_certificate(tmp_path)
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", ca.file)
    heard = set()
    with serving(tmp_path, *flags) as server:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = client_context(WITHOUT_CERTIFICATE[shown](ca, tmp_path))
            context.maximum_version = version
            plain = socket.create_connection(("127.0.0.1", server.port), PATIENCE_S)
            with context.wrap_socket(plain, do_handshake_on_connect=False) as connection:
                with pytest.raises(ssl.SSLError) as refused:
                    ask(connection)
                heard.add(refused.value.reason)
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as garbled:
            begun = time.monotonic()
            with contextlib.suppress(OSError):
                for _ in range(120):
                    garbled.sendall(b"GET /adv HTTP/1.1\r\n\r\n")
                    time.sleep(0.1)
            assert time.monotonic() - begun < RequestLimits().handshake_s
    assert heard == ALERTS[shown]


@pytest.mark.parametrize("days", [30, -1])
async def test_a_revoked_certificate(tmp_path: Path, ca: ClientCa, days: int) -> None:
    """A list in the file counts for leaves; once it has expired, nobody gets in."""
    good, bad = ca.machine("good"), ca.machine("bad")
    ca.revoke(bad[0], days=days)
    async with Server(tmp_path / "s", tls=server_context(*server_certificate(tmp_path), ca.file)) as server:
        server.client_tls = client_context(bad)
        with pytest.raises((ClientError, OSError)):
            await server.request("GET", "/adv")
        server.client_tls = client_context(good)
        if days < 0:
            with pytest.raises((ClientError, OSError)):
                await server.request("GET", "/adv")
        else:
            assert (await server.request("GET", "/adv")).status == 200


@pytest.fixture(params=["here", "Python 3.13"])
def default_contexts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``ssl.create_default_context`` give the flags of this Python, and those that Python 3.13 introduced."""
    original = ssl.create_default_context

    def newer(*arguments: Any, **keywords: Any) -> ssl.SSLContext:
        context = original(*arguments, **keywords)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        return context

    if request.param != "here":
        monkeypatch.setattr(ssl, "create_default_context", newer)


@pytest.mark.usefixtures("default_contexts")
async def test_a_ca_without_key_identifiers_counts(tmp_path: Path, ca: ClientCa) -> None:
    """Operators' CAs have no authority key identifier or key usage, which VERIFY_X509_STRICT demands."""
    async with Server(tmp_path / "s", tls=server_context(*server_certificate(tmp_path), ca.file)) as server:
        server.client_tls = client_context(ca.machine())
        assert (await server.request("GET", "/adv")).status == 200


@pytest.mark.usefixtures("default_contexts")
async def test_only_a_self_signed_certificate_ends_a_chain(tmp_path: Path, ca: ClientCa) -> None:
    """A machine's own certificate in the file does not let the machine in without its CA."""
    shown = ca.machine()
    ca.file.write_bytes(shown[0].read_bytes())
    async with Server(tmp_path / "s", tls=server_context(*server_certificate(tmp_path), ca.file)) as server:
        server.client_tls = client_context(shown)
        with pytest.raises((ClientError, OSError)):
            await server.request("GET", "/adv")


def test_the_whole_listener_demands_it(tmp_path: Path, ca: ClientCa) -> None:
    """Plain Tang, health and the admin API as well; not the listener of metrics.  The log says who was there."""
    initialize(tmp_path / "state")
    certificate, key = server_certificate(tmp_path)
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", ca.file)
    more = ("--plain-tang", "--admin-api", "--log-format", "json", "--metrics-listen", "127.0.0.1:0")
    with serving(tmp_path, *flags, *more) as server:
        shown = client_context(ca.machine("pi-b"))
        for target, status in (("/adv", 200), ("/healthz", 200), ("/admin/v1/policies", 401)):
            with pytest.raises((OSError, IndexError)):
                request(server.port, "GET", target, tls=client_context(None))
            assert request(server.port, "GET", target, tls=shown)[0] == status
        started = server.listening()
        assert (started["https"], started["client_certificates"]) == (True, True)
        assert request(started["metrics"][0], "GET", "/metrics")[0] == 200
        asked = [line for line in server.records() if line["event"] == "request"]
        assert [line["certificate"] for line in asked] == ["pi-b"] * 3


def test_a_reload_reads_the_ca_again(tmp_path: Path, ca: ClientCa) -> None:
    """SIGHUP: a machine that was revoked meanwhile is shut out; a wrong file changes nothing."""
    initialize(tmp_path / "state")
    certificate, key = server_certificate(tmp_path)
    crt, machine_key = ca.machine()

    def served(port: int) -> int | None:
        try:
            return int(request(port, "GET", "/adv", tls=client_context((crt, machine_key)))[0])
        except (OSError, IndexError):
            return None

    flags = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", ca.file)
    with serving(tmp_path, *flags, "--log-format", "json") as server:
        assert served(server.port) == 200
        ca.file.write_text("nothing")
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE_S
        while not any(line["event"] == "reload-failed" for line in server.records()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert served(server.port) == 200
        ca.revoke(crt)
        server.process.send_signal(signal.SIGHUP)
        while served(server.port) is not None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert server.stop() == 0
