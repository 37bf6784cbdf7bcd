"""``python -m tests.bench.agents``: many agents at one server, as they are in a fleet that is watched.

Each agent is a machine with an AK of its own, real signatures and a connection that the server holds.  The
figures are the server's processor time and memory while nothing happens but rounds, and the time from a
change on a machine until its key answers nobody.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import aiohttp
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.config import Settings
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.verification import CAP_EVENT
from tang_attest.server.compose import opened
from tests.attester import Attester
from tests.bench.exchange import Price
from tests.bench.load import servers
from tests.bench.load.attester import signed
from tests.bench.load.workplace import BUILD, workplace

SELECTION: Final = "sha256:0,2,4,7,15"
_MARK: Final = hashlib.sha256(b"the qualifying data goes here").digest()
#: The server has too much to do: an agent goes away for a moment.
_LATER: Final = (429, 503)
#: Seconds after which an agent that says nothing counts as lost.
_PATIENCE_S: Final = 60
#: Machines on which something changes.
CHANGED: Final = 50


class Template:
    """A quote of one state, to be copied with other qualifying data and another clock."""

    def __init__(self, attester: Attester) -> None:
        self._quote = attester.attest(_MARK, SELECTION)
        self._at = self._quote.index(_MARK)
        self.pcrs = b64u(attester.values(SELECTION))

    def quote(self, binding: bytes, clock: int) -> bytes:
        """A TPMS_ATTEST (TPM 2.0 part 2, section 10.12.12)."""
        quote = bytearray(self._quote)
        quote[self._at : self._at + 32] = binding
        quote[self._at + 32 : self._at + 40] = clock.to_bytes(8, "big")
        return bytes(quote)


class Agent:
    """One machine's agent."""

    def __init__(self, name: str) -> None:
        attester = Attester()
        if not isinstance(attester.private, ec.EllipticCurvePrivateKey):
            raise TypeError("the AK is on P-256")
        self.name, self.ak, self._private = name, parse_ak(attester.ak_public), attester.private
        self.kid, self.rounds, self._clock = "", 0, 1000

    async def run(self, session: aiohttp.ClientSession, url: str, state: list[Template]) -> None:
        """Rounds for ever; what is in *state* is what the machine runs."""
        target, ticket, pause = f"{url}/attest/agent/{self.kid}", "", 1.0
        while True:
            body = {"ticket": ticket} if ticket else {}
            async with session.post(target, json=body) as response:
                if response.status == 204:
                    continue
                if response.status in _LATER:
                    pause = await _rest(pause)
                    continue
                challenge = (await response.json())["challenge"]
            async with session.post(f"{target}/evidence", data=self._answer(challenge, state[0])) as response:
                if response.status in _LATER:
                    pause = await _rest(pause)
                    continue
                answer = await response.json()
                if response.status != 200:
                    raise RuntimeError(f"{self.name}: {answer}")
                ticket, pause = answer["ticket"], 1.0
                self.rounds += 1

    def _answer(self, challenge: dict[str, Any], template: Template) -> bytes:
        self._clock += 10
        text = f"tang-attest/v1 verify\n{challenge['nonce']}\n{self.kid}\n"
        quote = template.quote(hashlib.sha256(text.encode()).digest(), self._clock)
        signature = b64u(signed(self._private, quote))
        return (
            f'{{"nonce":"{challenge["nonce"]}","quote":"{b64u(quote)}","signature":"{signature}",'
            f'"pcrs":"{template.pcrs}"}}'
        ).encode()


async def _rest(pause: float) -> float:
    """Go away for about *pause* seconds; for how long the next time.  As clevis-attest-agent does."""
    await asyncio.sleep(random.uniform(pause / 2, pause))
    return min(2 * pause, 300.0)


