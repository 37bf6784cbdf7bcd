"""The whole story with a software TPM, the real pin and a real volume: refused, told, looked at, approved, opened, recorded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, ViewportSize, expect

from tests.console.browser.chromium import HOST, Trust
from tests.console.browser.console import Console
from tests.console.browser.visitor import DESKTOP, PHONE, visiting
from tests.pin.machine import Disk, Machine, Operator
from tests.ports import free_port
from tests.swtpm import Swtpm

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow, pytest.mark.timeout(600)]

NAME = "pi-b"


@dataclass
class Receiver:
    """A service that takes notifications."""

    url: str
    bodies: asyncio.Queue[dict[str, object]] = field(default_factory=asyncio.Queue)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver of webhooks."""
    receiver = Receiver("")

    async def take(request: web.Request) -> web.Response:
        await receiver.bodies.put(await request.json())
        return web.Response(status=204)

    application = web.Application()
    application.router.add_post("/hook", take)
    server = TestServer(application, host="127.0.0.1")
    await server.start_server()
    receiver.url = f"http://127.0.0.1:{server.port}/hook"
    try:
        yield receiver
    finally:
        await server.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine with a software TPM."""
    with Swtpm(tmp_path / "tpm", banks=("sha256",)) as tpm:
        yield Machine(tmp_path / "machine", tpm)


def bound_disk(machine: Machine, url: str, operator: Operator) -> Disk:
    """A LUKS2 volume that opens by attestation."""
    disk = Disk(machine, "luks2")
    disk.bind("attest", {"url": url, "name": NAME, "thp": operator.thp, "token": operator.token(NAME)})
    opened = disk.passphrase()
    assert opened
    assert disk.opens_with(opened)
    return disk


@pytest.fixture
def origin(trust: Trust, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The console's address, in the settings of every command."""
    origin = f"https://{HOST}:{free_port()}"
    (tmp_path / "secret").write_text("a secret of a receiver")
    for name, value in {
        "console_listen": f"127.0.0.1:{origin.rpartition(':')[2]}",
        "console_url": origin,
        "console_certificate": trust.certificate,
        "console_key": trust.key,
        "webhook_secret": tmp_path / "secret",
    }.items():
        monkeypatch.setenv(f"TANG_ATTEST_{name.upper()}", str(value))
    return origin


@pytest.mark.parametrize(
    ("viewport", "only_es256"), [(PHONE, False), (DESKTOP, True)], ids=["phone-EdDSA", "desktop-ES256"]
)
async def test_a_refused_boot_is_approved_and_opens(
    browser: Browser,
    machine: Machine,
    origin: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    viewport: ViewportSize,
    only_es256: bool,
) -> None:
    """Nothing opens before the signature, the disk opens after it, and the record proves who approved what."""
    async with receiving() as receiver:
        monkeypatch.setenv(
            "TANG_ATTEST_NOTIFY", json.dumps({"test": {"kind": "webhook", "url": receiver.url}})
        )
        operator = await asyncio.to_thread(Operator, tmp_path / "state")
        with operator.serve() as port:
            disk = await asyncio.to_thread(bound_disk, machine, f"http://127.0.0.1:{port}", operator)

            await asyncio.to_thread(machine.boot_with_another, 4)
            assert await asyncio.to_thread(disk.passphrase) == b""
            assert "PCR 4" in machine.console

            told = await asyncio.wait_for(receiver.bodies.get(), 180)
            assert told["names"] == [NAME]
            assert str(told["url"]).startswith(origin)

            link = operator.run("operator", "add", "ada", "--role", "approver").strip()
            async with visiting(browser, origin, viewport=viewport, only_es256=only_es256) as visitor:
                console, page = Console(visitor), visitor.page
                await console.register(link)
                await console.sign_out()
                await page.goto(str(told["url"]))
                await page.get_by_role("button", name="Sign in with a passkey").click()
                await expect(console.heading).to_have_text(f"{NAME} was refused")
                await expect(page.locator("main")).to_contain_text("PCR 4")
                await page.get_by_role("button", name="Approve").click()
                await expect(page.get_by_test_id("signed-text")).to_contain_text(NAME)
                assert await asyncio.to_thread(disk.passphrase) == b""
                await console.sign_button.click()
                await expect(page.get_by_test_id("sequel")).to_contain_text("waits for its next attempt")

                opened = await asyncio.to_thread(disk.passphrase)
                assert disk.opens_with(opened)
                await expect(page.get_by_test_id("sequel")).to_contain_text("Opened, ")
                assert visitor.faults == []
                assert all(address.startswith(origin) for address in visitor.requests)

        verified = json.loads(operator.run("audit", "verify", "--json"))
        assert (verified["signed"], verified["findings"]) == (1, 0)
