"""The figures of a run as text: the same on a terminal and in docs/performance.md; and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench.figures import boot, bounds

Figures = Mapping[str, Any]

_TRANSPORTS: Final = {"http": "HTTP", "p256": "HTTPS, P-256", "rsa2048": "HTTPS, RSA-2048"}
_DATABASES: Final = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
_WORKERS: Final = {"1w": "one worker", "2w": "two workers"}

#: Name, text, and number of digits after the point.
_SINGLE: Final = (
    ("exchange_ms", "one exchange (ms)", 3),
    ("ecdh_ms", "one raw P-521 ECDH (ms)", 3),
    ("quote_check_ms", "the check of one quote (ms)", 3),
    ("keylime_quote_check_ms", "Keylime's check of the same quote (ms)", 3),
    ("pin_decrypt_ms", "clevis-decrypt-attest (ms)", 0),
    ("pin_quote_ms", "... of which `tpm2 quote` (ms)", 0),
    ("tang_pin_decrypt_ms", "clevis-decrypt-tang (ms)", 0),
    ("startup_s", "start of the server, to the first answer (s)", 2),
    ("http_sqlite_1w_rss_mb", "memory after the load, one worker (MB)", 0),
    ("http_sqlite_2w_rss_mb", "memory after the load, two workers (MB)", 0),
    ("fsync_ms", "one fdatasync of 4 KiB on this disk (ms)", 3),
)
_AGENTS: Final = (
    ("agents_count", "agents", 0),
    ("agents_interval_s", "seconds between two rounds of one", 0),
    ("agents_rounds_per_s", "rounds per second", 0),
    ("agents_cpu_ms_per_round", "the server's processor time for a round (ms)", 2),
    ("agents_cpu_ratio_ecdh", "... in ECDHs", 2),
    ("agents_memory_kb_per_agent", "the server's memory for an agent (KiB)", 0),
    ("agents_detection_p50_s", "from a change to the suspension, median (s)", 1),
    ("agents_detection_max_s", "... the longest (s)", 1),
)
_TPM: Final = (
    ("server_tpm_software_exchange_ms", "an exchange with a key in the process (ms)", 2),
    ("server_tpm_tpm_exchange_ms", "... with a loaded key in the TPM (ms)", 2),
    ("server_tpm_tpm_exchange_loading_ms", "... with a key that is loaded for it (ms)", 2),
    ("server_tpm_tpm_per_s", "exchanges per second for 16 clients, one key in the TPM", 0),
)
_SIEGE: Final = (
    ("siege_rate_share", "least share of the unlocks that an attack leaves", 2),
    ("siege_p99_ms", "greatest p99 under an attack (ms)", 0),
    ("siege_memory_mb", "most memory of a worker (MB)", 0),
)


@dataclass(frozen=True, slots=True)
class Section:
    """Table of figures, its *title*, and the *part* of the bench that measures it."""

    title: str
    part: str
    lines: Sequence[str]

    @property
    def command(self) -> str:
        """Command that measures it alone."""
        return f".venv/bin/python -m tests.bench --only {self.part}"


def sections(figures: Figures) -> list[Section]:
    """Every table that *figures* have something for."""
    made = [
        Section("Attested unlocks, a connection for each request", "rates", _unlocks(figures, "")),
        Section("Attested unlocks, kept connections", "rates", _unlocks(figures, "_kept")),
        Section("Plain `/rec`", "rates", _recs(figures)),
        Section("Storm", "rates", _storms(figures)),
        Section("Size of the registry", "scale", _sizes(figures)),
        Section("Agents", "agents", _list(figures, _AGENTS)),
        Section("Siege", "siege", _list(figures, _SIEGE)),
        Section("Exchange keys in a software TPM", "server_tpm", _list(figures, _TPM)),
        Section("For scale", "single", _list(figures, _SINGLE)),
    ]
    return [section for section in made if section.lines]


def text(figures: Figures) -> str:
    """Every table, one after the other, and the verdict on each bound."""
    tables = ["\n".join([section.title, *section.lines]) for section in sections(figures)]
    return "\n\n".join([*tables, *_judged(figures)])


def _judged(figures: Figures) -> list[str]:
    lines = bounds.verdicts(figures)
    for bound in bounds.missed(figures):
        lines += ["", *missed_bound(figures, bound)] if bound.cause is not None else []
    return ["\n".join(["Bounds", *lines])] if lines else []


def missed_bound(figures: Figures, bound: bounds.Bound) -> list[str]:
    """The profile of the server whose *bound* was missed, or the command that makes it."""
    if bound.cause is None:
        return []
    parts = figures.get("profiles", {}).get(bound.name)
    title = f"missed: {bound.what}; {bound.cause.command}"
    return [title, *(f"{name:54}{100 * share:6.1f} %" for name, share in (parts or {}).items())]


def _unlocks(figures: Figures, mode: str) -> list[str]:
    clients = _clients(figures, "unlock", mode)
    rows = [
        (_spell(transport, database, workers), f"{transport}_{database}_{workers}")
        for transport in _TRANSPORTS
        for database in _DATABASES
        for workers in _WORKERS
    ]
    columns = ("per_s", "p99_ms", "cpu_ratio_ecdh", "ratio_tangd")
    return _table(figures, rows, lambda place, number: f"{place}_unlock_{number}c{mode}", clients, columns)


def _recs(figures: Figures) -> list[str]:
    clients = _clients(figures, "rec", "")
    rows = [
        (f"{server}, {connections}", f"{place}_rec_%dc{mode}")
        for mode, connections in (("", "new connections"), ("_kept", "kept connections"))
        for place, server in (
            ("tangd", "tangd"),
            ("http_sqlite_1w", "one worker"),
            ("http_sqlite_2w", "two workers"),
        )
    ]
    columns = ("per_s", "p99_ms", "ratio_tangd")
    return _table(figures, rows, lambda name, number: name % number, clients, columns)


_HEADS: Final = {"per_s": "per s", "p99_ms": "p99 ms", "cpu_ratio_ecdh": "ECDHs", "ratio_tangd": "x tangd"}
_DIGITS: Final = {"per_s": 0, "p99_ms": 0, "cpu_ratio_ecdh": 1, "ratio_tangd": 2}


def _table(
    figures: Figures,
    rows: Sequence[tuple[str, str]],
    name: Callable[[str, int], str],
    clients: Sequence[int],
    columns: Sequence[str],
) -> list[str]:
    """A group of *columns* for each number of *clients*; nothing without any."""
    if not clients:
        return []
    width = 8 * len(columns)
    heads = "".join(f"{_HEADS[column]:>8}" for column in columns)
    lines = [
        f"{'':32}" + "".join(f"{f'{number} client' + 's' * (number > 1):>{width}}" for number in clients),
        f"{'':32}" + heads * len(clients),
    ]
    for title, row in rows:
        cells = (
            _cell(figures.get(f"{name(row, number)}_{column}"), _DIGITS[column])
            for number in clients
            for column in columns
        )
        line = f"{title:32}{''.join(cells)}".rstrip()
        lines += [line] if line != title else []
    return lines


def _storms(figures: Figures) -> list[str]:
    rows = [
        (_spell(None, database, workers), f"{database}_{workers}_storm")
        for database in _DATABASES
        for workers in _WORKERS
    ]
    columns = ("opened", "per_s", "p50_ms", "p99_ms")
    return _plain(figures, rows, columns, ("machines", "per s", "p50 ms", "p99 ms"))


def _sizes(figures: Figures) -> list[str]:
    rows = [
        (f"{_DATABASES[database]}, {size:,} devices", f"{database}_{size}")
        for database in _DATABASES
        for size in sorted(
            int(name.split("_")[1])
            for name in figures
            if name.startswith(f"{database}_") and name.endswith("_rss_mb")
        )
    ]
    return _plain(
        figures, rows, ("per_s", "p50_ms", "p99_ms", "rss_mb"), ("per s", "p50 ms", "p99 ms", "RSS MB")
    )


def _plain(
    figures: Figures, rows: Sequence[tuple[str, str]], columns: Sequence[str], heads: Sequence[str]
) -> list[str]:
    rows = [(title, row) for title, row in rows if f"{row}_{columns[0]}" in figures]
    if not rows:
        return []
    lines = [f"{'':40}" + "".join(f"{head:>10}" for head in heads)]
    for title, row in rows:
        cells = (f"{figures[f'{row}_{column}']:10,.0f}" for column in columns)
        lines.append(f"{title:40}{''.join(cells)}")
    return lines


def _list(figures: Figures, names: Sequence[tuple[str, str, int]]) -> list[str]:
    return [f"{what:58}{figures[name]:10,.{digits}f}" for name, what, digits in names if name in figures]


def _cell(value: float | None, digits: int) -> str:
    return f"{'':8}" if value is None else f"{value:8,.{digits}f}"


def _clients(figures: Figures, kind: str, mode: str) -> list[int]:
    """The numbers of clients that were measured."""
    end = f"c{mode}_per_s"
    start = f"http_sqlite_1w_{kind}_"
    return sorted(
        int(name.removeprefix(start).removesuffix(end))
        for name in figures
        if name.startswith(start)
        and name.endswith(end)
        and name.removeprefix(start).removesuffix(end).isdigit()
    )


def _spell(transport: str | None, database: str, workers: str) -> str:
    place = f"{_DATABASES[database]}, {workers[0]} w"
    return (
        f"{_TRANSPORTS[transport]}, {place}" if transport else f"{_DATABASES[database]}, {_WORKERS[workers]}"
    )


def boot_table(measured: tuple[Mapping[str, float], str] | None) -> str:
    """Results of the last measurement of boots, or the command to make one."""
    if measured is None:
        return boot.NONE
    figures, title = measured
    return "\n".join(boot.lines(figures, title) + bounds.verdicts(figures, bounds.BOOT))


def write(figures: Figures, path: Path) -> None:
    """Write *figures* as one JSON object: numbers under flat names, and what else is told of the run."""
    path.parent.mkdir(exist_ok=True)
    rounded = {
        name: float(f"{value:.4g}") if isinstance(value, int | float) else value
        for name, value in sorted(figures.items())
    }
    path.write_text(json.dumps(rounded, indent=2) + "\n")
