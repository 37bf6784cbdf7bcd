"""``python -m tests.bench``: this server beside Debian's tangd, in one run.

Everything is asked by one load generator (load/generator.py), in turn, several times over: the machine's other work then
disturbs all alike, and what counts are the ratios of medians.  docs/performance.md says what is measured and why.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench import exchange
from tests.bench.figures import boot, report
from tests.bench.load import servers
from tests.bench.load.attester import SELECTION
from tests.bench.load.generator import CONCURRENCY, Kind, LoadGenerator, Run, summarize
from tests.bench.pin import Pin
from tests.bench.workplace import BUILD, workplace
from tests.ports import free_port
from tests.tang.servers import keygen

#: Prefix of the names in the JSON, which server, what is asked of it.
_SCENARIOS: Final[tuple[tuple[str, str, Kind], ...]] = (
    ("tangd_adv", "tangd", "adv"),
    ("adv", "ours", "adv"),
    ("tangd_rec", "tangd", "rec"),
    ("plain_rec", "ours", "rec"),
    ("attested_unlock", "ours", "unlock"),
)


def bench(work: Path, *, rounds: int, seconds: float, starts: int, decrypts: int) -> dict[str, float]:
    """Every figure of the report."""
    state, tang_dir, log = work / "state", work / "tang", work / "log"
    servers.init(state)
    tang_dir.mkdir()
    keygen(tang_dir)
    tokens = servers.create_tokens(state, [SELECTION] * (CONCURRENCY + 1))
    figures = {"concurrency": float(CONCURRENCY), "fsync_ms": _fsync_ms(work), **exchange.measure()}
    startups, port = [], free_port()
    for _ in range(starts):
        with servers.serve(state, tang_dir, log) as server:
            startups.append(server.startup_s)
    figures["startup_s"] = median(startups)
    with Pin(work) as pin:
        # Bound without the Tang directory: with it, /adv is signed by keys that the pin then misses in /attest/adv.
        with servers.serve(state, None, log, port):
            attest = pin.bind_attest(port, tokens.pop())
        with servers.serve(state, tang_dir, log, port) as server, servers.tangd(tang_dir) as tangd_port:
            figures |= pin.measure(attest, pin.bind_tang(port), decrypts)
            with LoadGenerator() as generator:
                generator.enroll(port, [f"machine-{number}" for number in range(CONCURRENCY)], tokens)
                figures |= _load(generator, server, tangd_port, rounds, seconds)
            figures["rss_mb"] = server.memory_mb()
    for mode in ("", "_keepalive"):
        for name, prefix in (("plain_rec", "plain_rec"), ("attested_unlock", "attested_unlock")):
            ratio = figures[f"{prefix}{mode}_per_s"] / figures[f"tangd_rec{mode}_per_s"]
            figures[f"{name}_ratio_tangd{mode}"] = ratio
    return figures


def _load(
    generator: LoadGenerator, server: servers.Server, tangd_port: int, rounds: int, seconds: float
) -> dict[str, float]:
    ports = {"ours": server.port, "tangd": tangd_port}
    runs: dict[str, list[Run]] = defaultdict(list)
    server_ms, ecdhs = [], []
    for _ in range(rounds):
        for mode in ("", "_keepalive"):
            for prefix, which, kind in _SCENARIOS:
                before, begin = server.cpu_s(), time.perf_counter()
                run = generator.run(
                    ports[which], kind, seconds=seconds, warm_up=seconds / 5, keep_alive=bool(mode)
                )
                runs[prefix + mode].append(run)
                if (prefix, mode) == ("attested_unlock", ""):
                    share = seconds / (time.perf_counter() - begin)
                    server_ms.append(1000 * (server.cpu_s() - before) * share / run.count)
                    # At once: the speed of this machine wanders.
                    ecdhs.append(server_ms[-1] / exchange.ecdh_ms())
    figures: dict[str, float] = {
        "server_cpu_ms_per_unlock": median(server_ms),
        "unlock_cpu_ratio_ecdh": median(ecdhs),
    }
    for name, several in runs.items():
        figures |= summarize(name, several)
    for name, prefix in (("unlock", "attested_unlock"), ("rec", "plain_rec")):
        figures[f"loadgen_ms_per_{name}"] = median(1000 * run.cpu_s / run.count for run in runs[prefix])
    return figures


def _fsync_ms(directory: Path) -> float:
    """Least time of the disk for a durable commit."""
    times = []
    with (directory / "fsync").open("wb", buffering=0) as file:
        for _ in range(50):
            begin = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begin)
    return 1000 * median(times)


def main(arguments: Sequence[str]) -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="This server beside Debian's tangd."
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each measurement is repeated")
    parser.add_argument("--seconds", type=float, default=1.2, help="how long each one takes")
    parser.add_argument("--output", type=Path, default=BUILD / "bench.json", help="where the JSON goes")
    parser.add_argument("--boots", type=Path, default=boot.FILE, help="what `make bench-boot` wrote")
    options = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    with workplace("bench") as work:
        figures = bench(work, rounds=options.rounds, seconds=options.seconds, starts=3, decrypts=15)
    boots = boot.read(options.boots)
    report.write({**figures, **(boots[0] if boots else {})}, options.output)
    print(f"{os.cpu_count()} processors; load average {before:.1f} before the run, 0 on an idle machine\n")
    print(f"{report.table(figures)}\n\n{report.boot_table(boots)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
