"""Before a shell in the initrd: a TPM that does not take the cap gets nobody a shell."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from tests.boot import cache
from tests.boot.namespace import guest, unpack
from tests.boot.tree import Variant, build

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
