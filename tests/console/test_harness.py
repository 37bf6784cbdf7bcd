"""The browser of these tests sees what it should: tests of the other files could not fail otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Error

from tests.console.browser.chromium import HOST, Trust
from tests.console.browser.visitor import DESKTOP, PHONE, visiting

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow, pytest.mark.timeout(600)]

_POLICY: Final = {"Content-Security-Policy": "default-src 'self'; style-src 'unsafe-inline'"}
_PAGE: Final = """<!doctype html><html lang="en"><head><title>A page</title></head>
<body><main><h1>A page</h1>{}</main></body></html>"""
_CREATE: Final = """async () => {
  const credential = await navigator.credentials.create({publicKey: {
    challenge: new Uint8Array(32), rp: {id: location.hostname, name: "Test"},
    user: {id: new Uint8Array(16), name: "ada", displayName: "ada"},
    pubKeyCredParams: [{type: "public-key", alg: -8}, {type: "public-key", alg: -7}],
    authenticatorSelection: {residentKey: "required", userVerification: "required"},
  }});
  return credential.response.getPublicKeyAlgorithm();
}"""
_GET: Final = """async () => {
  const assertion = await navigator.credentials.get({publicKey: {
    challenge: new Uint8Array(32), rpId: location.hostname, userVerification: "required"}});
  return assertion.type;
}"""


@asynccontextmanager
async def site(trust: Trust, body: str, headers: dict[str, str] | None = None) -> AsyncIterator[str]:
    """The address of a server with one page."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=_PAGE.format(body), content_type="text/html", headers=headers or _POLICY)

    application = web.Application()
    application.router.add_get("/", page)
    server = TestServer(application, scheme="https")
    await server.start_server(ssl=trust.server_context())
    try:
        yield f"https://{HOST}:{server.port}"
    finally:
        await server.close()


async def test_an_honest_page_has_no_faults(browser: Browser, trust: Trust) -> None:
    """No watcher reports what is in order."""
    body = '<p>Text.</p><form><label>Name <input name="name"></label><button>Send</button></form>'
    async with site(trust, body) as address, visiting(browser, address, viewport=PHONE) as visitor:
        await visitor.page.goto("/")
        assert await visitor.accessibility_faults() == []
        assert await visitor.overflow() == 0
        assert visitor.faults == []
        assert visitor.requests == [f"{address}/"]


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<p style="color: #aaa; background: #fff">Pale.</p>', "color-contrast (serious)"),
        ('<img src="data:,">', "image-alt (critical)"),
        ('<form><input name="name"></form>', "label (critical)"),
        ("<h3>Two levels below</h3>", "heading-order (moderate)"),
    ],
)
async def test_an_inaccessible_page_is_named(browser: Browser, trust: Trust, body: str, fault: str) -> None:
    """axe-core runs in spite of the content security policy."""
    async with site(trust, body) as address, visiting(browser, address) as visitor:
        await visitor.page.goto("/")
        assert any(found.startswith(fault) for found in await visitor.accessibility_faults())


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<script>document.title = 'changed'</script>", "console: Executing inline script violates"),
        ('<img alt="" src="https://elsewhere.test/a.png">', "console: Loading the image"),
        ('<p onclick="alert(1)">Text.</p>', "console: Executing inline event handler violates"),
    ],
)
async def test_what_the_policy_forbids_is_reported(
    browser: Browser, trust: Trust, body: str, fault: str
) -> None:
    """Inline scripts, inline handlers, and anything of another host."""
    async with site(trust, body) as address, visiting(browser, address) as visitor:
        await visitor.page.goto("/")
        await visitor.page.locator("main").click()
        assert any(found.startswith(fault) for found in visitor.faults), visitor.faults


async def test_a_request_to_another_host_is_reported_and_goes_nowhere(browser: Browser, trust: Trust) -> None:
    """Without a policy, the recording of requests alone has to see it; no other name resolves."""
    async with site(trust, "", {"X-None": "1"}) as address, visiting(browser, address) as visitor:
        await visitor.page.goto("/")
        with pytest.raises(Error, match="ERR_NAME_NOT_RESOLVED"):
            await visitor.page.goto("https://elsewhere.test/")
        assert "another host: https://elsewhere.test/" in visitor.faults


async def test_an_error_of_a_script_is_reported(browser: Browser, trust: Trust) -> None:
    """An exception that nobody catches is a fault of the page."""
    body = "<script>throw new Error('lost')</script>"
    async with site(trust, body, {"X-None": "1"}) as address, visiting(browser, address) as visitor:
        await visitor.page.goto("/")
        assert [fault for fault in visitor.faults if fault.startswith("script: ")] == ["script: lost"]


async def test_a_page_that_is_too_wide_is_measured(browser: Browser, trust: Trust) -> None:
    """A phone would scroll sideways."""
    body = '<p style="width: 500px">Wide.</p>'
    async with site(trust, body) as address, visiting(browser, address, viewport=PHONE) as visitor:
        await visitor.page.goto("/")
        assert await visitor.overflow() > 100


@pytest.mark.parametrize(("only_es256", "algorithm"), [(False, -8), (True, -7)])
async def test_the_authenticator_signs(
    browser: Browser, trust: Trust, only_es256: bool, algorithm: int
) -> None:
    """A passkey is made and used, with EdDSA or ES256; after a wrong finger it signs nothing."""
    async with site(trust, "") as address, visiting(browser, address, only_es256=only_es256) as visitor:
        await visitor.page.goto("/")
        assert await visitor.page.evaluate(_CREATE) == algorithm
        assert len(await visitor.credentials()) == 1
        assert await visitor.page.evaluate(_GET) == "public-key"
        await visitor.refuse_verification()
        with pytest.raises(Error, match="NotAllowedError"):
            await visitor.page.evaluate(_GET)


async def test_a_stranger_has_no_passkey_of_another_person(browser: Browser, trust: Trust) -> None:
    """Each visitor has an authenticator of their own."""
    async with (
        site(trust, "") as address,
        visiting(browser, address) as ada,
        visiting(browser, address) as stranger,
    ):
        await ada.page.goto("/")
        await ada.page.evaluate(_CREATE)
        await stranger.page.goto("/")
        with pytest.raises(Error, match="NotAllowedError"):
            await stranger.page.evaluate(_GET)


async def test_a_page_without_javascript_is_shown(browser: Browser, trust: Trust) -> None:
    """Scripts of the page do not run, and what it says can be read."""
    body = "<p>Text.</p><script>document.querySelector('p').textContent = 'changed'</script>"
    async with (
        site(trust, body, {"X-None": "1"}) as address,
        visiting(browser, address, javascript=False) as visitor,
        visiting(browser, address, viewport=DESKTOP) as other,
    ):
        await visitor.page.goto("/")
        await other.page.goto("/")
        assert await visitor.page.locator("p").inner_text() == "Text."
        assert await other.page.locator("p").inner_text() == "changed"
