"""The console as a person uses it: sign in, look, choose, sign."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from playwright.async_api import Locator, Page, expect

from tests.console.browser.visitor import Visitor

#: Labels of the choices of an approval.
_FOR: Final = {"machine": re.compile("machines? only"), "policy": re.compile("every machine of")}
_UNTIL: Final = {"retired": "the state is retired", "once": "it booted once", "30": "30 minutes have passed"}
#: More presses of Tab than any page has elements.
_MOST_TABS: Final = 200
_HAS_FOCUS: Final = "element => element === document.activeElement"
#: The focused element has an outline that can be seen, or a shadow in its place.
_SHOWS_FOCUS: Final = """element => {
  const style = getComputedStyle(element);
  return (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1) || style.boxShadow !== "none";
}"""


@dataclass(frozen=True)
class Console:
    """Acts of one visitor."""

    visitor: Visitor

    @property
    def page(self) -> Page:
        """The page that is open."""
        return self.visitor.page

    @property
    def heading(self) -> Locator:
        """The heading of the page."""
        return self.page.get_by_role("heading", level=1)

    async def register(self, link: str) -> None:
        """Register a passkey with a one-time *link*, and sign in with it."""
        await self.page.goto(link)
        await self.page.get_by_role("button", name="Register a passkey").click()
        await expect(self.heading).to_have_text(re.compile("Waiting|Sign in"))
        if await self.heading.inner_text() != "Waiting":
            await self.sign_in()

    async def sign_in(self) -> None:
        """Sign in with the passkey of this device."""
        await self.page.goto("/sign-in")
        await self.page.get_by_role("button", name="Sign in with a passkey").click()
        await expect(self.heading).to_have_text("Waiting")

    async def sign_out(self) -> None:
        """End the session."""
        await self.page.get_by_role("button", name="Sign out", exact=True).click()
        await expect(self.page.get_by_role("button", name="Sign out", exact=True)).to_have_count(0)

    async def choose(
        self,
        number: int,
        whose: Literal["machine", "policy"] = "machine",
        until: Literal["retired", "once", "30"] = "retired",
    ) -> None:
        """Open the page of refused boot *number*, choose, and go to the text that is to be signed."""
        await self.page.goto(f"/refusals/{number}")
        await self.page.get_by_role("radio", name=_FOR[whose]).check()
        await self.page.get_by_role("radio", name=_UNTIL[until]).check()
        await self.page.get_by_role("button", name="Approve").click()
        await expect(self.sign_button).to_be_visible()

    @property
    def sign_button(self) -> Locator:
        """The button that asks for the passkey."""
        return self.page.get_by_role("button", name="Sign with your passkey")

    async def sign_approval(self, number: int) -> None:
        """Choose as :meth:`choose` does, and sign; the answer may still be under way."""
        await self.choose(number)
        await self.sign_button.click()

    async def tab_to(self, target: Locator) -> None:
        """Press Tab until *target* has the focus; every element on the way shows that it has it."""
        for _ in range(_MOST_TABS):
            await self.page.keyboard.press("Tab")
            focused = self.page.locator(":focus")
            if (
                not await focused.count()
            ):  # between the last element and the first, the focus is the browser's
                continue
            assert await focused.evaluate(_SHOWS_FOCUS), await focused.evaluate(
                "element => element.outerHTML"
            )
            if await target.evaluate(_HAS_FOCUS):
                return
        raise AssertionError(f"no key leads to {target}")
