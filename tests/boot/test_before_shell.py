"""Before a mount and before a shell in the initrd: a TPM that does not take the cap gets nobody anything."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.boot.images import cache
from tests.boot.images.tree import Variant, build
from tests.boot.network.namespace import guest, unpack

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]


@pytest.mark.parametrize(
    "script", ["initramfs-tools/scripts/panic/clevis-attest-cap", "systemd/clevis-attest-before-shell"]
)
def test_a_tpm_that_does_not_take_the_cap_means_no_shell(tmp_path: Path, script: str) -> None:
    """It is there, and answers nothing: the script says so, and never comes back to the caller, who has the shell."""
    root = unpack(build(Variant()), tmp_path)
    shutil.copy(cache.ROOT / "initrd" / script, root / "before-shell")
    with guest(root, "") as machine:
        (root / "dev/tpmrm0").touch()
        machine.run("{ /bin/sh /before-shell; echo $? >/came-back; } </dev/null >/dev/null 2>&1 &")
        deadline = time.monotonic() + 300
        while "tang-attest: no shell: the TPM did not take the cap" not in machine.console:
            assert time.monotonic() < deadline, machine.console
            time.sleep(0.1)
        time.sleep(2)
        assert "Reset the machine" in machine.console
        assert "is capped" not in machine.console
        assert not (root / "came-back").exists()


PREMOUNT = (
    "BOOT=local ROOT= rootmnt=/root starttime=0 quiet=y {} /bin/sh /scripts/local-premount/clevis-attest-cap"
)


def test_a_tpm_that_does_not_take_the_cap_means_no_mount(tmp_path: Path) -> None:
    """local-premount says so, and never comes back to init, which would mount the root."""
    root = unpack(build(Variant()), tmp_path)
    with guest(root, "") as machine:
        (root / "dev/tpmrm0").touch()
        machine.run(f"{{ {PREMOUNT.format('')}; echo $? >/came-back; }} </dev/null >/dev/null 2>&1 &")
        deadline = time.monotonic() + 300
        while "tang-attest: this boot stops, because the TPM did not take the cap" not in machine.console:
            assert time.monotonic() < deadline, machine.console
            time.sleep(0.1)
        time.sleep(2)
        assert "look at its TPM" in machine.console
        assert not (root / "came-back").exists()


def test_hibernation_that_is_on_no_opened_volume_is_taken_from_init(tmp_path: Path) -> None:
    """init sources the file after each script; without a TPM there is nothing to cap, and the boot goes on."""
    root = unpack(build(Variant()), tmp_path)
    with guest(root, "") as machine:
        machine.run(f"{PREMOUNT.format('resume=/dev/null')} </dev/null >/dev/null 2>&1")
        assert "tang-attest: no hibernation image is resumed from /dev/null" in machine.console
        assert "there is no TPM 2.0, so nothing was capped" in machine.console
    assert (root / "conf/param.conf").read_text() == "resume=''\n"
    assert (root / "run/clevis-attest/cap-status").read_text() == "3\n"
