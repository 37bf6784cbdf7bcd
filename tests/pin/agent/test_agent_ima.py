"""The agent sends IMA's list: a real TPM is extended as Linux does, and the real server judges what is new."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import Machine
from tests.protocol.ima.writer import Measured, boot_aggregate, measured, raw

pytestmark = pytest.mark.slow

BASH = hashlib.sha256(b"bash").digest()
GOOD = measured("/usr/bin/bash", BASH)


class Ima:
    """Do as a kernel with IMA."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine, self.list = machine, directory / "binary_runtime_measurements"
        machine.extra["CLEVIS_ATTEST_IMA_LIST"] = str(self.list)
        self.boot()

    def boot(self) -> None:
        """An empty list, and the aggregate of what the firmware measured."""
        values = self.machine.directory / "values"
        self.machine.tpm.run("tpm2", "pcrread", "-Q", "sha256:0,1,2,3,4,5,6,7,8,9", "-o", str(values))
        data = values.read_bytes()
        self.list.write_bytes(b"")
        self.measure(boot_aggregate({pcr: data[pcr * 32 :][:32] for pcr in range(10)}))

    def measure(self, *entries: Measured) -> None:
        """The list grows, and so does PCR 10."""
        with self.list.open("ab") as file:
            file.write(raw(entries))
        for begin in range(0, len(entries), 100):
            some = entries[begin : begin + 100]
            extends = [f"10:sha256={entry.extended('sha256').hex()}" for entry in some]
            self.machine.tpm.run("tpm2", "pcrextend", *extends)


@pytest.fixture
def ima(machine: Machine, server: Server, name: str, jwe: bytes, tmp_path: Path) -> Ima:
    """A machine that booted and runs, under a policy that asks for its list."""
    assert machine.decrypt(jwe).returncode == 0
    machine.tpm.run("tpm2", "pcrevent", "-Q", "15", stdin=b"tang-attest/v1 cap\n")
    (tmp_path / "sums").write_text(f"{BASH.hex()}  /usr/bin/bash\n")
    server.operator.run("policy", "require-ima", name, "on", "--sums", str(tmp_path / "sums"))
    return Ima(machine, tmp_path)


def test_rounds_with_a_list(ima: Ima, server: Server, name: str) -> None:
    """Good, nothing new, something new and bad, and after a reboot good again."""
    once = ("clevis-attest-agent", "--once")
    ima.measure(GOOD)
    for _ in range(2):
        done = ima.machine.run(*once)
        assert (done.returncode, done.stderr) == (0, b"")
    ima.measure(GOOD, measured("/tmp/tool", hashlib.sha256(b"tool").digest()))
    for _ in range(2):
        done = ima.machine.run(*once)
        assert (done.returncode, done.stderr) == (1, b"tang-attest: refused (ima-not-allowed)\n")
    newest = json.loads(server.operator.run("device", "history", name, "--json"))[0]
    assert newest["reasons"][0]["sentence"] == "Entry 4, /tmp/tool: nothing allows it."
    ima.machine.tpm.restart()
    ima.machine.tpm.run("tpm2", "pcrevent", "-Q", "15", stdin=b"tang-attest/v1 cap\n")
    ima.boot()
    done = ima.machine.run(*once)
    assert (done.returncode, done.stderr) == (0, b"")
    assert ima.machine.leftovers() == []


@pytest.mark.timeout(900)
def test_a_long_list(ima: Ima) -> None:
    """Several parts in one round of the agent."""
    ima.measure(*[GOOD] * 1200)
    assert ima.list.stat().st_size > 2 * 49152
    done = ima.machine.run("clevis-attest-agent", "--once", timeout=200)
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_a_list(ima: Ima) -> None:
    """A kernel without IMA: no server can verify it."""
    ima.machine.extra["CLEVIS_ATTEST_IMA_LIST"] = "/nowhere"
    done = ima.machine.run("clevis-attest-agent", "--once")
    assert done.returncode == 3
    assert b"it answered 403 (ima-missing)" in done.stderr
