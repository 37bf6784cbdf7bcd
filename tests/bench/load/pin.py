"""The pin beside clevis's tang pin: how long a machine that boots waits for its passphrase."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Final, Self

from tests.swtpm import Swtpm

CLEVIS_PIN: Final = Path(__file__).parents[3] / "clevis-pin"
_SECRET: Final = b"the passphrase of a disk"


class Pin:
    """A machine with a software TPM, and one secret bound with each pin."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._tpm = self._stack.enter_context(Swtpm(self._work / "tpm"))
        self._environment = self._tpm.environment | {
            "PATH": f"{CLEVIS_PIN}{os.pathsep}{os.environ['PATH']}",
            "CLEVIS_ATTEST_STATE_DIR": str(self._work / "pin-state"),
            "CLEVIS_ATTEST_RUN_DIR": str(self._work / "pin-run"),
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def bind_attest(self, port: int, token: str) -> bytes:
        """Enroll, and encrypt a secret."""
        config = {"url": f"http://127.0.0.1:{port}", "name": "pin", "token": token}
        return self._run([CLEVIS_PIN / "clevis-encrypt-attest", json.dumps(config), "-y"], _SECRET)

    def bind_tang(self, port: int) -> bytes:
        """Encrypt a secret with the tang pin."""
        return self._run(
            ["clevis-encrypt-tang", json.dumps({"url": f"http://127.0.0.1:{port}"}), "-y"], _SECRET
        )

    def measure(self, attest: bytes, tang: bytes, rounds: int) -> dict[str, float]:
        """Decrypt both secrets, in turn; medians.  The quote alone is measured too."""
        quote: list[str | Path] = [
            "tpm2",
            "quote",
            "-Q",
            "-c",
            "0x81010002",
            "-l",
            "sha256:0,2,4,7",
            "-q",
            "00",
        ]
        seconds: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            pin = CLEVIS_PIN / "clevis-decrypt-attest"
            seconds["pin_decrypt_ms"].append(self._time([pin], attest, _SECRET))
            seconds["tang_pin_decrypt_ms"].append(self._time(["clevis-decrypt-tang"], tang, _SECRET))
            seconds["pin_quote_ms"].append(self._time(quote))
        figures = {name: 1000 * median(times) for name, times in seconds.items()}
        figures["pin_decrypt_ratio_tang"] = figures["pin_decrypt_ms"] / figures["tang_pin_decrypt_ms"]
        return figures

    def _time(self, command: list[str | Path], stdin: bytes = b"", stdout: bytes = b"") -> float:
        begin = time.perf_counter()
        printed = self._run(command, stdin)
        seconds = time.perf_counter() - begin
        if printed != stdout:
            raise RuntimeError(f"{command[0]} printed something else")
        return seconds

    def _run(self, command: list[str | Path], stdin: bytes) -> bytes:
        run = subprocess.run(
            command, input=stdin, env=self._environment, capture_output=True, timeout=120, check=False
        )
        if run.returncode != 0:
            raise RuntimeError(f"{command[0]} failed: {run.stderr.decode(errors='replace')}")
        return run.stdout
