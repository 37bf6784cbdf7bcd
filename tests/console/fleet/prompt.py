"""Machines that wait at their prompts: they ask the server over HTTP again and again, as the pin does, until it opens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from aiohttp import ClientError, ClientSession
from cryptography.hazmat.primitives.asymmetric import ec

from tests.attester import members
from tests.console.fleet.machine import Machine
from tests.server import evidence

#: Seconds between two attempts.
PAUSE_S: Final = 4.0

#: Called with the name of a machine that opened.
Opened = Callable[[str], None]


async def ask(session: ClientSession, url: str, machine: Machine) -> str:
    """Try to unlock *machine* once; return ``ok`` or the code of the refusal."""
    x = dict(members(ec.generate_private_key(ec.SECP521R1())))
    target = f"{url}/rec/{machine.kid}"
    async with session.post(target, json=x) as asked:
        answer = await asked.json(content_type=None)
        if asked.status != 401:
            return str(answer["code"])
    attest = evidence(machine.tpm, machine.kid, x, answer["challenge"])
    async with session.post(target, json=x | {"attest": attest}) as answered:
        if answered.status == 200:
            return "ok"
        return str((await answered.json(content_type=None))["code"])


async def wait_at_prompt(url: str, machine: Machine, opened: Opened, pause_s: float = PAUSE_S) -> None:
    """Ask until *machine* opens.  A server that is away is asked again."""
    async with ClientSession() as session:
        while True:
            with suppress(ClientError, TimeoutError):
                if await ask(session, url, machine) == "ok":
                    opened(machine.name)
                    return
            await asyncio.sleep(pause_s)
