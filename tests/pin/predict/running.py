"""A machine that booted what is installed, and predicts its next boot."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tang_attest.protocol.eventlog import parse, replay
from tests.pin.machine import Completed, Machine
from tests.pin.predict.boots import Installed

#: Every PCR that a selection may have.
ALL = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15)


def values_of(log: bytes, *words: str, bank: str = "sha256") -> dict[int, str]:
    """Values that a log leads to; PCR 11 is extended by systemd-pcrphase."""
    found = replay(parse(log), bank)
    values = {pcr: found.get(pcr, bytes(hashlib.new(bank).digest_size)) for pcr in ALL}
    for word in words:
        values[11] = hashlib.new(bank, values[11] + hashlib.new(bank, word.encode()).digest()).digest()
    return {pcr: value.hex() for pcr, value in values.items()}


@dataclass
class Running:
    """A machine that booted what is installed, and whose files may change now."""

    machine: Machine
    installed: Installed

    def boot(self, *words: str) -> None:
        """Measure what is installed, and *words* as systemd-pcrphase does."""
        log = self.installed.log()
        file = self.machine.directory / "event-log"
        file.write_bytes(log)
        (self.machine.directory / "cmdline").write_text(f"{self.installed.cmdline()}\n")
        self.machine.extra |= {
            "CLEVIS_ATTEST_EVENT_LOG": str(file),
            "CLEVIS_ATTEST_CMDLINE": str(self.machine.directory / "cmdline"),
        }
        extends = [f"{e.pcr}:sha256={e.digests['sha256'].hex()}" for e in parse(log).events if e.extends]
        extends += [f"11:sha256={hashlib.sha256(word.encode()).hexdigest()}" for word in words]
        for at in range(0, len(extends), 8):
            self.machine.tpm.run("tpm2", "pcrextend", *extends[at : at + 8])

    def reboot(self, *words: str) -> None:
        """The TPM is reset, and what is installed now is measured."""
        self.machine.reboot()
        self.boot(*words)

    def cap(self) -> None:
        """The initrd has opened the last disk."""
        self.machine.tpm.run("tpm2", "pcrextend", f"15:sha256={'cc' * 32}")

    def predict(self, *options: str | Path) -> Completed:
        """Run the program on the machine's files."""
        return self.machine.run("clevis-attest-predict", "--root", self.installed.root, *options)

    def predicted(self, *options: str | Path) -> Prediction:
        """``--json``."""
        result = self.predict("--json", *options)
        assert result.returncode in {0, 4}, result.stderr.decode()
        prediction = Prediction(json.loads(result.stdout))
        assert (result.returncode == 4) == bool(prediction.unpredictable)
        assert self.machine.leftovers() == []
        return prediction


@dataclass
class Prediction:
    """Return the output of ``--json``."""

    printed: dict[str, Any]

    def _of(self, state: str, member: str) -> dict[int, str]:
        return {pcr["pcr"]: pcr[member] for pcr in self.printed["pcrs"] if pcr["state"] == state}

    @property
    def values(self) -> dict[int, str]:
        return self._of("unchanged", "value") | self.changed_values

    @property
    def changed_values(self) -> dict[int, str]:
        return self._of("changed", "value")

    @property
    def changed(self) -> dict[int, str]:
        return self._of("changed", "because")

    @property
    def unpredictable(self) -> dict[int, str]:
        return self._of("unpredictable", "because")
