"""Behind a proxy the record has the browser's address, if the settings say that the proxy names it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from aiohttp.test_utils import TestClient, TestServer
from multidict import CIMultiDict

from tang_attest.ports.operators import OperatorRole
from tang_attest.server.console.pages import compose_desk
from tang_attest.web.console.app import make_console
from tests.server import Server
from tests.service.operators.authenticator import Passkey
from tests.web.console.visitor import Visitor


async def address_of_sign_in(server: Server, *forwarded: str, trusted: bool) -> str | None:
    """The address in the record after a sign-in with these headers of X-Forwarded-For."""
    desk = replace(compose_desk(server.installation), forwarded=trusted)
    async with TestClient(TestServer(make_console(desk))) as client:
        visitor = Visitor(client, Passkey())
        assert visitor.passkey is not None
        link = await server.operators.add("ada", OperatorRole.VIEWER)
        options = await server.console.sign_in.registration_options(link.token)
        await server.console.sign_in.register(link.token, visitor.passkey.create(options))
        headers = CIMultiDict([("X-Forwarded-For", each) for each in forwarded])
        client.session.headers.extend(headers)
        assert (await visitor.sign_in()).status == 303
        assert (await visitor.get("/machines")).status == 200
    _, entry = next(iter(await server.store.audit.list_audit(limit=1)))
    assert entry.event == "operator sign-in"
    return entry.address


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (("192.0.2.7",), "192.0.2.7"),
        (("203.0.113.1, 192.0.2.7",), "192.0.2.7"),
        (("203.0.113.1", "192.0.2.7"), "192.0.2.7"),
        (("2001:db8::7",), "2001:db8::7"),
        ((), "127.0.0.1"),
        (("unknown",), "127.0.0.1"),
        (("192.0.2.7, <script>",), "127.0.0.1"),
        (("192.0.2.7,",), "127.0.0.1"),
    ],
)
async def test_the_last_address_counts(server: Server, forwarded: tuple[str, ...], address: str) -> None:
    """It is the proxy's word; those before it are the browser's, and one that cannot be read is none."""
    assert await address_of_sign_in(server, *forwarded, trusted=True) == address


async def test_no_header_counts_without_the_setting(server: Server) -> None:
    """Anybody can write it."""
    assert await address_of_sign_in(server, "192.0.2.7", trusted=False) == "127.0.0.1"
