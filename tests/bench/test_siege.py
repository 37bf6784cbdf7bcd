"""The siege in short: under each attack honest machines go on.

The bench measures the rest of their rate on a quiet machine; beside other tests half of everything may be
gone, so what is held here is what an attack that works takes away altogether, as each of them did once.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import siege
from tests.bench.load.besiegers import ATTACKS

#: Milliseconds and share of the rate measured just before, for a machine that does much else.
PATIENT_MS = 10_000.0
LEFT = 0.02


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_honest_machines_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every attack, from one address and from two: keys come, in bounded time and memory; the JSON and the table have it."""
    output = tmp_path / "siege.json"
    assert siege.main(["--seconds", "1", "--output", str(output)]) == 0
    figures = json.loads(output.read_text())
    printed = capsys.readouterr().out
    for name, attack in ATTACKS.items():
        assert attack.what in printed
        for words in ("one", "two"):
            seen = {key: figures[f"{name}_{words}_{key}"] for key in ("rate_share", "p99_ms", "memory_mb")}
            assert seen["rate_share"] > LEFT, (name, words, seen)
            assert seen["p99_ms"] < PATIENT_MS, (name, words, seen)
            assert seen["memory_mb"] < siege.MEMORY_MB, (name, words, seen)


def test_what_is_promised_is_told_when_it_is_broken() -> None:
    """A slow p99, a rate below half, a worker that is too large."""
    figures = {
        "x_one_p99_ms": 1001.0,
        "x_one_rate_share": 0.5,
        "x_one_memory_mb": 299.0,
        "x_two_p99_ms": 10.0,
        "x_two_rate_share": 0.4,
        "x_two_memory_mb": 301.0,
    }
    assert siege.broken_promises(figures) == ["x_one_p99_ms", "x_two_rate_share", "x_two_memory_mb"]
