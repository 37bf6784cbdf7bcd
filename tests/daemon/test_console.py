"""The console of a real server: on a listener of its own, by every worker, with TLS of its own, and no hindrance to a stop."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from aiohttp import ClientSession

from tang_attest.config import Settings
from tang_attest.ports.operators import OperatorRole
from tang_attest.server.compose import opened
from tang_attest.server.console.services import console_services
from tests.cli.serving import initialize, program, request, serving
from tests.client_pki import client_context, server_certificate
from tests.service.operators.authenticator import Passkey

URL: Final = "https://console.test"
CONSOLE: Final = ("--console-url", URL, "--console-listen", "127.0.0.1:0")


async def signed_in(state: Path) -> str:
    """The secret of a session of an operator that is added to the installation in *state*."""
    async with opened(Settings(state=state, console_url=URL)) as installation:
        sign_in = console_services(installation).sign_in
        link = await installation.operators.add("ada", OperatorRole.VIEWER)
        passkey = Passkey()
        await sign_in.register(link.token, passkey.create(await sign_in.registration_options(link.token)))
        secret, _ = await sign_in.sign_in(passkey.get(await sign_in.assertion_options()))
        return secret


def test_every_worker_serves_the_console_and_stops_with_pages_open(tmp_path: Path) -> None:
    """A session of the database is good for each; an open stream does not delay the end; machines get no page."""
    state = tmp_path / "state"
    initialize(state)
    secret = asyncio.run(signed_in(state))
    with serving(tmp_path, "--workers", "2", "--log-format", "json", *CONSOLE) as server:
        port = server.listening()["console"]
        assert port not in (None, server.port)

        async def visit() -> float:
            cookie = {"Cookie": f"__Host-tang-attest={secret}"}
            async with ClientSession(headers=cookie) as session:
                for _ in range(8):  # a connection each
                    async with session.get(
                        f"http://127.0.0.1:{port}/", headers={"Connection": "close"}
                    ) as page:
                        assert page.status == 200
                        assert "Nothing waits" in await page.text()
                stream = await session.get(f"http://127.0.0.1:{port}/events")
                await stream.content.readline()
                began = time.monotonic()
                assert await asyncio.to_thread(server.stop) == 0
                stream.close()
                return time.monotonic() - began

        assert asyncio.run(visit()) < 30
        assert secret not in server.log.read_text()


def test_machines_get_no_page(tmp_path: Path) -> None:
    """The console's addresses are unknown on the port of machines, and theirs on the console's."""
    initialize(tmp_path / "state")
    with serving(tmp_path, "--log-format", "json", *CONSOLE) as server:
        console = server.listening()["console"]
        assert request(server.port, "GET", "/sign-in")[0] == 404
        assert request(console, "GET", "/sign-in")[0] == 200
        assert request(console, "GET", "/adv")[0] == 404


def test_the_console_has_tls_of_its_own(tmp_path: Path) -> None:
    """And `serve --check` names the setting of a file that is wrong."""
    state = tmp_path / "state"
    initialize(state)
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no PEM")
    certificate, key = server_certificate(tmp_path)
    flags = (*CONSOLE, "--console-certificate", certificate, "--console-key")
    checked = program("--state", state, "serve", "--check", *flags, wrong)
    assert checked.returncode == 1
    assert f"setting console_key: {wrong} is not a PEM key" in checked.stderr
    with serving(tmp_path, "--log-format", "json", *flags, key) as server:
        console = server.listening()["console"]
        assert request(console, "GET", "/sign-in", tls=client_context(None))[0] == 200
        assert request(server.port, "GET", "/adv")[0] == 200
