"""Failed handshakes: in the log, in a bounded number of lines."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from tang_attest.web.gate.handshakes import FailedHandshakes
from tests.cli.installation.test_serve import self_signed
from tests.cli.serving import Serving, initialize, serving


def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Return what curl says."""
    return subprocess.run(
        ["curl", "-q", "-sS", "-i", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def failures(server: Serving) -> list[tuple[str, str]]:
    """The addresses and reasons in the log, once there is one: a client that hangs up is gone before it is logged."""
    return [(record["address"], record["reason"]) for record in server.logged("handshake-failed")]


@pytest.mark.slow
def test_http_to_the_https_port(tmp_path: Path) -> None:
    """The operator reads the reason; ten more clients are one line at most."""
    initialize(tmp_path / "state")
    certificate, key = self_signed(tmp_path, "one")
    tls = ("--tls-certificate", certificate, "--tls-key", key, "--log-format", "json")
    with serving(tmp_path, *tls) as server:
        for _ in range(11):
            assert curl(f"http://127.0.0.1:{server.port}/adv").returncode == 52
        assert failures(server) == [("127.0.0.1", "the client speaks http, and this port https")]
        # An honest client is answered as ever.
        assert "200 OK" in curl("--cacert", str(certificate), f"https://localhost:{server.port}/adv").stdout


@pytest.mark.slow
def test_a_client_that_does_not_trust_the_certificate(tmp_path: Path) -> None:
    """OpenSSL's words name the cause."""
    initialize(tmp_path / "state")
    certificate, key = self_signed(tmp_path, "one")
    tls = ("--tls-certificate", certificate, "--tls-key", key, "--log-format", "json")
    with serving(tmp_path, *tls) as server:
        # With TLS 1.2 the server is still in its handshake when the client gives up.
        assert curl("--tls-max", "1.2", f"https://localhost:{server.port}/adv").returncode == 60
        [(address, reason)] = failures(server)
    assert (address, "unknown ca" in reason) == ("127.0.0.1", True)


@pytest.mark.slow
def test_https_to_the_http_port(tmp_path: Path) -> None:
    """The log says it; the client's own words are those of the pin."""
    initialize(tmp_path / "state")
    with serving(tmp_path, "--log-format", "json") as server:
        assert curl(f"https://127.0.0.1:{server.port}/adv").returncode == 35
        assert failures(server) == [("127.0.0.1", "the client speaks https, and this port http")]


def test_the_lines_are_bounded() -> None:
    """One in ten seconds, with the number of those between."""
    structlog.reset_defaults()
    with capture_logs() as logs:
        failed = FailedHandshakes()
        for now in (0.0, 1.0, 2.0, 9.9, 10.0, 11.0, 20.5):
            failed.note("192.0.2.1", "unknown ca", now)
    assert [record["left_out"] for record in logs] == [0, 3, 1]
