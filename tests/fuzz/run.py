"""One target in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "tests.fuzz.targets."
#: Every target's name.
NAMES = sorted(path.stem for path in (ROOT / "tests/fuzz/targets").glob("*.py"))


@dataclass(frozen=True, slots=True)
class Fuzzing:
    """A target: its module; what was interesting is kept in *corpus*, and what failed in *findings*."""

    module: str
    corpus: Path
    findings: Path

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """tests.fuzz.one, with *flags*; its stdout says what it does; it fails when it found something."""
        work = self.findings / "work"  # libFuzzer ends a process without its cleaning up
        for directory in (self.corpus, self.findings, work):
            directory.mkdir(parents=True, exist_ok=True)
        prefix = f"-artifact_prefix={self.findings}/"
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.one", self.module, prefix, *flags, str(self.corpus)],
            cwd=ROOT,
            # One order of sets, so that a seed gives the same run.
            env={
                **os.environ,
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": str(ROOT / "clevis-pin"),
                "PYTHONUNBUFFERED": "1",
                "TMPDIR": str(work),
            },
            stdin=subprocess.DEVNULL,
            # atheris prints tracebacks to stdout, libFuzzer writes to stderr.
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def found(self) -> list[Path]:
        """The inputs that failed, now or before."""
        return sorted(path for path in self.findings.glob("*") if path.is_file())
