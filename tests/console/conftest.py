"""A browser for the session, and a console over a fleet for each test.

Playwright and its fixtures live on one event loop, that of the session, and so do the tests that use them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

# Quick tests of this folder use no browser, and importing Playwright takes a tenth of a second of each process.
if TYPE_CHECKING:
    from playwright.async_api import Browser

    from tests.console.browser.chromium import Trust
    from tests.console.fleet.states import Fleet
    from tests.console.served import Site


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    """A certificate of the console's host, and a browser's home directory that trusts it."""
    from tests.console.browser.chromium import make_trust

    return make_trust(tmp_path_factory.mktemp("trust"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(trust: Trust) -> AsyncIterator[Browser]:
    """One Chromium; each visitor has a profile of their own."""
    from tests.console.browser.chromium import launched

    async with launched(trust) as started:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def made_fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """A fleet in every state, to copy."""
    from tests.console.fleet.states import make_fleet

    return await make_fleet(tmp_path_factory.mktemp("fleet") / "state")


@pytest_asyncio.fixture(loop_scope="session")
async def site(made_fleet: Fleet, trust: Trust, tmp_path: Path) -> AsyncIterator[Site]:
    """The console over a fleet of the test's own."""
    from tests.console.served import served

    async with served(made_fleet.copy(tmp_path / "state"), trust) as started:
        yield started
