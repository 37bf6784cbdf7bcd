"""Strangers, viewers, forged forms, replayed assertions and stolen cookies get nothing, and change nothing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import escape
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, Request, Route, expect

from tests.console.browser.chromium import HOST, Trust
from tests.console.browser.outsider import outside, stolen_cookie
from tests.console.browser.visitor import Visitor, visiting
from tests.console.served import Site
from tests.console.test_pages import PAGES

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow, pytest.mark.timeout(600)]

#: Forms that change something, by address: none of them is sent in vain by somebody with the right role.
FORMS: Final = {
    "/acts": {"act": "approve", "boot": "backup-1:5", "for": "machine", "until": "once"},
    "/machines/web-1/suspend": {"reason": "because"},
    "/refusals/5/dismiss": {},
    "/policies/servers/retire": {"label": "6.1.0-41"},
    "/policies/kiosks/rollout/stop": {},
    "/operators/ada/sign-out": {},
}


@dataclass
class Caught:
    """A form that a browser sent to sign an act: its address and its fields."""

    path: str
    form: dict[str, str]


async def catch_signature(visitor: Visitor, site: Site, number: int, *, let_through: bool) -> Caught:
    """Approve refused boot *number* in the browser, and return the form that the passkey filled."""
    caught: asyncio.Future[Caught] = asyncio.get_running_loop().create_future()

    async def look(route: Route, request: Request) -> None:
        pairs = parse_qsl(request.post_data or "", keep_blank_values=True)
        await (route.continue_() if let_through else route.fulfill(status=204))
        caught.set_result(Caught(urlsplit(request.url).path, dict(pairs)))

    pattern = re.compile(r"/acts/[^/]+$")
    await visitor.page.route(pattern, look)
    await site.console(visitor).sign_approval(number)
    form = await caught
    if let_through:
        await expect(visitor.page.get_by_test_id("sequel")).to_be_visible()
    await visitor.page.unroute(pattern)
    return form


async def csrf_of(visitor: Visitor) -> str:
    """Return the token that forms of this visitor's session carry."""
    await visitor.page.goto("/machines/web-1")
    return await visitor.page.locator("input[name=csrf]").first.input_value()


async def test_a_stranger_gets_nothing(browser: Browser, site: Site, trust: Trust) -> None:
    """No page shows anything of the fleet, no form does anything, and a passkey of nobody opens no session."""
    before = await site.fingerprint()
    async with outside(trust, site.origin) as stranger:
        for path in PAGES:
            reply = await stranger.get(path)
            assert reply.status == 303, path
            assert reply.location.startswith("/sign-in"), path
        for path, form in FORMS.items():
            reply = await stranger.post(path, form)
            assert (reply.status, reply.code) == (401, "sign-in-required"), path
        for cookie in ("A" * 43, "x" * 5000, "'; --"):
            stranger.cookie = cookie
            assert (await stranger.get("/")).status == 303
    async with visiting(browser, site.origin) as visitor:
        await site.console(visitor).register(await site.link("eve", "viewer"))
        await visitor.page.goto("/machines")  # no live page, which would go to the sign-in by itself
        await site.installation.operators.remove("eve")
        await visitor.page.goto("/sign-in")
        await visitor.page.get_by_role("button", name="Sign in with a passkey").click()
        await expect(visitor.page.locator("main")).to_contain_text(re.compile("passkey-(unknown|invalid)"))
        assert await visitor.page.goto("/machines")
        await expect(visitor.page.locator("h1")).to_contain_text("Sign in")
    after = await site.fingerprint()
    assert after == before


async def test_a_viewer_sees_and_changes_nothing(browser: Browser, site: Site, trust: Trust) -> None:
    """Pages offer a viewer no form that changes something, and the server refuses each by the role."""
    async with visiting(browser, site.origin) as visitor:
        await site.console(visitor).register(await site.link("vic", "viewer"))
        csrf, cookie = await csrf_of_viewer(visitor), await stolen_cookie(visitor.context)
        before = await site.fingerprint()
        for path in ("/refusals/5", "/machines/vault-1", "/policies/servers"):
            await visitor.page.goto(path)
            acts = re.compile("^(Approve|Suspend|Dismiss|Remove|Retire|Allow|Let|Resume)")
            assert await visitor.page.get_by_role("button", name=acts).count() == 0, path
        for path in ("/enroll", "/operators"):
            response = await visitor.page.goto(path)
            assert response is not None
            assert response.status == 403
    async with outside(trust, site.origin, cookie) as viewer:
        for path, form in FORMS.items():
            reply = await viewer.post(path, form | {"csrf": csrf})
            assert (reply.status, reply.code) == (403, "role-missing"), path
    assert await site.fingerprint() == before


