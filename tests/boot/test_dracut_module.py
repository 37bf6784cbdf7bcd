"""Building dracut's image: what is missing is found now, not at the next boot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.boot.base import base_tree
from tests.boot.dracut import PACKAGES, make_initrd, prepare
from tests.boot.tree import chroot, without, without_tpm_drivers

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root tree in which an image can be built."""
    path = tmp_path_factory.mktemp("dracut-module") / "root"
    prepare(path, base_tree(PACKAGES, "dracutbase")[0])
    return path


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("usr/bin/tpm2", "the program tpm2 is missing"),
        ("usr/bin/clevis-decrypt-attest", "the program clevis-decrypt-attest is missing"),
        ("usr/bin/clevis-attest-functions", "/usr/bin/clevis-attest-functions is missing"),
        ("usr/lib/clevis-attest/clevis-attest-cap", "/usr/lib/clevis-attest/clevis-attest-cap is missing"),
        (
            "usr/lib/clevis-attest/systemd",
            "/usr/lib/clevis-attest/systemd/clevis-attest-cap.service is missing",
        ),
        (
            "usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0",
            "the library libtss2-tcti-device.so.0 is missing",
        ),
        ("usr/lib/dracut/modules.d/60clevis", "depends on 'clevis', which can't be installed"),
    ],
)
def test_a_missing_part_fails_the_build(root: Path, tmp_path: Path, missing: str, said: str) -> None:
    """No image is made, and the message names what is missing."""
    with without(root / missing), pytest.raises(AssertionError) as failure:
        make_initrd(root, tmp_path / "initrd")
    assert said in str(failure.value)
    assert not (root / "tmp/initrd").exists()


def test_a_kernel_without_a_tpm_driver_fails_the_build(root: Path, tmp_path: Path) -> None:
    """A cloud kernel has the drivers built in; take them out of its list."""
    with without_tpm_drivers(root), pytest.raises(AssertionError, match="has no TPM driver"):
        make_initrd(root, tmp_path / "initrd")


def test_the_module_leaves_the_settings_of_dracut_alone(root: Path, tmp_path: Path) -> None:
    """dracut sources it into its own shell: a name of ours must not replace dracut's list of drivers."""
    small = root / "etc/dracut.conf.d/small.conf"
    before = small.read_text()
    small.write_text("".join(line for line in before.splitlines(keepends=True) if "drivers" not in line))
    try:
        make_initrd(root, tmp_path / "initrd")
    finally:
        small.write_text(before)
    shutil.copy(tmp_path / "initrd", root / "tmp/listed")
    assert "/virtio_blk.ko" in chroot(root, "lsinitrd /tmp/listed")
