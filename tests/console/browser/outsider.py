"""An HTTP client that is no browser: it sends whatever cookies, origins and forms its test wants."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import ClientSession, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult
from playwright.async_api import BrowserContext

from tests.console.browser.chromium import Trust

COOKIE: Final = "__Host-tang-attest"
_CODE: Final = re.compile(r'class="meta">([a-z]+(?:-[a-z]+)*) · request ')


class _Loopback(AbstractResolver):
    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        """Every name is this machine."""
        return [
            ResolveResult(hostname=host, host="127.0.0.1", port=port, family=family or 2, proto=0, flags=0)
        ]

    async def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Reply:
    """An answer: ``code`` is the stable code that a page about an error shows, or ``ok``."""

    status: int
    text: str
    location: str

    @property
    def code(self) -> str:
        """Return the code on the page."""
        if self.status < 400:
            return "ok"
        found = _CODE.search(self.text)
        return found[1] if found else self.text


@dataclass
class Outsider:
    """A client; ``cookie`` is a session's secret that it has got hold of, if any."""

    session: ClientSession
    origin: str
    cookie: str = ""

    async def get(self, path: str) -> Reply:
        """Ask for a page."""
        return await self._request("GET", path, {}, None)

    async def post(self, path: str, form: Mapping[str, str], origin: str | None = None) -> Reply:
        """Send a form; its ``Origin`` is the console's unless *origin* is another, and missing if that is empty."""
        sent = self.origin if origin is None else origin
        return await self._request("POST", path, {"Origin": sent} if sent else {}, form)

    async def _request(
        self, method: str, path: str, headers: dict[str, str], form: Mapping[str, str] | None
    ) -> Reply:
        if self.cookie:
            headers["Cookie"] = f"{COOKIE}={self.cookie}"
        async with self.session.request(
            method, f"{self.origin}{path}", headers=headers, data=form, allow_redirects=False
        ) as answer:
            return Reply(answer.status, await answer.text(), answer.headers.get("Location", ""))


@asynccontextmanager
async def outside(trust: Trust, origin: str, cookie: str = "") -> AsyncIterator[Outsider]:
    """A client that trusts the console's certificate."""
    connector = TCPConnector(ssl=trust.client_context(), resolver=_Loopback())
    async with ClientSession(connector=connector, cookie_jar=DummyCookieJar()) as session:
        yield Outsider(session, origin, cookie)


async def stolen_cookie(context: BrowserContext) -> str:
    """Return the session's secret in a browser."""
    return next(cookie["value"] for cookie in await context.cookies() if cookie["name"] == COOKIE)
