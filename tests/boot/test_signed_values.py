"""A pipeline's signed file and GRUB: the statement about the next initrd lies on the EFI system partition beside it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.boot.hardware.machine import COMMAND_LINE, Console
from tests.boot.images.cache import ROOT
from tests.boot.images.loaders import System, grub, pc
from tests.boot.images.tree import Variant, build
from tests.boot.world import NAME, PROMPT, REFUSED, ROOT_IS_OPEN, UNLOCKED, World, open_by_passphrase

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

#: Firmware, option ROMs, GRUB, Secure Boot; what GRUB does and loads; the cap.
SELECTION: Final = "sha256:0,2,4,7,8,9,15"
SIGNED: Final = "8,9"
_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"


@dataclass
class Pipeline:
    """It knows one boot of such a machine, and signs the values of what it builds."""

    world: World
    directory: Path

    def partition(self, name: str) -> Path:
        """Make an EFI system partition with GRUB, the kernel, an initrd and the command line of image *name*."""
        path = self.directory / name
        initrd = build(Variant(touched="yes")).initrd if name == "third" else self.world.built.initrd
        options = f"{COMMAND_LINE} image={name}"
        grub(
            path,
            System(version="6.1.0", kernel=self.world.built.kernel, initrd=initrd, options=options),
            pc(),
        )
        return path

    def observe(self, console: Console) -> None:
        """Keep the event log and the values of a boot."""
        console.shell("mount -t securityfs none /sys/kernel/security")
        encoded = console.shell(f"base64 -w 0 {_LOG}; echo").split()
        (self.directory / "log").write_bytes(base64.b64decode(max(encoded, key=len)))
        said = console.shell("tpm2 pcrread sha256:0,2,4,7,8,9")
        (self.directory / "values").write_text(said[said.index("sha256:") - 2 :])

    def sign(self, partition: Path, version: int) -> None:
        """Put a statement about the boot of *partition* on it."""
        key = self.directory / "pipeline.key"
        if not key.exists():
            command = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
            subprocess.run([*command, "-out", key], check=True, capture_output=True)
            public = key.with_suffix(".pem")
            subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
        predicted = self.directory / f"{partition.name}.pcrs"
        predicted.write_text(self._predict(partition))
        target = partition / f"EFI/tang-attest/{partition.name}.tang-attest.jws"
        target.parent.mkdir()
        self.world.site.operator(
            *("values", "sign", str(predicted), "--key", str(key), "--policy", NAME, "--pcrs", SIGNED),
            *("--label", f"image/{partition.name}", "--version", str(version), "--output", str(target)),
        )

    def _predict(self, partition: Path) -> str:
        root = self.directory / "root"
        (root / "boot").mkdir(parents=True, exist_ok=True)
        (root / "boot/efi").unlink(missing_ok=True)
        (root / "boot/efi").symlink_to(partition)
        command = [sys.executable, "-I", "-S", "-B", str(ROOT / "clevis-pin/predict"), "print"]
        done = subprocess.run(
            [*command, "--selection=sha256:0,2,4,7,8,9", "--cap=15", f"--root={root}"],
            env={**os.environ, "CLEVIS_ATTEST_EVENT_LOG": str(self.directory / "log"),
                 "CLEVIS_ATTEST_CMDLINE": str(self.directory / "cmdline")},
            input=(self.directory / "values").read_text(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline, and a machine that nobody has enrolled."""
    yield Pipeline(World.new(tmp_path / "world", Variant()), tmp_path)
    for image in tmp_path.rglob("*.img"):
        image.unlink()


@pytest.fixture
def world(pipeline: Pipeline) -> World:
    """The machine."""
    return pipeline.world


def test_a_pipelines_statement_beside_the_image_opens_and_an_older_one_is_refused(pipeline: Pipeline) -> None:
    """The first boot is approved by a person.  The third image opens with nobody approving it; the second is a rollback."""
    world = pipeline.world
    first, second, third = (pipeline.partition(name) for name in ("first", "second", "third"))
    with world.site:
        world.site.enroll(world.machine, NAME, world.root_disk, selection=SELECTION)
        with world.boot(image=first) as console:
            console.wait_for(PROMPT)
            console.wait_for(REFUSED)
            open_by_passphrase(console)
            pipeline.observe(console)
            (pipeline.directory / "cmdline").write_text(console.shell("cat /proc/cmdline").splitlines()[-1])
        world.site.approve(NAME)
        pipeline.sign(second, 2)
        pipeline.sign(third, 3)
        public = str(pipeline.directory / "pipeline.pem")
        world.site.operator("policy", "trust-signer", NAME, public, "--pcrs", SIGNED, "--no-rollback")
        with world.boot(image=third) as console:
            console.wait_for(UNLOCKED)
            console.wait_for(ROOT_IS_OPEN)
            assert "image=third" in console.shell("cat /proc/cmdline")
        [newest] = [record for record in world.site.audit(NAME) if record["event"] == "unlock"][:1]
        assert "image/third" in json.dumps(newest)
        with world.boot(image=second) as console:
            console.wait_for(PROMPT)
            refused = console.wait_for(REFUSED)
            assert refused[1] == "statement-rolled-back"
            assert "an older version than the policy permits" in refused[2]
