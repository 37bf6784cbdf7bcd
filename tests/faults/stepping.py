"""A clock that steps under a running server: libfaketime, which reads a file at each call."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path


@dataclass
class SteppingClock:
    """The wall clock of processes that run with :attr:`environment`; their monotonic clock is the machine's."""

    file: Path

    def __post_init__(self) -> None:
        self.step(timedelta(0))

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a process, and of those that it starts."""
        [library] = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def step(self, off: timedelta) -> None:
        """Be *off* from the machine's clock from now on."""
        beside = self.file.with_suffix(".new")
        beside.write_text(f"{off.total_seconds():+.0f}s\n")
        beside.replace(self.file)
