"""The report of ``python -m tests.bench.scale``: three tables, and a verdict on each target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

PLACES: Final = ("sqlite_1w", "sqlite_2w", "postgresql_1w", "postgresql_2w")
DATABASES: Final = ("sqlite", "postgresql")
#: Target of each number of workers, as a multiple of tangd's plain /rec of the same run.
TARGETS: Final = {
    "1w": {"rec": 2.0, "unlock": 1.3},
    "2w": {"rec": 4.0, "unlock": 2.0},
}
#: By how much the latency of an unlock may differ from that of the smallest registry.
FLAT: Final = 0.20
STORM_P99_MS: Final = 3000.0


def ratios(figures: Mapping[str, float], clients: Sequence[int], sizes: Sequence[int]) -> dict[str, float]:
    """The figures that are compared with the targets."""
    found = {
        f"{place}_{kind}_{number}c_ratio_tangd": figures[f"{place}_{kind}_{number}c_per_s"]
        / figures[f"tangd_rec_{number}c_per_s"]
        for number in clients
        for place in PLACES
        for kind in ("rec", "unlock")
    }
    for database in DATABASES:
        smallest = figures[f"{database}_{sizes[0]}_p50_ms"]
        for size in sizes[1:]:
            found[f"{database}_{size}_latency_ratio"] = figures[f"{database}_{size}_p50_ms"] / smallest
        grown = figures[f"{database}_{sizes[-1]}_rss_mb"] - figures[f"{database}_{sizes[0]}_rss_mb"]
        found[f"{database}_mb_per_10000"] = 10_000 * grown / (sizes[-1] - sizes[0])
    return found


def tables(figures: Mapping[str, float], clients: Sequence[int], sizes: Sequence[int]) -> str:
    """Every figure that a person compares."""
    workers = [line for number in clients for line in [*_workers(figures, number), ""]]
    return "\n".join([*workers, *_storms(figures), "", *_sizes(figures, sizes)])


def _workers(figures: Mapping[str, float], clients: int) -> list[str]:
    lines = [
        f"{f'{clients} clients, a connection for each request':44}{'per s':>8}{'p50 ms':>9}{'p99 ms':>9}{'times tangd':>13}",
        f"{'tangd /rec':44}{_row(figures, f'tangd_rec_{clients}c')}",
    ]
    for place in PLACES:
        for kind, what in (("rec", "plain /rec"), ("unlock", "attested unlock")):
            least = TARGETS[place[-2:]][kind]
            ratio = figures[f"{place}_{kind}_{clients}c_ratio_tangd"]
            row = f"{f'{_spell(place)}: {what}':44}{_row(figures, f'{place}_{kind}_{clients}c')}"
            lines.append(f"{row}{ratio:13.2f}   target: at least {least:<4}{_verdict(ratio >= least)}")
    return lines


def _storms(figures: Mapping[str, float]) -> list[str]:
    lines = [f"{'reboot storm':44}{'per s':>8}{'p50 ms':>9}{'p99 ms':>9}{'opened':>13}"]
    for place in PLACES:
        met = _verdict(figures[f"{place}_storm_p99_ms"] < STORM_P99_MS)
        row = f"{_spell(place):44}{_row(figures, f'{place}_storm')}{figures[f'{place}_storm_opened']:13,.0f}"
        lines.append(f"{row}   target: p99 under 3 s {met}")
    return lines


def _sizes(figures: Mapping[str, float], sizes: Sequence[int]) -> list[str]:
    lines = [
        f"{'attested unlock, one worker':44}{'per s':>8}{'p50 ms':>9}{'p99 ms':>9}{'RSS MB':>13}   p50, of the smallest"
    ]
    for database in DATABASES:
        for size in sizes:
            name = f"{database}_{size}"
            row = f"{f'{_spell(database)}, {size:,} devices':44}{_row(figures, name)}{figures[f'{name}_rss_mb']:13.0f}"
            if size != sizes[0]:
                ratio = figures[f"{name}_latency_ratio"]
                row += f"{ratio:8.2f}   target: within 20% {_verdict(ratio <= 1 + FLAT)}"
            lines.append(row)
    lines += [
        f"{f'memory for 10,000 more devices, {_spell(database)} (MB)':61}{figures[f'{database}_mb_per_10000']:9.2f}"
        for database in DATABASES
    ]
    return lines


def _row(figures: Mapping[str, float], name: str) -> str:
    rate, p50, p99 = (figures[f"{name}_{what}"] for what in ("per_s", "p50_ms", "p99_ms"))
    return f"{rate:8.0f}{p50:9.1f}{p99:9.1f}"


def _spell(place: str) -> str:
    database, _, workers = place.partition("_")
    name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[database]
    return f"{name}, {workers[0]} worker{'s' if workers[0] != '1' else ''}" if workers else name


def _verdict(met: bool) -> str:
    return "met" if met else "NOT MET"
