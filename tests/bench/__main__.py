"""``python -m tests.bench``: this server beside Debian's tangd, and everything else that docs/performance.md shows, in one run.

Each part can be measured alone (``--only``), and in short (``--short``), which shows that every way to a figure works and whose
figures mean nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.bench import agents, profile, rates, scale, server_tpm, siege, single
from tests.bench.figures import boot, bounds, report
from tests.bench.load.besiegers import ATTACKS
from tests.bench.load.workplace import BUILD, workplace


@dataclass(frozen=True, kw_only=True)
class Extent:
    """Sizes of everything that is measured, in the parts' own words; *seconds* is the length of one measurement."""

    clients: tuple[int, ...] = (1, 16, 64)
    rounds: int = 5
    seconds: float = 1.2
    storm: int = 1000
    sizes: tuple[int, ...] = (100, 100_000)
    agents: int = 1000
    agents_interval_s: int = 10
    agents_seconds: float = 20.0
    attacks: tuple[str, ...] = tuple(ATTACKS)
    siege_seconds: float = 4.0
    calls: int = 300
    decrypts: int = 15
    profile_seconds: int = 15
    keylime: Path | None = None


SHORT: Final = Extent(
    clients=(1, 16),
    rounds=1,
    seconds=0.3,
    storm=30,
    sizes=(16, 50),
    agents=8,
    agents_interval_s=1,
    agents_seconds=2.0,
    attacks=("unknown", "handshakes"),
    siege_seconds=1.0,
    calls=4,
    decrypts=1,
    profile_seconds=1,
)


def _rates(work: Path, extent: Extent) -> dict[str, float]:
    figures = rates.bench(
        work, clients=extent.clients, rounds=extent.rounds, seconds=extent.seconds, storm=extent.storm
    )
    for name, database in (("", "sqlite"), ("_postgresql", "postgresql")):
        figures[f"unlock_cpu_ratio_ecdh{name}"] = figures[f"http_{database}_1w_unlock_16c_cpu_ratio_ecdh"]
    return figures


def _scale(work: Path, extent: Extent) -> dict[str, float]:
    return scale.bench(work, sizes=extent.sizes, rounds=extent.rounds, seconds=extent.seconds)


def _agents(work: Path, extent: Extent) -> dict[str, float]:
    measured = asyncio.run(agents.bench(work, extent.agents, extent.agents_interval_s, extent.agents_seconds))
    return {f"agents_{name}": value for name, value in measured.items()}


def _siege(work: Path, extent: Extent) -> dict[str, float]:
    measured = siege.bench(work, extent.attacks, extent.siege_seconds)
    worst = {"rate_share": min, "p99_ms": max, "memory_mb": max}
    extremes = {
        f"siege_{end}": extreme(value for name, value in measured.items() if name.endswith(f"_{end}"))
        for end, extreme in worst.items()
    }
    return {f"siege_{name}": value for name, value in measured.items()} | extremes


def _server_tpm(_: Path, extent: Extent) -> dict[str, float]:
    return {f"server_tpm_{name}": value for name, value in server_tpm.software(extent.calls).items()}


def _single(work: Path, extent: Extent) -> dict[str, float]:
    return single.bench(work, decrypts=extent.decrypts, interpreter=extent.keylime)


PARTS: Final[dict[str, Callable[[Path, Extent], dict[str, float]]]] = {
    "single": _single,
    "rates": _rates,
    "scale": _scale,
    "agents": _agents,
    "siege": _siege,
    "server_tpm": _server_tpm,
}


def bench(parts: Sequence[str], extent: Extent) -> dict[str, Any]:
    """Every figure of *parts*, and for each missed bound that has a cause the profile of its server."""
    figures: dict[str, Any] = {"run": _run()}
    for part in parts:
        print(f"{part}", file=sys.stderr, flush=True)
        with workplace(f"bench-{part}") as work:
            figures |= PARTS[part](work, extent)
    causes = {bound.name: bound.cause for bound in bounds.missed(figures) if bound.cause is not None}
    profiles = {cause: _profiled(cause, extent.profile_seconds) for cause in set(causes.values())}
    figures["profiles"] = {name: profiles[cause] for name, cause in causes.items()}
    return figures


def _profiled(cause: bounds.Cause, seconds: int) -> dict[str, float]:
    """Shares of the parts; none where nobody may watch."""
    print(f"profile: {cause.command}", file=sys.stderr, flush=True)
    try:
        with workplace("profile") as work:
            parts, _ = profile.profile(
                work, seconds=seconds, database=cause.database, workers=cause.workers, kind=cause.kind
            )
    except profile.UnwatchedError as error:
        print(f"    {error}", file=sys.stderr, flush=True)
        return {}
    return {name: round(count / parts.total(), 3) for name, count in parts.most_common()}


def _run() -> str:
    """The day, the machine, and what else it did."""
    models = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {os.cpu_count()} processors ({', '.join(models) or platform.machine()}); "
        f"Linux {platform.release()}; Python {platform.python_version()}; "
        f"load average {os.getloadavg()[0]:.1f} before the run, 0 on an idle machine"
    )


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="This server beside Debian's tangd, and more."
    )
    parser.add_argument("--only", action="append", choices=PARTS, help="measure this part; repeatable")
    parser.add_argument("--short", action="store_true", help="show that everything can be measured")
    parser.add_argument("--rounds", type=int, help="how often each rate is measured")
    parser.add_argument("--seconds", type=float, help="how long each one takes")
    parser.add_argument("--storm", type=int, help="machines of the storm")
    parser.add_argument("--sizes", type=int, nargs="+", help="devices of the registries")
    parser.add_argument("--keylime", type=Path, help="a Python that has Keylime installed")
    parser.add_argument("--output", type=Path, default=BUILD / "bench.json", help="where the JSON goes")
    parser.add_argument("--boots", type=Path, default=boot.FILE, help="what `make bench-boot` wrote")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("rounds", "seconds", "storm", "keylime")}
    given["sizes"] = tuple(sorted(options.sizes)) if options.sizes else None
    extent = replace(
        SHORT if options.short else Extent(), **{name: value for name, value in given.items() if value}
    )
    figures = bench(options.only or list(PARTS), extent)
    if options.short:
        figures["run"] += "; in short, so that no figure means anything"
    boots = boot.read(options.boots)
    report.write({**figures, **(boots[0] if boots else {})}, options.output)
    print(f"{figures['run']}\n\n{report.text(figures)}\n\n{report.boot_table(boots)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
