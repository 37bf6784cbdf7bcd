"""Holders of admin tokens; tests that need other scopes have fixtures of their own."""

from __future__ import annotations

import pytest

from tests.server import Server
from tests.web.admin.client import Admin, holder, make_policy


@pytest.fixture
async def admin(server: Server) -> Admin:
    """Holds a token with every scope; there are policies ``web`` and ``db``."""
    await make_policy(server)
    await make_policy(server, "db")
    return await holder(server)


@pytest.fixture
async def limited(server: Server, admin: Admin) -> Admin:
    """Holds a token with every scope for ``web`` alone."""
    return await holder(server, name="limited", policies=("web",))
