"""Each page in a real browser: small and large, light and dark, with and without JavaScript, and by keyboard alone."""

from __future__ import annotations

from typing import Final

import pytest
from playwright.async_api import Browser, ViewportSize, expect

from tests.console.browser.visitor import DESKTOP, PHONE, Scheme, visiting
from tests.console.served import Site

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow, pytest.mark.timeout(600)]

#: Each page of the console, over the fleet of tests/console/fleet.
PAGES: Final = (
    "/",
    "/machines",
    "/machines/web-1",
    "/machines/web-2",
    "/machines/vault-1",
    "/machines/pi-garage",
    "/machines/nas",
    "/refusals/2",
    "/refusals/5",
    "/refusals/6",
    "/policies",
    "/policies/servers",
    "/policies/kiosks",
    "/policies/vault",
    "/audit",
    "/audit?device=web-1",
    "/enroll",
    "/operators",
)
#: Pages that say why something is not there.
ERRORS: Final = {"/nowhere": 404, "/machines/nobody": 404, "/refusals/999": 404, "/policies/nothing": 404}

_FETCH: Final = "path => fetch(path).then(answer => [answer.status, answer.headers.get('content-type')])"
_TARGETS: Final = "links => links.map(link => link.getAttribute('href'))"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
async def test_pages_are_accessible_and_keep_to_themselves(
    browser: Browser, site: Site, viewport: ViewportSize, scheme: Scheme
) -> None:
    """axe-core finds nothing, nothing is wider than the window, no policy is broken, no request leaves the host."""
    async with visiting(browser, site.origin, viewport=viewport, scheme=scheme) as visitor:
        found: dict[str, list[str]] = {}
        await visitor.page.goto("/sign-in")
        found["/sign-in"] = await visitor.accessibility_faults()
        link = await site.link("ada", "admin")
        await visitor.page.goto(link)
        found["/register"] = await visitor.accessibility_faults()
        await site.console(visitor).register(link)
        for path in (*PAGES, *ERRORS):
            response = await visitor.page.goto(path)
            assert response is not None
            assert response.status == ERRORS.get(path, 200), path
            assert await visitor.page.locator("h1").count() == 1, path
            found[path] = await visitor.accessibility_faults()
            if wide := await visitor.overflow():
                found[path].append(f"{wide} pixels too wide")
        assert {path: faults for path, faults in found.items() if faults} == {}
        assert visitor.faults == []


async def test_every_link_leads_to_a_page(browser: Browser, site: Site) -> None:
    """From the first page on, each link of the console answers, until no new one is found; downloads are requested."""
    async with visiting(browser, site.origin) as visitor:
        await site.console(visitor).register(await site.link("ada", "admin"))
        waiting, seen, wrong = ["/"], {"/"}, {}
        while waiting:
            path = waiting.pop()
            status, kind = await visitor.page.evaluate(_FETCH, path)
            if status != 200:
                wrong[path] = status
            if "html" not in kind:
                continue
            await visitor.page.goto(path)
            links = await visitor.page.eval_on_selector_all("a[href]", _TARGETS)
            for target in {link.partition("#")[0] for link in links} - seen:
                seen.add(target)
                waiting.append(target)
        assert wrong == {}
        assert {path for path in PAGES if "?" not in path} - seen == set()


async def test_pages_can_be_read_without_javascript(browser: Browser, site: Site) -> None:
    """A session that was opened with JavaScript shows every page without it, with the same heading and text."""
    async with (
        visiting(browser, site.origin) as visitor,
        visiting(browser, site.origin, javascript=False) as plain,
    ):
        await site.console(visitor).register(await site.link("ada", "admin"))
        await plain.context.add_cookies(await visitor.context.cookies())  # type: ignore[arg-type]
        for path in PAGES:
            await visitor.page.goto(path)
            await plain.page.goto(path)
            expected = await visitor.page.locator("h1").inner_text()
            assert await plain.page.locator("h1").inner_text() == expected
            assert len(await plain.page.locator("main").inner_text()) > 40, path
        assert plain.faults == []


async def test_forms_work_without_javascript(browser: Browser, site: Site) -> None:
    """Suspend a machine, dismiss a refusal and sign out, which no passkey signs."""
    async with (
        visiting(browser, site.origin) as visitor,
        visiting(browser, site.origin, viewport=PHONE, javascript=False) as plain,
    ):
        await site.console(visitor).register(await site.link("ada", "approver"))
        await plain.context.add_cookies(await visitor.context.cookies())  # type: ignore[arg-type]
        page = plain.page
        await page.goto("/machines/web-1")
        await page.get_by_label("Reason").fill("found open in the rack")
        await page.get_by_role("button", name="Suspend").click()
        await expect(page.locator("main")).to_contain_text("found open in the rack")
        assert (await site.device("web-1")).suspension is not None

        await page.goto("/refusals/5")
        await page.get_by_role("button", name="Dismiss").click()
        await expect(page.locator("h1")).to_have_text("Waiting")
        await expect(page.locator("main")).not_to_contain_text("backup-1 was refused")

        await site.console(plain).sign_out()
        await page.goto("/machines")
        await expect(page.locator("h1")).to_contain_text("Sign in")
        assert plain.faults == []


async def test_an_approval_takes_no_pointer(browser: Browser, site: Site) -> None:
    """Tab and Enter lead from the list to the refused boot, to the text, and to the signature; the focus shows."""
    async with visiting(browser, site.origin) as visitor:
        console = site.console(visitor)
        await console.register(await site.link("ada", "approver"))
        page = visitor.page
        await page.goto("/")
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_text("Skip to the content")
        await page.keyboard.press("Enter")
        await console.tab_to(page.get_by_role("link", name="Look: backup-1 was refused"))
        await page.keyboard.press("Enter")
        await expect(console.heading).to_have_text("backup-1 was refused")
        await console.tab_to(page.get_by_role("button", name="Approve"))
        await page.keyboard.press("Enter")
        await console.tab_to(console.sign_button)
        await page.keyboard.press("Enter")
        await expect(page.get_by_test_id("sequel")).to_contain_text("pproved")
        assert len(await site.states("servers")) == 4
        assert visitor.faults == []
