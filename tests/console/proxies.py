"""A check by hand of the proxies of docs/how-to/console/set-up.md, as they are written there.

    apt-get download nginx caddy && for each in *.deb; do dpkg -x "$each" root; done
    python -m tests.console.proxies root/usr/sbin/nginx root/usr/bin/caddy

A browser registers a passkey, signs in, sees a boot arrive by itself and approves it, through the proxy and over a real
server with the fleet of tests/console/fleet.  Live events have to arrive at once, the browser's address has to be in the
audit record, and the browser must have no fault, such as a violation of the content security policy.
It is no test of `make test`: both proxies are services, which Debian starts when it installs them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from aiohttp import ClientSession, TCPConnector
from playwright.async_api import Browser, expect

from tests.console.browser.chromium import HOST, Trust, launched, make_trust
from tests.console.browser.console import Console
from tests.console.browser.visitor import visiting
from tests.console.demo import run, serving
from tests.console.fleet.states import Fleet, make_fleet
from tests.ports import free_port

_DOCUMENT: Final = Path(__file__).parents[2] / "docs/how-to/console/set-up.md"
_EXAMPLE: Final = "console.example"
#: Seconds that a proxy may take to listen, and a live event to arrive.
_PATIENCE_S: Final = 60.0
_LIVE_S: Final = 10.0
#: Another address of this machine, and one that a browser makes up.
ELSEWHERE: Final = "127.0.0.9"
FORGED: Final = "192.0.2.7"


def example(beginning: str) -> str:
    """Return the block of the document that has the line *beginning*."""
    blocks = re.findall(r"(?:^    .*\n|^\n)+", _DOCUMENT.read_text(), re.MULTILINE)
    found = [block for block in blocks if re.search(rf"^    {re.escape(beginning)}$", block, re.MULTILINE)]
    assert len(found) == 1, f"{len(found)} examples with {beginning!r}"
    return "\n".join(line.removeprefix("    ") for line in found[0].splitlines())


def nginx(port: int, console: int, trust: Trust, work: Path) -> tuple[Path, list[str]]:
    """Write the example for nginx; return the file and the arguments."""
    server = example("server {").replace(_EXAMPLE + ";", HOST + ";").replace("443", f"127.0.0.1:{port}")
    server = re.sub(r"(ssl_certificate +)[^;]+", rf"\1{trust.certificate}", server)
    server = re.sub(r"(ssl_certificate_key +)[^;]+", rf"\1{trust.key}", server)
    server = server.replace("127.0.0.1:7580", f"127.0.0.1:{console}")
    temporary = "\n".join(
        f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = work / "nginx.conf"
    file.write_text(
        f"daemon off; pid {work}/nginx.pid; error_log stderr; user root;\nevents {{}}\n"
        f"http {{ access_log off; {temporary}\n{server}\n}}\n"
    )
    return file, ["-c", str(file), "-p", str(work)]


def caddy(port: int, console: int, trust: Trust, work: Path) -> tuple[Path, list[str]]:
    """Write the example for Caddy, with a certificate that the tests' browser trusts."""
    site = example(f"{_EXAMPLE} {{").replace(_EXAMPLE, f"https://{HOST}:{port}", 1)
    site = site.replace("{\n", f"{{\n    bind 127.0.0.1\n    tls {trust.certificate} {trust.key}\n", 1)
    site = site.replace("127.0.0.1:7580", f"127.0.0.1:{console}")
    file = work / "Caddyfile"
    file.write_text(f"{{\n    admin off\n    auto_https off\n}}\n{site}\n")
    return file, ["run", "--adapter", "caddyfile", "--config", str(file)]