async def csrf_of_viewer(visitor: Visitor) -> str:
    """Return the token in the form that everybody has: the one to sign out."""
    await visitor.page.goto("/")
    return await visitor.page.locator("form[action='/sign-out'] input[name=csrf]").input_value()


@asynccontextmanager
async def foreign_page(trust: Trust, site: Site, path: str, form: dict[str, str]) -> AsyncIterator[str]:
    """The address of a page of the same host on another port, with a form for the console.

    The same host is the same site, so the browser sends the cookie even though it is strict.
    """
    fields = "".join(
        f'<input type="hidden" name="{name}" value="{escape(value)}">' for name, value in form.items()
    )
    page = f'<form method="post" action="{site.origin}{path}">{fields}<button>Win a prize</button></form>'

    async def show(_: web.Request) -> web.Response:
        return web.Response(text=f"<!doctype html><title>Prize</title>{page}", content_type="text/html")

    application = web.Application()
    application.router.add_get("/", show)
    server = TestServer(application, scheme="https")
    await server.start_server(ssl=trust.server_context())
    try:
        yield f"https://{HOST}:{server.port}/"
    finally:
        await server.close()


async def test_a_form_of_another_origin_is_refused(browser: Browser, site: Site, trust: Trust) -> None:
    """Even one of the same host, whose request carries the cookie, and which knows the session's token."""
    async with visiting(browser, site.origin) as visitor:
        await site.console(visitor).register(await site.link("ada", "admin"))
        csrf = await csrf_of(visitor)
        before = await site.fingerprint()
        for path, form in FORMS.items():
            async with foreign_page(trust, site, path, form | {"csrf": csrf}) as address:
                await visitor.page.goto(address)
                async with visitor.page.expect_response(f"{site.origin}{path}") as caught:
                    await visitor.page.get_by_role("button").click()
                response = await caught.value
                assert response.status == 403, path
                await expect(visitor.page.locator("main")).to_contain_text("origin-foreign")
        cookie = await stolen_cookie(visitor.context)
        async with outside(trust, site.origin, cookie) as thief:
            for path, form in FORMS.items():
                for origin in ("", "null", "https://elsewhere.test", site.origin.replace("https", "http")):
                    assert (await thief.post(path, form | {"csrf": csrf}, origin)).code == "origin-foreign"
                assert (await thief.post(path, form)).code == "form-expired", "without the session's token"
        assert await site.fingerprint() == before


@pytest.mark.parametrize("only_es256", [False, True], ids=["EdDSA", "ES256"])
async def test_an_assertion_counts_once(browser: Browser, site: Site, trust: Trust, only_es256: bool) -> None:
    """The signed form is accepted, and sent once more it is refused: the state is there once."""
    async with visiting(browser, site.origin, only_es256=only_es256) as visitor:
        await site.console(visitor).register(await site.link("ada", "approver"))
        caught = await catch_signature(visitor, site, 5, let_through=True)
        states = await site.states("servers")
        assert len(states) == 4
        async with outside(trust, site.origin, await stolen_cookie(visitor.context)) as thief:
            assert (await thief.post(caught.path, caught.form)).code == "act-used"
        assert await site.states("servers") == states


async def test_an_assertion_is_good_for_its_act_only(browser: Browser, site: Site, trust: Trust) -> None:
    """A signature that never arrived signs no other act; in time, it still signs its own."""
    async with visiting(browser, site.origin) as visitor:
        await site.console(visitor).register(await site.link("ada", "approver"))
        caught = await catch_signature(visitor, site, 5, let_through=False)
        before = await site.states("servers")
        async with outside(trust, site.origin, await stolen_cookie(visitor.context)) as thief:
            other = {"act": "allow", "device": "vault-1", "minutes": "30", "csrf": caught.form["csrf"]}
            prepared = await thief.post("/acts", other)
            assert prepared.status == 200, prepared.text
            [path] = re.findall(r'action="(/acts/[^"]+)"', prepared.text)
            assert (await thief.post(path, caught.form)).code == "passkey-invalid"
            assert (await thief.post("/acts/" + "A" * 22, caught.form)).code == "act-unknown"
            assert (await site.device("vault-1")).allowed_until is None
            assert await site.states("servers") == before
            assert (await thief.post(caught.path, caught.form)).status == 303
        assert len(await site.states("servers")) == len(before) + 1


