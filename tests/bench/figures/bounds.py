"""The bounds that the server is to keep, in one table: each is checked in every run, printed, and shown in docs/performance.md.

They are about one run of ``make bench`` on a machine that is otherwise idle.  The rates are of 16 clients at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tests.bench.load.generator import Kind


@dataclass(frozen=True, slots=True)
class Cause:
    """Server to watch for the reason of a missed bound; see :mod:`tests.bench.profile`."""

    database: str
    workers: int
    kind: Kind = "unlock"

    @property
    def command(self) -> str:
        """The command line that does it."""
        options = f"--database {self.database} --workers {self.workers} --kind {self.kind}"
        return f".venv/bin/python -m tests.bench.profile {options}"


@dataclass(frozen=True, slots=True)
class Bound:
    """Least or greatest value of the figure *name*."""

    name: str
    direction: Literal["at least", "at most"]
    value: float
    what: str
    cause: Cause | None = None

    def reached(self, figures: Mapping[str, float]) -> bool:
        """Return True if the figure is within the bound."""
        seen = figures[self.name]
        return seen >= self.value if self.direction == "at least" else seen <= self.value


BOUNDS: Final = (
    Bound(
        "unlock_cpu_ratio_ecdh",
        "at most",
        6.0,
        "processor time of an unlock in ECDHs, SQLite, one worker",
        cause=Cause("sqlite", 1),
    ),
    Bound(
        "unlock_cpu_ratio_ecdh_postgresql",
        "at most",
        5.5,
        "processor time of an unlock in ECDHs, PostgreSQL, one worker",
        cause=Cause("postgresql", 1),
    ),
    Bound(
        "http_sqlite_2w_unlock_16c_ratio_tangd",
        "at least",
        3.0,
        "attested unlocks to tangd's /rec, SQLite, two workers",
        cause=Cause("sqlite", 2),
    ),
    Bound(
        "http_postgresql_2w_unlock_16c_ratio_tangd",
        "at least",
        1.5,
        "attested unlocks to tangd's /rec, PostgreSQL, two workers",
        cause=Cause("postgresql", 2),
    ),
    Bound(
        "http_sqlite_2w_rec_16c_ratio_tangd",
        "at least",
        5.0,
        "plain /rec to tangd's, new connections, two workers",
        cause=Cause("sqlite", 2, "rec"),
    ),
    Bound(
        "http_sqlite_2w_rec_16c_kept_ratio_tangd",
        "at least",
        1.5,
        "plain /rec to tangd's, kept connections, two workers",
        cause=Cause("sqlite", 2, "rec"),
    ),
    Bound("exchange_ratio_ecdh", "at most", 1.2, "one exchange in ECDHs"),
    Bound(
        "sqlite_2w_storm_p99_ms",
        "at most",
        1000,
        "storm: p99 in ms, SQLite, two workers",
        cause=Cause("sqlite", 2),
    ),
    Bound(
        "postgresql_2w_storm_p99_ms",
        "at most",
        1000,
        "storm: p99 in ms, PostgreSQL, two workers",
        cause=Cause("postgresql", 2),
    ),
    Bound("sqlite_latency_ratio", "at most", 1.2, "latency with most devices to that with fewest, SQLite"),
    Bound("postgresql_latency_ratio", "at most", 1.2, "the same, PostgreSQL"),
    # As it was before the unlock got cheaper: 1.9 ms with an ECDH of 0.28 ms (2026-11-22).
    Bound("agents_cpu_ratio_ecdh", "at most", 6.8, "processor time of an agent's round in ECDHs"),
    Bound("siege_rate_share", "at least", 0.5, "siege: least share of the honest unlocks that is left"),
    Bound("siege_p99_ms", "at most", 1000, "siege: greatest p99 in ms"),
    Bound("siege_memory_mb", "at most", 300, "siege: most memory of a worker in MB"),
    Bound("pin_decrypt_ratio_tang", "at most", 1.5, "clevis-decrypt-attest to clevis-decrypt-tang"),
)

#: Measured by ``make bench-boot``.
BOOT: Final = (
    Bound("boot_ratio_tang", "at most", 1.3, "start of the initrd to root open, to that with the tang pin"),
    Bound("boot_initrd_added_mb", "at most", 1.5, "MB added to the initrd"),
)


def verdicts(figures: Mapping[str, float], bounds: tuple[Bound, ...] = BOUNDS) -> list[str]:
    """A line for each bound whose figure was measured: *reached* or *missed*."""
    return [
        f"{bound.what:62}{figures[bound.name]:9.2f}   {bound.direction} {bound.value:<6g}"
        f"{'reached' if bound.reached(figures) else 'MISSED'}"
        for bound in bounds
        if bound.name in figures
    ]


def missed(figures: Mapping[str, float]) -> list[Bound]:
    """The bounds that the *figures* are beyond."""
    return [bound for bound in BOUNDS if bound.name in figures and not bound.reached(figures)]
