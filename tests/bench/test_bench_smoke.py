"""The bench runs, and writes what it promises; how fast anything is depends on the machine and is not tested."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import profile, scale, server_tpm
from tests.bench.figures import boot, report, scale_report
from tests.bench.figures.test_boot import measured


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


@pytest.mark.bench
def test_the_server_tpm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every figure is a positive number, printed and written."""
    output = tmp_path / "bench.json"
    assert server_tpm.main(["--calls", "4", "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    assert len(figures) == 9
    assert all(math.isfinite(value) and value > 0 for value in figures.values())
    printed = capsys.readouterr().out
    assert all(name in printed for name in figures)


@pytest.mark.bench
def test_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each database, number of workers and size of the registry is measured, and every machine of the storm opened."""
    output = tmp_path / "scale.json"
    options = ["--rounds", "1", "--seconds", "0.5", "--storm", "80", "--sizes", "20", "300"]
    assert scale.main([*options, "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    for place in scale_report.PLACES:
        for clients in scale.Options.clients:
            assert figures[f"{place}_rec_{clients}c_ratio_tangd"] > 0
            assert figures[f"{place}_unlock_{clients}c_ratio_tangd"] > 0
        assert figures[f"{place}_storm_opened"] == 80
    for database in scale_report.DATABASES:
        assert figures[f"{database}_300_latency_ratio"] > 0
    assert "PostgreSQL, 300 devices" in capsys.readouterr().out


def test_samples_are_shared_out() -> None:
    """Each sample belongs to one part, the first that fits; what fits nowhere is told."""
    stacks = (
        "run (asyncio/runners.py);answer (tang_attest/web/app.py);verify_quote (tang_attest/protocol/quote.py) 3\n"
        "run (asyncio/runners.py);start (aiohttp/web_protocol.py) 2\n"
        "_worker (concurrent/futures/thread.py);find (tang_attest/store/records/keys.py);execute (sqlalchemy/x.py) 4\n"
        "main (somewhere.py) 1\n"
    )
    assert profile.share_out(stacks) == {
        "checking the quote": 3,
        "aiohttp": 2,
        "finding key, device and policy, but for SQLite": 4,
        "other": 1,
    }