async def bench(work: Path, count: int, interval_s: int, seconds: float) -> dict[str, float]:
    """Every figure."""
    state, log = work / "state", work / "log"
    servers.init(state)
    good, bad = Attester(), Attester()
    values = Selection.parse(SELECTION).split(good.values(SELECTION))
    good.extend(15, CAP_EVENT)
    bad.pcrs = {bank: dict(pcrs) for bank, pcrs in good.pcrs.items()}
    bad.extend(7, b"tampered with")
    agents = [Agent(f"machine-{number}") for number in range(count)]
    async with opened(Settings(state=state)) as it:
        await it.reference_values.create_policy("fleet", Selection.parse(SELECTION), 15)
        await it.reference_values.record("fleet", "good", values, force=False)
        watch = Watch(interval_s=interval_s, jitter=10, misses=3, on_refused=("suspend",))
        await it.conditions.set("fleet", Conditions(watch=watch))
        for agent in agents:
            agent.kid = (await it.devices.register(agent.name, agent.ak, "fleet")).kids[0]
        with servers.serve(state, None, log) as server:
            idle_mb = server.memory_mb()
            templates = {agent.name: [Template(good)] for agent in agents}
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=120)
            async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                url = f"http://127.0.0.1:{server.port}"
                tasks = [
                    asyncio.create_task(agent.run(session, url, templates[agent.name])) for agent in agents
                ]
                try:
                    await _all_came(agents, tasks)
                    await asyncio.sleep(interval_s)  # they came together, and spread now
                    figures = await _steady(server, agents, seconds)
                    detected = await _change(it.store, agents, templates, Template(bad), interval_s)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
            figures["memory_mb"] = server.memory_mb()
            figures["memory_kb_per_agent"] = 1024 * (figures["memory_mb"] - idle_mb) / count
    figures |= {"count": count, "interval_s": interval_s}
    figures |= {"detection_p50_s": median(detected), "detection_max_s": max(detected)}
    return figures


async def _all_came(agents: Sequence[Agent], tasks: Sequence[asyncio.Task[None]]) -> None:
    async with asyncio.timeout(300):
        while not all(agent.rounds for agent in agents):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.1)


async def _steady(server: servers.Server, agents: Sequence[Agent], seconds: float) -> dict[str, float]:
    cpu, begin = server.cpu_s(), time.perf_counter()
    rounds = sum(agent.rounds for agent in agents)
    price = Price()
    while time.perf_counter() < begin + seconds:
        price.look(time.perf_counter())
        await asyncio.sleep(0.1)
    took = time.perf_counter() - begin
    done = sum(agent.rounds for agent in agents) - rounds
    used = server.cpu_s() - cpu
    return {
        "cpu_share": used / took,
        "rounds_per_s": done / took,
        "cpu_ms_per_round": 1000 * used / done,
        "cpu_ratio_ecdh": 1000 * used / done / price.ms(),
    }


async def _change(
    store: Any,
    agents: Sequence[Agent],
    templates: dict[str, list[Template]],
    bad: Template,
    interval_s: int,
) -> list[float]:
    """Something changes on some machines, each at its own moment; seconds until each is suspended."""
    changed: dict[str, float] = {}
    chosen = random.sample(list(agents), min(CHANGED, len(agents)))
    for agent in chosen:
        templates[agent.name][0] = bad
        changed[agent.name] = time.time()
        await asyncio.sleep(interval_s / len(chosen))
    end = time.perf_counter() + _PATIENCE_S + interval_s
    found: dict[str, Any] = {}
    while not found.keys() >= changed.keys() and time.perf_counter() < end:
        await asyncio.sleep(interval_s / 4)
        found = {d.name: d.suspension for d in await store.devices.list_devices() if d.suspension is not None}
    if found.keys() != changed.keys():
        raise RuntimeError(f"{len(found)} of {len(changed)} are suspended")
    return [found[name].at.timestamp() - at for name, at in changed.items()]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.agents", description="Many agents at a server."
    )
    parser.add_argument("--agents", type=int, default=1000, help="how many")
    parser.add_argument("--interval", type=int, default=10, help="seconds between two rounds of one")
    parser.add_argument("--seconds", type=float, default=20, help="how long they are looked at")
    parser.add_argument(
        "--output", type=Path, default=BUILD / "bench-agents.json", help="where the JSON goes"
    )
    options = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    with workplace("bench-agents") as work:
        figures = asyncio.run(bench(work, options.agents, options.interval, options.seconds))
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{os.cpu_count()} processors; load average {before:.1f} before the run, 0 on an idle machine")
    for name, value in figures.items():
        print(f"{name:24}{value:10.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
