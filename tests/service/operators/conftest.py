"""A server with operators who have passkeys."""

from __future__ import annotations

from typing import Any

import pytest

from tang_attest.errors import TangAttestError
from tang_attest.ports.operators import OperatorRole
from tang_attest.service.operators.acts import Act
from tang_attest.service.operators.sign_in import OperatorSession
from tang_attest.service.operators.signed_acts import ActOutcome
from tests.attester import Attester
from tests.server import Server
from tests.service.operators.authenticator import Passkey
from tests.service.policies.test_approve import World


class Console:
    """Does at once what the browser of an operator does in steps."""

    def __init__(self, server: Server) -> None:
        self.server, self.clock = server, server.clock
        self.sign_in, self.acts = server.console.sign_in, server.console.acts

    async def register(self, name: str, role: str = "approver", passkey: Passkey | None = None) -> Passkey:
        """Add an operator with a passkey."""
        link = await self.server.operators.add(name, OperatorRole(role))
        made = passkey or Passkey()
        options = await self.sign_in.registration_options(link.token)
        assert await self.sign_in.register(link.token, made.create(options)) == name
        return made

    async def enter(self, passkey: Passkey) -> OperatorSession:
        """Sign in."""
        return (await self.sign_in.sign_in(passkey.get(await self.sign_in.assertion_options())))[1]

    async def sign(self, session: OperatorSession, passkey: Passkey, act: Act) -> ActOutcome:
        """Prepare, sign and perform."""
        request = await self.acts.prepare(session, act)
        return await self.acts.perform(session, request.id, passkey.get(request.options))

    async def audit(self) -> list[Any]:
        """Return the entries, newest first."""
        return [entry for _, entry in await self.server.store.audit.list_audit(limit=1000)]


async def code_of(call: Any) -> str:
    """Return the code of the error that *call* raises, or ``ok``; an error is one sentence."""
    try:
        await call
    except TangAttestError as error:
        return error.code if error.sentence.endswith(".") else f"no sentence: {error.sentence}"
    return "ok"


@pytest.fixture
def console(server: Server) -> Console:
    return Console(server)


@pytest.fixture
async def world(server: Server, attester: Attester) -> World:
    """A machine whose update was refused."""
    made = World(server, attester)
    await made.begin()
    assert await made.boot() == "ok"
    assert await made.boot("update") == "pcr-mismatch"
    return made
