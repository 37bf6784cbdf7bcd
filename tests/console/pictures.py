"""``make screenshots``: the pictures of docs/console.md and the README, from the fleet of tests/console/fleet.

    python -m tests.console.pictures [DIRECTORY]

Each page is taken as a phone and a desktop show it, light and dark, at twice the size of its letters, and then gets
a palette (pngquant), which halves the file and shows no difference.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from playwright.async_api import Browser

from tang_attest.server.console.services import console_address
from tests.console.browser.chromium import launched, make_trust
from tests.console.browser.visitor import DESKTOP, PHONE, Scheme, visiting
from tests.console.fleet.states import make_fleet
from tests.console.served import Site, served

DIRECTORY: Final = Path(__file__).parents[2] / "docs/pictures"
VIEWPORTS: Final = {"phone": PHONE, "desktop": DESKTOP}


@dataclass(frozen=True)
class Picture:
    """One page; ``phone`` is False for a page that is made for large screens."""

    name: str
    path: str
    phone: bool = True


PICTURES: Final = (
    Picture("waiting", "/"),
    Picture("refusal", "/refusals/5"),
    Picture("machine", "/machines/web-1"),
    Picture("policy", "/policies/kiosks"),
    Picture("audit", "/audit", phone=False),
    Picture("enroll", "/enroll", phone=False),
)


async def make(directory: Path) -> None:
    """Write every picture to ``directory/VIEWPORT/NAME-SCHEME.png``."""
    with tempfile.TemporaryDirectory(prefix="tang-attest-pictures-") as work:
        trust = make_trust(Path(work, "trust"))
        fleet = await make_fleet(Path(work, "state"))
        async with launched(trust) as browser, served(fleet, trust) as site:
            await _take_all(browser, site, directory)


async def _take_all(browser: Browser, site: Site, directory: Path) -> None:
    for viewport, size in VIEWPORTS.items():
        for scheme in get_args(Scheme):
            async with visiting(browser, site.origin, viewport=size, scheme=scheme, scale=2) as visitor:
                await site.console(visitor).register(await _next_link(site))
                for picture in PICTURES:
                    if picture.phone or viewport == "desktop":
                        await visitor.page.goto(picture.path)
                        path = directory / viewport / f"{picture.name}-{scheme}.png"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        await visitor.page.screenshot(path=path)
                        _shrink(path)
                assert visitor.faults == [], visitor.faults


async def _next_link(site: Site) -> str:
    """Return a link of the one operator, whose name is on each picture."""
    if not await site.installation.operators.list_operators():
        return await site.link("ada", "admin")
    made = await site.installation.operators.reset("ada")
    return console_address(site.installation.settings).link(made.token)


def _shrink(path: Path) -> None:
    """Give the picture a palette of 128 colors."""
    command = ["pngquant", "--force", "--strip", "--speed", "1", "--ext", ".png", "128", str(path)]
    subprocess.run(command, check=True, timeout=120)


if __name__ == "__main__":
    asyncio.run(make(Path(sys.argv[1]) if sys.argv[1:] else DIRECTORY))
