"""``python -m tests.bench.siege``: honest machines at a server that strangers attack.

Each attack gets 100 KB/s in all, from one address and from two, for as long as honest machines unlock.  The
figures are the unlocks left of those without an attack, measured just before, the time of the slowest,
and the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import quantiles
from typing import Final

from tests.bench.figures import report
from tests.bench.load import servers
from tests.bench.load.attester import SELECTION, Blinded, Machine
from tests.bench.load.besiegers import ATTACKS, OVER_TLS, Target, besiege
from tests.bench.load.client import Answer, parse, request
from tests.bench.load.workplace import BUILD, workplace
from tests.cli.installation.test_serve import self_signed

#: Bytes a second of all attackers together.
BYTES_PER_S: Final = 100_000
#: Honest machines that unlock all the time, each after the one before.
MACHINES: Final = 4
#: Promises of the server: milliseconds, share of the rate, MB.
P99_MS: Final = 1000.0
RATE_SHARE: Final = 0.5
MEMORY_MB: Final = 300.0
#: Seconds in which an attack gets going before anything is measured.
_WARM_UP_S: Final = 1.0
_HONEST: Final = "127.0.0.1"
_STRANGERS: Final = ("127.0.0.2", "127.0.0.3")
#: Seconds after which an unlock that is tried again and again counts as never.
_PATIENCE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Unlocks:
    """Answers to honest machines in *seconds*; *failed* are requests that had to be made again."""

    seconds: float
    latencies: tuple[float, ...]
    failed: int

    @property
    def rate(self) -> float:
        """For each second."""
        return len(self.latencies) / self.seconds

    @property
    def p99_ms(self) -> float:
        """The slowest, but for one of a hundred; infinite when there are none."""
        if len(self.latencies) < 2:
            return 1000 * max(self.latencies, default=float("inf"))
        return 1000 * quantiles(self.latencies, n=100, method="inclusive")[98]


# --- honest machines --------------------------------------------------------------------------------------------------


async def _ask(target: Target, message: bytes) -> Answer | None:
    """One request over a connection of its own; ``None`` when the connection failed."""
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", target.port, ssl=target.context(), local_addr=(_HONEST, 0)
        )
    except OSError:
        return None
    try:
        writer.write(message)
        return await _answer(reader)
    except OSError:
        return None
    finally:
        writer.transport.abort()


async def _answer(reader: asyncio.StreamReader) -> Answer | None:
    received = bytearray()
    while (answer := parse(received)) is None:
        if not (data := await reader.read(65536)):
            return None
        received += data
    return answer


async def _unlock(target: Target, machine: Machine, x: Blinded) -> int:
    """Both requests, again and again until the key comes; how often something failed."""
    failed = 0
    while True:
        asked = await _ask(target, request("POST", machine.target, x.jwk))
        if asked is not None and asked.status == 401:
            nonce = asked.body.split(b'"nonce":"')[1].split(b'"')[0].decode()
            answer = await _ask(target, request("POST", machine.target, machine.evidence(nonce, x)))
            if answer is not None and answer.status == 200:
                x.check(answer.body, machine.server)
                return failed
        failed += 1
        await asyncio.sleep(0.05)


async def _unlock_for(target: Target, machines: Sequence[Machine], seconds: float) -> Unlocks:
    latencies: list[float] = []
    failed = 0
    end = time.perf_counter() + seconds

    async def unlock_again(machine: Machine) -> None:
        nonlocal failed
        blinded = [Blinded.make() for _ in range(4)]
        number = 0
        while (begin := time.perf_counter()) < end:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    failed += await _unlock(target, machine, blinded[number % 4])
            except TimeoutError:
                failed += 1
            latencies.append(time.perf_counter() - begin)
            number += 1

    await asyncio.gather(*(unlock_again(machine) for machine in machines))
    return Unlocks(seconds, tuple(latencies), failed)


def _be_honest(pipe: Connection, port: int, tokens: Sequence[str]) -> None:
    """The process of the honest machines: enrolls them at *port*, then unlocks when told."""
    machines = [Machine(port, f"machine-{number}", token) for number, token in enumerate(tokens)]
    pipe.send([machine.kid for machine in machines])
    while (told := pipe.recv()) is not None:
        target, seconds = told
        pipe.send(asyncio.run(_unlock_for(target, machines, seconds)))


@contextmanager
def _honest_machines(port: int, tokens: Sequence[str]) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_be_honest, args=(theirs, port, list(tokens)), daemon=True)
    process.start()
    try:
        yield ours
        ours.send(None)
        process.join(10)
    finally:
        if process.exitcode is None:
            process.terminate()


# --- the siege --------------------------------------------------------------------------------------------------------


@contextmanager
def _strangers(attack: str, target: Target, addresses: Sequence[str]) -> Iterator[BaseProcess]:
    context = multiprocessing.get_context("spawn")
    process = context.Process(
        target=besiege, args=(attack, target, tuple(addresses), BYTES_PER_S), daemon=True
    )
    process.start()
    try:
        yield process
    finally:
        alive = process.exitcode is None
        process.terminate()
        process.join(10)
        if not alive:
            raise RuntimeError(f"the attackers of '{attack}' gave up")


def _measure(honest: Connection, target: Target, seconds: float) -> Unlocks:
    honest.send((target, seconds))
    seen: Unlocks = honest.recv()
    return seen


def _besieged(
    honest: Connection, server: servers.Server, target: Target, attack: str, seconds: float
) -> dict[str, float]:
    """The figures of one attack."""
    figures: dict[str, float] = {}
    for words, addresses in (("one", _STRANGERS[:1]), ("two", _STRANGERS)):
        calm = _measure(honest, target, seconds)
        with _strangers(attack, target, addresses):
            time.sleep(_WARM_UP_S)
            under = _measure(honest, target, seconds)
            figures[f"{attack}_{words}_memory_mb"] = server.worker_mb()
        figures[f"{attack}_{words}_calm_per_s"] = calm.rate
        figures[f"{attack}_{words}_per_s"] = under.rate
        figures[f"{attack}_{words}_rate_share"] = under.rate / calm.rate
        figures[f"{attack}_{words}_p99_ms"] = under.p99_ms
        figures[f"{attack}_{words}_failed"] = float(under.failed)
    return figures


def bench(work: Path, attacks: Sequence[str], seconds: float) -> dict[str, float]:
    """The figures of *attacks*, each of *seconds* from one address and from two."""
    state, log = work / "state", work / "log"
    servers.init(state)
    tokens = servers.create_tokens(state, [SELECTION] * MACHINES)
    flags = ["--limit-exempt", f"{_HONEST}/32", "--admin-api"]
    figures: dict[str, float] = {}
    certificate, key = self_signed(work, "siege")
    with (
        servers.serve(state, None, log, flags=flags) as server,
        _honest_machines(server.port, tokens) as honest,
    ):
        kids = tuple(honest.recv())
        target = Target(server.port, kids)
        for attack in (attack for attack in attacks if attack not in OVER_TLS):
            _say(attack)
            figures |= _besieged(honest, server, target, attack, seconds)
        chosen = [attack for attack in attacks if attack in OVER_TLS]
        if chosen:
            tls = [*flags, "--tls-certificate", str(certificate), "--tls-key", str(key)]
            with servers.serve(state, None, work / "tls.log", flags=tls) as server_of_tls:
                target = Target(server_of_tls.port, kids, tls=True)
                for attack in chosen:
                    _say(attack)
                    figures |= _besieged(honest, server_of_tls, target, attack, seconds)
    if b"Traceback" in log.read_bytes():
        raise RuntimeError(f"an attack led to a defect; see {log}")
    return figures


def _say(sentence: str) -> None:
    print(f"    {sentence}", file=sys.stderr, flush=True)


def table(figures: dict[str, float], attacks: Sequence[str]) -> str:
    """Every attack, and whether the server keeps what it promises."""
    lines = [
        f"{'100 KB/s of attackers':34}{'one address':>32}{'two addresses':>32}",
        f"{'':34}" + f"{'unlocks left':>14}{'p99 ms':>9}{'MB':>9}" * 2,
    ]
    for attack in attacks:
        line = f"{ATTACKS[attack].what:34}"
        for words in ("one", "two"):
            share, p99, memory = (
                figures[f"{attack}_{words}_{name}"] for name in ("rate_share", "p99_ms", "memory_mb")
            )
            line += f"{100 * share:12.0f} %{p99:9.0f}{memory:9.0f}"
        lines.append(line)
    broken = broken_promises(figures)
    lines += ["", "not kept: " + ", ".join(broken) if broken else "every promise is kept"]
    return "\n".join(lines)


def broken_promises(figures: dict[str, float]) -> list[str]:
    """The names of the figures that are beyond what is promised."""
    return [
        name
        for name, value in figures.items()
        if (name.endswith("_p99_ms") and value > P99_MS)
        or (name.endswith("_rate_share") and value < RATE_SHARE)
        or (name.endswith("_memory_mb") and value > MEMORY_MB)
    ]


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.siege", description="A server under attack.")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each attack is measured")
    parser.add_argument("--attack", action="append", choices=sorted(ATTACKS), help="only this; repeatable")
    parser.add_argument("--output", type=Path, default=BUILD / "bench-siege.json", help="where the JSON goes")
    options = parser.parse_args(arguments)
    attacks = options.attack or list(ATTACKS)
    before = os.getloadavg()[0]
    with workplace("bench-siege") as work:
        figures = bench(work, attacks, options.seconds)
    report.write(figures, options.output)
    print(f"{os.cpu_count()} processors; load average {before:.1f} before the run, 0 on an idle machine\n")
    print(table(figures, attacks))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
