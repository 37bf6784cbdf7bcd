"""The console of a server, and visitors of each role."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer

from tang_attest.ports.operators import OperatorRole
from tang_attest.server.console.pages import compose_desk
from tang_attest.web.console.app import make_console
from tang_attest.web.runner import handling
from tests.server import Server
from tests.service.operators.authenticator import Passkey
from tests.web.console.visitor import Visitor

Enter = Callable[[str], Awaitable[Visitor]]


@asynccontextmanager
async def console_of(server: Server) -> AsyncIterator[TestClient[Any, Any]]:
    """Yield a client of the console of *server*, as a worker of ``serve`` runs it."""
    listener = TestServer(make_console(compose_desk(server.installation)))
    await listener.start_server(**handling(server.limiter.limits))
    async with TestClient(listener) as client:
        yield client


async def enter_at(server: Server, client: TestClient[Any, Any], role: str) -> Visitor:
    """Add an operator of *role*, whose name is the role, and sign in."""
    visitor = Visitor(client, Passkey())
    link = await server.operators.add(role, OperatorRole(role))
    options = await server.console.sign_in.registration_options(link.token)
    assert visitor.passkey is not None
    await server.console.sign_in.register(link.token, visitor.passkey.create(options))
    answer = await visitor.sign_in()
    assert answer.status == 303, answer.text
    return visitor


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[TestClient[Any, Any]]:
    """A client of the console of *server*."""
    async with console_of(server) as client:
        yield client


@pytest.fixture
def stranger(client: TestClient[Any, Any]) -> Visitor:
    """A visitor without a passkey."""
    return Visitor(client)


@pytest.fixture
def enter(server: Server, client: TestClient[Any, Any]) -> Enter:
    """Add an operator of a role, whose name is the role, and let them sign in."""

    async def entered(role: str) -> Visitor:
        return await enter_at(server, client, role)

    return entered
