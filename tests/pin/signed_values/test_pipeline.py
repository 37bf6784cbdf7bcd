"""docs/how-to/updates/signed-updates.md really works: its own commands make a key, a statement and its place on the machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.pin.agent.test_agent import agent, cap, shown
from tests.pin.conftest import Server
from tests.pin.machine import SECRET, Machine
from tools.generate_docs import ROOT

pytestmark = pytest.mark.slow

HOW_TO: Final = (ROOT / "docs/how-to/updates/signed-updates.md").read_text()
STEPS: Final = re.findall(r"^```bash\n(.*?)^```", HOW_TO, re.MULTILINE | re.DOTALL)


@dataclass
class Pipeline:
    """A directory with the key, and a machine whose EFI system partition is mounted below its own root."""

    directory: Path
    machine: Machine
    policy: str

    @property
    def public(self) -> Path:
        """The half of the key that the server gets."""
        return self.directory / "pipeline.pem"

    def make_key(self) -> None:
        """Run the two commands of the how-to."""
        self._run("\n".join(re.findall(r"^    (openssl .*)$", HOW_TO, re.MULTILINE)))

    def release(self, name: str, version: int) -> None:
        """Build a boot that extends PCR 9 with *name*, sign its values, and install the statement."""
        self.boot(name)
        values = self.directory / f"{name}.pcrs"
        values.write_bytes(self.machine.tpm.run("tpm2", "pcrread", "sha256:4,8,9").stdout)
        root = self.directory / "root"
        (root / "proc").mkdir(parents=True, exist_ok=True)
        (root / "proc/mounts").write_text("/dev/sda1 /boot/efi vfat rw 0 0\n")
        self.machine.extra["CLEVIS_ATTEST_ROOT"] = str(root)
        for step in STEPS:
            self._run(
                step.replace("sign webservers", f"sign {self.policy}"),
                VALUES=str(values), VERSION=str(version), RELEASE=name, ESP=str(root / "boot/efi"),
            )  # fmt: skip

    def boot(self, name: str) -> None:
        """Boot that software."""
        self.machine.reboot()
        self.machine.tpm.run("tpm2", "pcrextend", f"9:sha256={name.encode().hex().ljust(64, '0')}")

    def _run(self, script: str, **names: str) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euc", script], cwd=self.directory, env={**os.environ, **names, "PATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"


@pytest.fixture
def pipeline(machine: Machine, tmp_path: Path, name: str) -> Pipeline:
    """One for a machine that is not enrolled."""
    made = Pipeline(tmp_path / "pipeline", machine, name)
    made.directory.mkdir()
    made.make_key()
    return made


def _trust(pipeline: Pipeline, server: Server) -> None:
    """Trust the pipeline's key as the how-to says."""
    trust = re.findall(
        r"^    tang-attest (policy trust-signer webservers pipeline.pem .*)$", HOW_TO, re.MULTILINE
    )
    command = trust[0].replace("webservers", pipeline.policy).replace("pipeline.pem", str(pipeline.public))
    server.operator.run(*command.split())


def test_a_release_of_the_pipeline_opens_and_an_older_one_does_not(
    pipeline: Pipeline, jwe: bytes, server: Server
) -> None:
    """Nobody approves anything: the policy trusts the key as the how-to says, and the machine brings the statement."""
    for version in (1, 2):
        pipeline.release(f"r{version}", version)
    refused = pipeline.machine.decrypt(jwe)
    assert b"refused (pcr-mismatch)" in refused.stderr
    _trust(pipeline, server)
    assert pipeline.machine.decrypt(jwe).stdout == SECRET
    pipeline.boot("r1")
    older = pipeline.machine.decrypt(jwe)
    assert older.stdout == b""
    assert b"refused (statement-rolled-back): this boot is an older version" in older.stderr
    server.operator.run("policy", "drop-signer", pipeline.policy, "pipeline")
    pipeline.boot("r2")
    assert pipeline.machine.decrypt(jwe).stdout == b""


@pytest.mark.parametrize("recorded", [False, True], ids=["as booted", "as recorded while it ran"])
def test_a_machine_that_runs_a_release_is_verified_and_not_suspended(
    pipeline: Pipeline, jwe: bytes, server: Server, recorded: bool
) -> None:
    """The agent brings no statement; the server knows the one that opened the disk, until its signer is dropped."""
    operator, name, machine = server.operator, pipeline.policy, pipeline.machine
    _trust(pipeline, server)
    assert machine.decrypt(jwe).stdout == SECRET
    _run_on(machine, recorded)
    if recorded:
        with agent(machine):
            operator.run("device", "verify", name, "--record", "--timeout", "60")
    operator.run("policy", "require-rounds", name, "on", "--every", "1h", "--on-failure", "suspend")
    for version in (1, 2):
        pipeline.release(f"r{version}", version)
        assert machine.decrypt(jwe).stdout == SECRET
        _run_on(machine, recorded)
        once = machine.run("clevis-attest-agent", "--once")
        assert (once.returncode, once.stderr) == (0, b"")
        assert (shown(operator, name)["outcome"], shown(operator, name)["suspended_by"]) == ("verified", None)
    operator.run("policy", "drop-signer", name, "pipeline")
    once = machine.run("clevis-attest-agent", "--once")
    assert (once.returncode, once.stderr) == (1, b"tang-attest: refused (pcr-mismatch)\n")
    assert shown(operator, name)["suspended_by"] == "server"


def _run_on(machine: Machine, extended: bool) -> None:
    """End the initrd, and *extended*: as systemd does with PCR 15 on some systems."""
    cap(machine)
    if extended:
        machine.tpm.run("tpm2", "pcrextend", f"15:sha256={'33' * 32}")
