"""The program that clevis-attest-predict calls, without a TPM: the values of PCRs are written to its standard
input.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tang_attest.errors import TangAttestError
from tests.pin.machine import PIN
from tests.pin.predict.boots import Installed
from tests.pin.predict.running import ALL, values_of

SELECTION = "sha256:" + ",".join(map(str, ALL))


@dataclass
class Program:
    """*installed* was booted, and its files may change now; *log* is the event log of that boot."""

    installed: Installed
    directory: Path
    log: bytes = b""
    values: dict[int, str] | None = None
    command: list[str | Path] = field(
        default_factory=lambda: [sys.executable, "-I", "-S", "-B", PIN / "predict"]
    )

    def boot(self) -> None:
        """Write the files and the log of their boot."""
        self.installed.install()
        self.log = self.installed.log()

    def predict(self, *options: str | Path, form: str = "json") -> subprocess.CompletedProcess[str]:
        """Predict; whatever the files and the log are, within ten seconds and without a traceback."""
        (self.directory / "log").write_bytes(self.log)
        (self.directory / "cmdline").write_text(f"{self.installed.cmdline()}\n")
        result = subprocess.run(
            [
                *self.command,
                form,
                "--selection",
                SELECTION,
                "--cap",
                "15",
                "--root",
                self.installed.root,
                *options,
            ],
            env={
                "CLEVIS_ATTEST_EVENT_LOG": str(self.directory / "log"),
                "CLEVIS_ATTEST_CMDLINE": str(self.directory / "cmdline"),
            },
            input=self._pcrread(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert result.returncode in {0, 1, 2, 4}, result.stderr
        assert "Traceback" not in result.stderr
        return result

    def _pcrread(self) -> str:
        """Output of ``tpm2 pcrread`` in the boot of the log; zeros for a log that nobody can read."""
        try:
            values = self.values or values_of(self.log)
        except (TangAttestError, KeyError):
            values = dict.fromkeys(ALL, "00" * 32)
        return "".join(f"    {pcr:<2}: 0x{value.upper()}\n" for pcr, value in values.items())
