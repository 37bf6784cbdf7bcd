"""The console in the test's process over the fleet of tests/console/fleet, with real HTTPS; only the clock is fake."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from aiohttp.test_utils import TestServer

from tang_attest.config import Settings
from tang_attest.ports.machines import Device
from tang_attest.ports.operators import OperatorRole
from tang_attest.protocol.reference_state import Life
from tang_attest.server.compose import Attestation, Installation, World, opened
from tang_attest.server.console.pages import compose_desk
from tang_attest.server.console.services import console_address
from tang_attest.service.rounds.polls import Polls
from tang_attest.web.console.app import make_console
from tests.console.browser.chromium import HOST, Trust
from tests.console.browser.console import Console
from tests.console.browser.visitor import Visitor
from tests.console.fleet.states import MORNING, Fleet
from tests.fakes import FakeClock, RealRandomness
from tests.ports import free_port


@dataclass(frozen=True, kw_only=True)
class Site:
    """The console, and the world behind it."""

    origin: str
    installation: Installation
    attestation: Attestation
    clock: FakeClock
    fleet: Fleet

    async def link(self, name: str, role: Literal["viewer", "approver", "admin"]) -> str:
        """Add an operator; return the link that registers their passkey."""
        made = await self.installation.operators.add(name, OperatorRole(role))
        return console_address(self.installation.settings).link(made.token)

    def console(self, visitor: Visitor) -> Console:
        """The console as *visitor* uses it."""
        return Console(visitor)

    async def device(self, name: str) -> Device:
        """A machine as the store has it."""
        return await self.installation.store.devices.get_device(name)

    async def states(self, policy: str) -> list[tuple[str, Life]]:
        """Labels and lives of the states of a policy."""
        found = await self.installation.store.policies.get_policy(policy)
        return [(state.label, state.life) for state in found.states]

    async def fingerprint(self) -> str:
        """Everything that an operator could change: devices, policies and refused boots."""
        store = self.installation.store
        devices = await store.devices.list_devices()
        policies = [await store.policies.get_policy(name) for name in ("servers", "kiosks", "vault", "home")]
        rollout = await store.policies.get_rollout("kiosks")
        observations = [
            item.id for device in devices for item in await store.policies.list_observations(device.name, 9)
        ]
        return repr((devices, policies, rollout, observations))


@asynccontextmanager
async def served(fleet: Fleet, trust: Trust) -> AsyncIterator[Site]:
    """Serve the console of *fleet* at :data:`~tests.console.browser.chromium.HOST`."""
    clock, port = FakeClock(), free_port()
    clock.time = MORNING
    origin = f"https://{HOST}:{port}"
    settings = Settings(state=fleet.state, console_url=origin)
    world = World(clock=clock, random=RealRandomness(), operator="root")
    async with opened(settings, world) as installation:
        server = TestServer(make_console(compose_desk(installation)), scheme="https", port=port)
        await server.start_server(ssl=trust.server_context())
        try:
            yield Site(
                origin=origin,
                installation=installation,
                attestation=installation.attestation(Polls()),
                clock=clock,
                fleet=fleet,
            )
        finally:
            await server.close()