@asynccontextmanager
async def proxied(program: Path, port: int, console: int, trust: Trust, work: Path) -> AsyncIterator[None]:
    """Run *program* between browsers and the console while the block runs."""
    _, arguments = (nginx if program.name == "nginx" else caddy)(port, console, trust, work)
    environment = {**os.environ, "HOME": str(work), "XDG_DATA_HOME": str(work), "XDG_CONFIG_HOME": str(work)}
    with (work / "proxy.log").open("wb") as log:
        proxy = await asyncio.create_subprocess_exec(
            program, *arguments, env=environment, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(_PATIENCE_S):
            while not await _listens(port):
                if proxy.returncode is not None:
                    raise RuntimeError((work / "proxy.log").read_text())
                await asyncio.sleep(0.05)
        yield
    finally:
        if proxy.returncode is None:
            proxy.terminate()
        await proxy.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def look(browser: Browser, fleet: Fleet, program: Path, trust: Trust, work: Path) -> None:
    """Use the console through one proxy."""
    port, console = free_port(), free_port()
    origin = f"https://{HOST}:{port}"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("TANG_ATTEST_")
    } | {
        "TANG_ATTEST_CONFIG": os.devnull,
        "TANG_ATTEST_STATE": str(fleet.state),
        "TANG_ATTEST_CONSOLE_LISTEN": f"127.0.0.1:{console}",
        "TANG_ATTEST_CONSOLE_URL": origin,
        "TANG_ATTEST_CONSOLE_FORWARDED": "true",
    }
    async with serving(environment, work), proxied(program, port, console, trust, work):
        link = (await run(environment, "operator", "add", "ada", "--role", "approver")).strip()
        async with visiting(browser, origin) as visitor:
            page, person = visitor.page, Console(visitor)
            await person.register(link)
            answer = await page.goto("/")
            assert answer is not None
            headers = await answer.all_headers()
            assert headers["content-security-policy"].startswith("default-src 'self'"), headers
            suspended = page.get_by_role("heading", name="web-1 is suspended")
            await expect(suspended).to_have_count(0)
            await run(environment, "device", "suspend", "web-1", "--reason", "a check of proxies")
            await expect(suspended).to_be_visible(timeout=_LIVE_S * 1000)
            await person.sign_approval(5)
            await expect(page.get_by_test_id("sequel")).to_contain_text("waits for its next attempt")
            assert visitor.faults == [], visitor.faults
        await ask_from_elsewhere(origin, trust)
        entries = json.loads(await run(environment, "audit", "list", "--who", "console:ada", "--json"))
        assert {entry["address"] for entry in entries} == {"127.0.0.1"}, entries
        log = (work / "server.log").read_text()
        assert ELSEWHERE in log, "the browser's address is not in the log"
        assert FORGED not in log, "an address of the browser's own making counts"


async def ask_from_elsewhere(origin: str, trust: Trust) -> None:
    """Ask for a page from :data:`ELSEWHERE`, and claim to be at :data:`FORGED`."""
    connector = TCPConnector(ssl=trust.client_context(), local_addr=(ELSEWHERE, 0))
    address = origin.replace(HOST, "127.0.0.1")
    headers = {"Host": HOST, "X-Forwarded-For": FORGED}
    async with (
        ClientSession(connector=connector) as session,
        session.get(f"{address}/sign-in", headers=headers, server_hostname=HOST) as answer,
    ):
        assert answer.status == 200, answer.status


async def main(programs: list[str]) -> int:
    """Check each of *programs*."""
    with tempfile.TemporaryDirectory(prefix="tang-attest-proxies-") as directory:
        trust = make_trust(Path(directory, "trust"))
        fleet = await make_fleet(Path(directory, "fleet"), datetime.now(UTC))
        async with launched(trust) as browser:
            for number, program in enumerate(map(Path, programs)):
                work = Path(tempfile.mkdtemp(prefix=f"{number}-", dir=directory))
                await look(browser, fleet.copy(work / "state"), program, trust, work)
                print(
                    f"{program.name}: sign-in, live events, approval, address and policy are as they should be"
                )
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main([os.path.realpath(program) for program in sys.argv[1:]])))
