"""A page that is open shows what happens, and nothing that a machine says can do more than be read."""

from __future__ import annotations

from typing import Final

import pytest
from playwright.async_api import Browser, expect

from tests.console.browser.visitor import PHONE, visiting
from tests.console.fleet.boots import recorded, with_other_kernel, with_other_words
from tests.console.served import Site

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow, pytest.mark.timeout(600)]

#: Markup and scripts, in as many bytes as the words on the command line that they take the place of.
_MARKUP: Final = "<img src=x><s>"


async def test_a_refused_boot_appears_by_itself(browser: Browser, site: Site) -> None:
    """The list gets a new entry while it is open, and loses it when the boot is dismissed elsewhere."""
    async with visiting(browser, site.origin, viewport=PHONE) as visitor:
        await site.console(visitor).register(await site.link("ada", "approver"))
        await visitor.page.goto("/")
        entry = visitor.page.get_by_role("heading", name="web-1 was refused")
        await expect(entry).to_have_count(0)
        machine = site.fleet.machines["web-1"]
        machine.boot(with_other_kernel(recorded("secure-boot"), "6.1.0-44"))
        assert await machine.unlock(site.attestation) == "pcr-mismatch"
        await expect(entry).to_be_visible()
        [observation] = await site.installation.store.policies.list_observations("web-1", 1)
        await site.installation.reference_values.dismiss([observation])
        await expect(entry).to_have_count(0)
        assert visitor.faults == []


async def test_it_opens_while_you_look(browser: Browser, site: Site) -> None:
    """After the approval, the page of the refused boot shows the next attempt of the machine, and when it opened."""
    async with visiting(browser, site.origin, viewport=PHONE) as visitor:
        console = site.console(visitor)
        await console.register(await site.link("ada", "approver"))
        await console.sign_approval(5)
        sequel = visitor.page.get_by_test_id("sequel")
        await expect(sequel).to_contain_text("waits for its next attempt")
        site.clock.advance(seconds=9)
        assert await site.fleet.machines["backup-1"].unlock(site.attestation) == "ok"
        await expect(sequel).to_contain_text("Opened, 9 s later")
        assert visitor.faults == []


async def test_machines_that_differ_alike_are_approved_at_once(browser: Browser, site: Site) -> None:
    """Three kiosks are one entry; one signature approves all of them, and each opens."""
    async with visiting(browser, site.origin) as visitor:
        console = site.console(visitor)
        await console.register(await site.link("ada", "approver"))
        await visitor.page.goto("/")
        await expect(visitor.page.get_by_role("heading", name="3 machines were refused")).to_be_visible()
        await console.choose(2, "policy")
        for name in ("kiosk-1", "kiosk-2", "kiosk-3"):
            await expect(visitor.page.get_by_test_id("signed-text")).to_contain_text(name)
        await console.sign_button.click()
        await expect(visitor.page.get_by_test_id("sequel")).to_contain_text("pproved")
        for name in ("kiosk-1", "kiosk-2", "kiosk-3"):
            assert await site.fleet.machines[name].unlock(site.attestation) == "ok", name


async def test_strings_of_machines_are_text(browser: Browser, site: Site) -> None:
    """Markup on a command line, in a label of an announcement and in its notes is shown as it is, and does nothing."""
    machine = site.fleet.machines["web-2"]
    log = with_other_words(recorded("secure-boot"), "no_timer_check", _MARKUP)
    machine.boot(log)
    assert await machine.unlock(site.attestation) == "pcr-mismatch"
    [observation] = await site.installation.store.policies.list_observations("web-2", 1)
    other = site.fleet.machines["db-1"]
    next_boot = with_other_kernel(recorded("secure-boot"), "another")
    await other.announce(
        site.attestation, next_boot, "next", "<script>alert(1)</script>", "\u202egnp.exe", "a" * 400
    )
    async with visiting(browser, site.origin, viewport=PHONE) as visitor:
        await site.console(visitor).register(await site.link("ada", "admin"))
        main = visitor.page.locator("main")
        await visitor.page.goto(f"/refusals/{observation.id}")
        await expect(main).to_contain_text(_MARKUP)
        assert await visitor.page.locator("img, s").count() == 0
        assert await visitor.overflow() == 0
        await visitor.page.goto("/policies/servers")
        for summary in await visitor.page.locator("summary").all():
            await summary.click()
        await expect(main).to_contain_text("<script>alert(1)</script>")
        await expect(main).not_to_contain_text("\u202e")
        assert await visitor.page.locator("main script").count() == 0
        assert await visitor.overflow() == 0
        assert visitor.faults == []
