"""Debian's Chromium under Playwright, which knows one host name and trusts one certificate authority.

A browser makes passkeys only for a DNS name with a certificate that it trusts, so the tests have both: a home directory
with an NSS database, and a rule that resolves :data:`HOST` to the loopback and nothing else to anything.
"""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from playwright.async_api import Browser, async_playwright, expect

from tests.client_pki import ClientCa, write_key

#: Name of every server of these tests; each has a port of its own.
HOST: Final = "console.test"
_EXECUTABLE: Final = "/usr/bin/chromium"
#: Milliseconds that a page may take on a busy machine.
PATIENCE_MS: Final = 60_000
expect.set_options(timeout=PATIENCE_MS)


@dataclass(frozen=True)
class Trust:
    """A home directory of a browser, and the certificate of :data:`HOST` that it trusts."""

    home: Path
    authority: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Return the TLS configuration of a server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return the TLS configuration of a client that trusts the authority, which is an operator's own.

        Its certificate has no key identifiers; default contexts of Python 3.13 and newer refuse such a one.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.authority)
        return context


def make_trust(directory: Path) -> Trust:
    """Make a certificate authority, a certificate for :data:`HOST`, and an NSS database that has the former."""
    authority = ClientCa(directory, "the console's tests")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = directory / "console.pem"
    certificate.write_bytes(authority._pem(authority.issue_server(HOST, key.public_key())))
    database = directory / ".pki/nssdb"
    database.mkdir(parents=True)
    for arguments in (
        ("-N", "--empty-password"),
        ("-A", "-t", "C,,", "-n", "tests", "-i", str(authority.file)),
    ):
        subprocess.run(
            ["certutil", "-d", f"sql:{database}", *arguments], check=True, capture_output=True, timeout=60
        )
    return Trust(directory, authority.file, certificate, write_key(directory / "console.key", key))


@asynccontextmanager
async def launched(trust: Trust) -> AsyncIterator[Browser]:
    """A browser without a window."""
    environment: dict[str, str | float | bool] = {
        **os.environ,
        "HOME": str(trust.home),
        "XDG_CONFIG_HOME": str(trust.home / ".config"),
        "XDG_CACHE_HOME": str(trust.home / ".cache"),
    }
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=_EXECUTABLE,
            # Chromium's sandbox refuses to work for root, who runs these tests in CI.
            chromium_sandbox=os.getuid() != 0,
            args=[
                f"--host-resolver-rules=MAP {HOST} 127.0.0.1, MAP localhost 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
            ],
            env=environment,
            timeout=PATIENCE_MS,
        )
        try:
            yield browser
        finally:
            await browser.close()
