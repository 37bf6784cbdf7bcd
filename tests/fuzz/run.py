"""One target in a process of its own, with its seeds as files."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import targets
from tests.fuzz.target import Target

#: Seconds that one input may take, and MiB that the process may have.  The parsers' own limits keep them far below.
UNIT_SECONDS = 10
MEMORY_MIB = 1024

PREFIX = f"{targets.__name__}."
#: Every target's name.
NAMES = sorted(path.stem for path in Path(next(iter(targets.__path__))).glob("*.py"))


@dataclass(frozen=True, slots=True)
class Fuzzing:
    """A target: MODULE; what was interesting is kept in *corpus*, and what failed in *findings*."""

    module: str
    corpus: Path
    findings: Path

    def start(self, *flags: str) -> subprocess.Popen[str]:
        """libFuzzer, with *flags* of its own; its stdout says what it does; it fails when it found something."""
        target: Target = importlib.import_module(self.module).TARGET
        for directory in (self.corpus, self.findings):
            directory.mkdir(parents=True, exist_ok=True)
        for seed in target.corpus():
            (self.corpus / hashlib.sha256(seed).hexdigest()[:40]).write_bytes(seed)
        limits = [
            f"-max_len={target.max_length}",
            f"-timeout={UNIT_SECONDS}",
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-artifact_prefix={self.findings}/",
        ]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.one", self.module, *limits, *flags, str(self.corpus)],
            cwd=Path(__file__).resolve().parents[2],
            # One order of sets and dicts, so that a seed gives the same run.
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"},
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
