"""The bench shows the last measurement of boots, and judges it; what it measures is not tested here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.figures import boot, report


def measured(path: Path, ratio: float, added: int) -> Path:
    """A file as tests/boot/bench.py writes it."""
    seconds = {"attest": [20.0 * ratio, 20.0 * ratio], "tang": [20.0, 20.0]}
    content = {
        "time": "2026-11-22T08:00+00:00",
        "what": "in some machine",
        "seconds": seconds,
        "median_seconds": {"attest": 20.0 * ratio, "tang": 20.0},
        "ratio_to_tang": ratio,
        "initrd_added_bytes": added,
    }
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("ratio", "added", "verdicts"),
    [
        pytest.param(1.3, 1_500_000, ["reached", "reached"], id="both just reached"),
        pytest.param(1.31, 600_000, ["MISSED", "reached"], id="slow"),
        pytest.param(0.9, 1_600_000, ["reached", "MISSED"], id="large"),
    ],
)
def test_the_last_measurement_is_shown_and_judged(
    tmp_path: Path, ratio: float, added: int, verdicts: list[str]
) -> None:
    """Its names are those that are promised, and the table says from when it is."""
    figures = boot.read(measured(tmp_path / "boots", ratio, added))
    assert figures is not None
    assert figures[0].keys() == boot.names()
    table = report.boot_table(figures)
    assert table.startswith("boot, 2026-11-22T08:00+00:00, median of 2 boots each: in some machine\n")
    lines = table.splitlines()[-2:]
    assert [line.split()[-1] for line in lines] == verdicts


def test_without_a_measurement_the_table_names_the_command(tmp_path: Path) -> None:
    """Nothing is made up."""
    assert boot.read(tmp_path / "missing") is None
    assert "`make bench-boot`" in report.boot_table(None)
