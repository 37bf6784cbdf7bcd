"""A person with a browser of their own: a context, one page in it, an authenticator, and an eye on what pages do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, CDPSession, ConsoleMessage, Page, ViewportSize

from tests.console.browser.chromium import HOST, PATIENCE_MS

PHONE: Final = ViewportSize(width=360, height=740)
DESKTOP: Final = ViewportSize(width=1280, height=800)
Scheme = Literal["light", "dark"]

#: A platform authenticator that asks nobody: a fingerprint sensor that always agrees.
_AUTHENTICATOR: Final = {
    "protocol": "ctap2",
    "transport": "internal",
    "hasResidentKey": True,
    "hasUserVerification": True,
    "isUserVerified": True,
    "automaticPresenceSimulation": True,
}
#: An authenticator that knows ES256 (-7) alone; Chromium's virtual one would choose EdDSA (-8).
_ONLY_ES256: Final = """
const create = navigator.credentials.create.bind(navigator.credentials);
navigator.credentials.create = (options) => {
  options.publicKey.pubKeyCredParams = options.publicKey.pubKeyCredParams.filter(({alg}) => alg === -7);
  return create(options);
};
"""
#: Rules of WCAG 2.2 up to level AA, and axe-core's own recommendations.
_RULES: Final = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}

#: Messages of the browser itself: that a page came with a status of 400 or more, at which tests look themselves, and that
#: the console takes no RSA keys, which only old Windows computers would make.
_HARMLESS: Final = ("Failed to load resource", "publicKey.pubKeyCredParams is missing")


@dataclass
class Visitor:
    """One person; :func:`visiting` makes them."""

    context: BrowserContext
    page: Page
    cdp: CDPSession
    #: Name of the virtual authenticator.
    authenticator: str
    _: KW_ONLY
    #: Violations of the content security policy, errors of scripts, and requests to other hosts.
    faults: list[str] = field(default_factory=list)
    #: Every address that a page asked for.
    requests: list[str] = field(default_factory=list)

    async def accessibility_faults(self) -> list[str]:
        """Return what axe-core finds on the page: rule, impact, and the first elements."""
        found = (await Axe().run(self.page, options=_RULES)).response
        return [
            f"{violation['id']} ({violation['impact']}): "
            + "; ".join(str(node["html"])[:120] for node in violation["nodes"][:3])
            for violation in found["violations"]
        ]

    async def overflow(self) -> int:
        """Return the pixels by which the page is wider than the window."""
        width: int = await self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return max(0, width)

    async def credentials(self) -> list[dict[str, Any]]:
        """Return the passkeys of the authenticator, with their private keys."""
        answer = await self.cdp.send("WebAuthn.getCredentials", {"authenticatorId": self.authenticator})
        found: list[dict[str, Any]] = answer["credentials"]
        return found

    async def refuse_verification(self, *, refuse: bool = True) -> None:
        """Let the authenticator doubt that the right person is there, as after a wrong finger."""
        parameters = {"authenticatorId": self.authenticator, "isUserVerified": not refuse}
        await self.cdp.send("WebAuthn.setUserVerified", parameters)

    def _watch(self) -> None:
        self.context.on("request", lambda request: self._requested(request.url))
        self.context.on("console", self._console)
        self.context.on("weberror", lambda error: self.faults.append(f"script: {error.error}"))

    def _requested(self, url: str) -> None:
        self.requests.append(url)
        parts = urlsplit(url)
        if parts.hostname not in (HOST, "localhost") and parts.scheme not in ("data", "blob", "about"):
            self.faults.append(f"another host: {url}")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(text in message.text for text in _HARMLESS):
            self.faults.append(f"console: {message.text}")


@asynccontextmanager
async def visiting(
    browser: Browser,
    address: str,
    *,
    viewport: ViewportSize = DESKTOP,
    scheme: Scheme = "light",
    javascript: bool = True,
    only_es256: bool = False,
    scale: int = 1,
) -> AsyncIterator[Visitor]:
    """A person before an empty page, whose links are relative to *address*."""
    context = await browser.new_context(
        base_url=address,
        viewport=viewport,
        device_scale_factor=scale,
        color_scheme=scheme,
        java_script_enabled=javascript,
        has_touch=viewport == PHONE,
        reduced_motion="reduce",
        locale="en-US",
        timezone_id="UTC",
        service_workers="block",
    )
    try:
        context.set_default_timeout(PATIENCE_MS)
        if only_es256:
            await context.add_init_script(_ONLY_ES256)
        page = await context.new_page()
        cdp = await context.new_cdp_session(page)
        await cdp.send("WebAuthn.enable")
        made = await cdp.send("WebAuthn.addVirtualAuthenticator", {"options": _AUTHENTICATOR})
        visitor = Visitor(context, page, cdp, made["authenticatorId"])
        visitor._watch()
        yield visitor
    finally:
        await context.close()
