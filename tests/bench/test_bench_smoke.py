"""The bench runs, and writes what it promises; how fast anything is depends on the machine and is not tested."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import boot, report
from tests.bench.test_boot_figures import measured


@pytest.mark.bench
def test_every_name_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON has every name of the report and no other, each a positive number; the table judges each target."""
    output = tmp_path / "bench.json"
    boots = measured(tmp_path / "boots", 1.0, 1000)
    options = ["--rounds", "1", "--seconds", "0.5", "--output", str(output), "--boots", str(boots)]
    assert bench.main(options) == 0
    figures = json.loads(output.read_text())
    assert set(figures) == report.names() | boot.names()
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name, _, _ in report.TARGETS + boot.TARGETS)
