"""A server in the test's process, and the conformance kit as its client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tang_attest.protocol.values.pcr import Selection
from tang_attest.web.gate.limits import RequestLimits
from tests.server import Server
from tools.conformance.primitives.http import Http
from tools.conformance.report import Result, Run
from tools.conformance.server.client import Device, Tested
from tools.conformance.server.run import duties

SELECTION = "sha256:0,2,4,7,15"


@asynccontextmanager
async def kit_and_server(directory: Path) -> AsyncIterator[Tested]:
    """A server without limits on the number of requests; the kit's waiting moves its clock."""
    async with Server(directory, limits=RequestLimits(address_rate=0, device_rate=0)) as server:
        http = Http(str(server.client.make_url("")))
        names = ("conformance", "conformance-sibling")
        tokens = [await server.token(name=name, selection=Selection.parse(SELECTION)) for name in names]
        device, sibling = (Device(http, name, token) for name, token in zip(names, tokens, strict=True))
        yield Tested(
            http, device, sibling, patience=1e9, wait=lambda seconds: server.clock.advance(seconds=seconds)
        )


async def run_all(world: Tested, *, fail_fast: bool = False) -> list[Result]:
    """The results of all duties."""
    run = Run(world, fail_fast=fail_fast)
    return await asyncio.to_thread(run.all, list(duties()))


def broken(results: list[Result]) -> list[str]:
    """The broken duties, in words."""
    return [f"{it.section} {it.duty}: {it.outcome}: {it.detail}" for it in results if it.outcome != "kept"]
