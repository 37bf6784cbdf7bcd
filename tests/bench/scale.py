"""Latency and memory by the number of registered devices: registries of several sizes on each database, asked in turn."""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.bench.load import population, servers
from tests.bench.load.generator import CONCURRENCY, LoadGenerator, Run, summarize
from tests.bench.load.registry import DATABASES, ON_DISK, Copies, enrolled
from tests.postgres import Postgres


def bench(work: Path, *, sizes: Sequence[int], rounds: int, seconds: float) -> dict[str, float]:
    """Every figure of unlocks at one worker, by the sizes of the registry, the smallest first."""
    figures: dict[str, float] = {}
    with Postgres(ON_DISK) as postgres, LoadGenerator() as generator, ExitStack() as running:
        first = enrolled(work / "few", generator, min(CONCURRENCY, *sizes))
        places: dict[str, servers.Server] = {}
        for size in sizes:
            grown = work / f"size-{size}"
            shutil.copytree(first, grown)
            print(f"    a registry of {size:,} devices", file=sys.stderr, flush=True)
            population.grow(grown, size)
            copies = Copies(grown, postgres)
            for database in DATABASES:
                state, url = copies.make(database)
                log = work / f"{database}-{size}.log"
                server = running.enter_context(servers.serve(state, None, log, workers=1, database=url))
                places[f"{database}_{size}"] = server
        series: dict[str, list[Run]] = defaultdict(list)
        for _ in range(rounds):
            for name, server in places.items():
                clients = min(CONCURRENCY, *sizes)
                run = generator.run(
                    server.port,
                    "unlock",
                    seconds=seconds,
                    warm_up=seconds / 5,
                    keep_alive=False,
                    clients=clients,
                )
                series[name].append(run)
        for name, runs in series.items():
            figures |= summarize(name, runs) | {f"{name}_rss_mb": places[name].memory_mb()}
    return figures | _ratios(figures, sizes)


def _ratios(figures: Mapping[str, float], sizes: Sequence[int]) -> dict[str, float]:
    """Median latency with the largest registry as a multiple of that with the smallest; memory for 10,000 devices."""
    found = {}
    for database in DATABASES:
        least, most = f"{database}_{sizes[0]}", f"{database}_{sizes[-1]}"
        found[f"{database}_latency_ratio"] = figures[f"{most}_p50_ms"] / figures[f"{least}_p50_ms"]
        grown = figures[f"{most}_rss_mb"] - figures[f"{least}_rss_mb"]
        found[f"{database}_mb_per_10000"] = 10_000 * grown / (sizes[-1] - sizes[0])
    return found
