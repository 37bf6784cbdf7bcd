"""The figures of the last ``make bench-boot``: what attestation costs at boot, beside the stock tang pin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.bench.figures import bounds

#: Results of tests/boot/bench.py.
FILE: Final = Path(__file__).parents[3] / "build" / "boot-bench.json"

SINGLE: Final = (
    ("boot_attest_s", "start of the initrd to root open, attest pin (s)"),
    ("boot_tang_s", "start of the initrd to root open, tang pin (s)"),
)
NONE: Final = "boot: not measured here; `make bench-boot` does that, as root, in about ten minutes"


def read(path: Path) -> tuple[dict[str, float], str] | None:
    """The figures in the file, flat, and what they are and since when; None if there is no file."""
    if not path.exists():
        return None
    measured = json.loads(path.read_text())
    seconds = measured["median_seconds"]
    figures = {
        "boot_attest_s": float(seconds["attest"]),
        "boot_tang_s": float(seconds["tang"]),
        "boot_ratio_tang": float(measured["ratio_to_tang"]),
        "boot_initrd_added_mb": measured["initrd_added_bytes"] / 1e6,
    }
    runs = len(measured["seconds"]["attest"])
    return figures, f"boot, {measured['time']}, median of {runs} boots each: {measured['what']}"


def names() -> frozenset[str]:
    """The names that :func:`read` gives."""
    return frozenset(bound.name for bound in bounds.BOOT) | frozenset(name for name, _ in SINGLE)


def lines(figures: Mapping[str, float], title: str) -> list[str]:
    """The figures for eyes; the bounds are judged by the report."""
    return [title, *(f"{what:50}{figures[name]:10.3g}" for name, what in SINGLE)]
