"""A browser for the session.

Playwright and its fixtures live on one event loop, that of the session; so do the tests that use them
(``pytestmark = ON_ONE_LOOP``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.console.browser.chromium import Trust, launched, make_trust


@pytest.fixture(scope="session")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    """A certificate of the console's host, and a browser's home directory that trusts it."""
    return make_trust(tmp_path_factory.mktemp("trust"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser(trust: Trust) -> AsyncIterator[Browser]:
    """One Chromium; each visitor has a profile of their own."""
    async with launched(trust) as started:
        yield started
