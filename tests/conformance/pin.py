"""A machine with a software TPM whose pin the conformance kit tests."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.initrd.scene import Scene
from tests.pin.machine import PIN, Machine
from tests.pin.signed_values.search import jws, write
from tests.swtpm import Swtpm
from tools.vectors.keys import VECTORS

KIT = VECTORS.parent / "tools" / "conformance"

_AK = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
_CONFIG = '{"url":"{url}","token":"{token}","thp":"{thp}","name":"{name}"}'


@dataclass
class PinUnderTest:
    """A copy of the pin and of the initrd's cap on one machine, for the kit to run."""

    machine: Machine
    directory: Path

    def __post_init__(self) -> None:
        self.pin = self.directory / "pin"
        shutil.copytree(PIN, self.pin, ignore=shutil.ignore_patterns("__pycache__"))
        self.scene = Scene(self.directory / "initrd", self.machine.tpm.environment)
        (self.directory / "initrd/dev/tpmrm0").touch()
        # More statements than are sent, so that the kit sees the limits kept.
        for number in range(10):
            write(
                self.directory / "root", f"etc/clevis-attest/{number}.tang-attest.jws", jws(f"{number}", 9000)
            )

    @staticmethod
    def make_ak(tpm: Swtpm) -> None:
        """Make the AK as the pin does, and write its public half."""
        tpm.run(
            "tpm2",
            "createprimary",
            "-Q",
            "-C",
            "o",
            "-G",
            "ecc256:ecdsa-sha256:null",
            "-a",
            _AK,
            "-c",
            "ak.ctx",
        )
        tpm.run("tpm2", "evictcontrol", "-Q", "-C", "o", "-c", "ak.ctx", "0x81010002")
        tpm.run("tpm2", "readpublic", "-Q", "-c", "0x81010002", "-o", "ak.pub")
        tpm.run("tpm2", "flushcontext", "-t")

    def kit(self, *words: str, timeout: float = 240) -> tuple[int, list[dict[str, Any]]]:
        """Status and results of the kit."""
        path = f"{self.directory / 'initrd/bin'}:{self.pin}:{self.machine.environment['PATH']}"
        done = subprocess.run(
            [sys.executable, str(KIT), "client", "--json", "--ak-public", str(self.machine.tpm.directory / "ak.pub"), *words],
            env={**self.machine.environment, "PATH": path, "CLEVIS_ATTEST_ROOT": str(self.directory / "root")},
            capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)["results"]

    def run(self, *only: str, fail_fast: bool = False, timeout: float = 240) -> list[dict[str, Any]]:
        """Results of the duties that *only* chooses, of bind, unlock and cap."""
        words = [word for chosen in only for word in ("--only", chosen)]
        words += ["--fail-fast"] if fail_fast else []
        cap = f"dash {self.directory}/initrd/lib/clevis-attest-cap"
        events = str(self.scene.run_directory / "cap-events")
        bind = f"clevis-encrypt-attest '{_CONFIG}'"
        _, results = self.kit(
            *words,
            "--bind",
            bind,
            "--cap",
            cap,
            "--cap-events",
            events,
            "--",
            "clevis-decrypt-attest",
            timeout=timeout,
        )
        return results

    def patch(self, file: str, changes: Sequence[tuple[str, str]]) -> None:
        """Replace fragments of a file of the pin, or of ``cap``; each has to be there exactly once."""
        path = self.directory / "initrd/lib/clevis-attest-cap" if file == "cap" else self.pin / file
        path.write_text(patched(path.read_text(), file, changes))


def patched(text: str, file: str, changes: Sequence[tuple[str, str]]) -> str:
    """Return *text* of *file* with fragments replaced; each has to be there exactly once."""
    for old, new in changes:
        assert text.count(old) == 1, f"{file} has {text.count(old)} times: {old}"
        text = text.replace(old, new)
    return text
