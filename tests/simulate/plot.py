"""Two pictures of a run, drawn by gnuplot."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tests.simulate.fleet import Boot

_COLORS: Final = ("#4c72b0", "#55a868", "#8172b2", "#937860")
_RED: Final = "#c44e52"
#: Gnuplot draws what is given; more points than pixels only make the file larger.
_PIXELS: Final = 1600


def rollout(boots: Sequence[Boot], events: Sequence[tuple[float, str]], path: Path) -> None:
    """Number of machines last permitted with each software, and last refused."""
    names = list(dict.fromkeys(boot.software for boot in boots if boot.code == "ok"))
    last: dict[str, str] = {}
    counts = dict.fromkeys([*names, "refused"], 0)
    rows: list[list[float]] = []
    for boot in sorted(boots, key=lambda boot: boot.at):
        if (before := last.get(boot.machine)) is not None:
            counts[before] -= 1
        now = last[boot.machine] = boot.software if boot.code == "ok" else "refused"
        counts[now] += 1
        rows.append([boot.at, *counts.values()])
    rows = rows[:: max(1, len(rows) // _PIXELS)] + rows[-1:]
    colors = [_COLORS[number % len(_COLORS)] for number in range(len(names))] + [_RED]
    curves = [
        f"$data using 1:{column} with steps lw 2 lc rgb '{color}' title '{_quoted(name)}'"
        for column, (name, color) in enumerate(zip(counts, colors, strict=True), 2)
    ]
    settings = ["set ylabel 'machines'", "set title 'What the machines run, by their last boot'"]
    _draw(path, rows, settings + _marks(events), curves)


def latency(boots: Sequence[Boot], events: Sequence[tuple[float, str]], path: Path) -> None:
    """Duration of each unlock."""
    rows = [[boot.at, 1000 * boot.seconds, float(boot.code != "ok")] for boot in boots]
    curves = [
        f"$data using 1:($3=={code} ? $2 : NaN) with points pt 7 ps 0.4 lc rgb '{color}' title '{title}'"
        for code, color, title in ((0, _COLORS[0], "permitted"), (1, _RED, "refused"))
    ]
    settings = [
        "set logscale y",
        "set yrange [1:*]",
        "set ylabel 'one unlock (ms)'",
        "set title 'Latency of each unlock'",
    ]
    _draw(path, rows, settings + _marks(events), curves)


def _marks(events: Iterable[tuple[float, str]]) -> list[str]:
    events = list(events)
    lines = [f"set xrange [{min(at for at, _ in events):g}:*]"]
    for number, (at, name) in enumerate(events):
        lines.append(f"set arrow from {at}, graph 0 to {at}, graph 1 nohead lc rgb '#bbbbbb'")
        height = 0.97 - 0.045 * (number % 4)
        lines.append(
            f"set label '{_quoted(name)}' at {at}, graph {height} font ',9' tc rgb '#555555' offset 0.3,0"
        )
    return lines


def _draw(
    path: Path, rows: Sequence[Sequence[float]], settings: Sequence[str], curves: Sequence[str]
) -> None:
    data = "\n".join(" ".join(f"{value:g}" for value in row) for row in rows)
    script = "\n".join(
        [
            f"set terminal pngcairo size {_PIXELS},700 font 'DejaVu Sans,11' noenhanced",
            f"set output '{_quoted(str(path))}'",
            "set xlabel 'seconds'",
            "set key outside below horizontal",
            "set yrange [0:*]",
            "set offsets 0, graph 0.02, graph 0.05, 0",
            "set grid ytics lc rgb '#eeeeee'",
            *settings,
            f"$data << EOD\n{data}\nEOD",
            f"plot {', '.join(curves)}",
        ]
    )
    subprocess.run(["gnuplot"], input=script, text=True, check=True, capture_output=True, timeout=120)


def _quoted(text: str) -> str:
    return text.replace("'", "''")