async def test_an_assertion_is_good_for_a_short_time(browser: Browser, site: Site, trust: Trust) -> None:
    """After five minutes of the server's clock the signed form comes too late."""
    async with visiting(browser, site.origin) as visitor:
        await site.console(visitor).register(await site.link("ada", "approver"))
        caught = await catch_signature(visitor, site, 5, let_through=False)
        before = await site.states("servers")
        site.clock.advance(minutes=5, seconds=1)
        async with outside(trust, site.origin, await stolen_cookie(visitor.context)) as thief:
            assert (await thief.post(caught.path, caught.form)).code == "act-expired"
        assert await site.states("servers") == before


async def test_a_stolen_cookie_is_worth_nothing_after_sign_out(
    browser: Browser, site: Site, trust: Trust
) -> None:
    """Before, it shows pages and signs nothing; afterwards it shows nothing."""
    async with visiting(browser, site.origin) as visitor:
        console = site.console(visitor)
        await console.register(await site.link("ada", "approver"))
        csrf = await csrf_of(visitor)
        async with outside(trust, site.origin, await stolen_cookie(visitor.context)) as thief:
            assert (await thief.get("/machines")).status == 200
            prepared = await thief.post("/acts", FORMS["/acts"] | {"csrf": csrf})
            [path] = re.findall(r'action="(/acts/[^"]+)"', prepared.text)
            assert (await thief.post(path, {"csrf": csrf})).code == "form-malformed"
            await console.sign_out()
            assert (await thief.get("/machines")).status == 303
            assert (await thief.post("/acts", FORMS["/acts"] | {"csrf": csrf})).code == "sign-in-required"


@pytest.mark.parametrize(
    ("span", "path"),
    [({"minutes": 31}, "/"), ({"hours": 12, "minutes": 1}, "/")],
    ids=["idle", "old"],
)
async def test_a_session_ends_by_itself(
    browser: Browser, site: Site, span: dict[str, float], path: str
) -> None:
    """After 30 minutes without a request, and after 12 hours with requests."""
    async with visiting(browser, site.origin) as visitor:
        await site.console(visitor).register(await site.link("ada", "approver"))
        await visitor.page.goto("/machines")  # no live page, which would go to the sign-in by itself
        if "hours" in span:
            for _ in range(24):
                site.clock.advance(minutes=29)
                response = await visitor.page.goto("/machines")
                assert response is not None
                assert response.url.endswith("/machines")
            span = {"minutes": 29}
        site.clock.advance(**span)
        await visitor.page.goto(path)
        await expect(visitor.page.locator("h1")).to_contain_text("Sign in")


async def test_the_wrong_finger_signs_nothing(browser: Browser, site: Site) -> None:
    """Without user verification no approval happens, and the page says so."""
    async with visiting(browser, site.origin) as visitor:
        console = site.console(visitor)
        await console.register(await site.link("ada", "approver"))
        before = await site.states("servers")
        await visitor.refuse_verification()
        await console.sign_approval(5)
        await expect(visitor.page.get_by_role("alert")).to_be_visible()
        assert await site.states("servers") == before


async def test_a_link_registers_one_passkey(browser: Browser, site: Site) -> None:
    """A used link, an expired one and an invented one are refused on the page, each with a sentence."""
    used, late = await site.link("ada", "approver"), await site.link("bob", "viewer")
    async with visiting(browser, site.origin) as ada, visiting(browser, site.origin) as thief:
        await site.console(ada).register(used)
        site.clock.advance(minutes=16)
        for link in (used, late, used[:-8] + "AAAAAAAA"):
            await thief.page.goto(link)
            await expect(thief.page.locator("main")).to_contain_text(
                re.compile("link-(used|expired|invalid)")
            )
            assert await thief.context.cookies() == []
