"""Building dracut's image: what is missing is found now, not at the next boot."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.boot.dracut.system import dracut_base, make_initrd, prepare
from tests.boot.images import cache, disk
from tests.boot.images.base import suites
from tests.boot.images.provider import PROVIDER_NEEDS, client_files, provider
from tests.boot.images.tree import chroot, module_only_kernel, without, without_tpm_drivers

SWAP: Final = "/dev/disk/by-partuuid/0f6e5a3c-05"

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module", params=suites())
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root tree in which an image can be built, of each supported Debian."""
    path = tmp_path_factory.mktemp("dracut-module") / "root"
    # dracut's own complaint about a missing tpm2 would come before ours.
    prepare(path, dracut_base(request.param)[0], phases=False)
    return path


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("usr/bin/tpm2", "the program tpm2 is missing"),
        ("usr/bin/clevis-decrypt-attest", "the program clevis-decrypt-attest is missing"),
        (
            "usr/lib/clevis-attest/clevis-attest-functions",
            "/usr/lib/clevis-attest/clevis-attest-functions is missing",
        ),
        *(
            (f"usr/lib/clevis-attest/{name}", f"/usr/lib/clevis-attest/{name} is missing")
            for name in (
                "clevis-attest-cap",
                "clevis-attest-init",
                "clevis-attest-root-check",
                "initrd-decrypt",
            )
        ),
        (
            "usr/lib/clevis-attest/systemd",
            "/usr/lib/clevis-attest/systemd/clevis-attest-cap.service is missing",
        ),
        (
            "usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0",
            "the library libtss2-tcti-device.so.0 is missing",
        ),
        ("usr/lib/dracut/modules.d/60clevis", "'clevis', which can't be installed"),
    ],
)
def test_a_missing_part_fails_the_build(root: Path, tmp_path: Path, missing: str, said: str) -> None:
    """No image is made, and the message names what is missing."""
    with without(root / missing), pytest.raises(AssertionError) as failure:
        make_initrd(root, tmp_path / "initrd")
    assert said in str(failure.value)
    assert not (root / "tmp/initrd").exists()


@pytest.mark.parametrize("name", ["systemd-cryptsetup", "system-generators/systemd-cryptsetup-generator"])
def test_an_image_that_would_open_nothing_is_not_made(root: Path, tmp_path: Path, name: str) -> None:
    """systemd-cryptsetup is a package of its own in Debian 13; without it dracut makes an image in silence."""
    with without(root / "usr/lib/systemd" / name), pytest.raises(AssertionError) as failure:
        make_initrd(root, tmp_path / "initrd")
    said = str(failure.value)
    assert f"clevis-pin-attest: /usr/lib/systemd/{name} is missing, so no volume would be opened" in said
    assert "install the package systemd-cryptsetup" in said
    assert not (root / "tmp/initrd").exists()


@pytest.mark.parametrize(("driver", "suffix"), [("tpm_tis_spi", ".xz"), ("tpm_crb", ".zst")])
def test_a_driver_that_is_a_module_is_put_into_the_image(
    root: Path, tmp_path: Path, driver: str, suffix: str
) -> None:
    """Kernels of the Raspberry Pi have each TPM driver as a compressed module."""
    with module_only_kernel(root, driver, suffix):
        make_initrd(root, tmp_path / "initrd")
        assert f"/{driver}.ko" in contents(root, tmp_path / "initrd")


def test_a_kernel_without_a_tpm_driver_fails_the_build(root: Path, tmp_path: Path) -> None:
    """A cloud kernel has the drivers built in; take them out of its list."""
    with without_tpm_drivers(root), pytest.raises(AssertionError, match="has no TPM driver"):
        make_initrd(root, tmp_path / "initrd")


@contextmanager
def settings(root: Path, change: Callable[[str], str]) -> Iterator[None]:
    """dracut's settings are others, for a while."""
    small = root / "etc/dracut.conf.d/small.conf"
    before = small.read_text()
    small.write_text(change(before))
    try:
        yield
    finally:
        small.write_text(before)


def contents(root: Path, image: Path) -> str:
    """The names in *image*, and what its command line adds."""
    shutil.copy(image, root / "tmp/listed")
    return chroot(
        root, "lsinitrd /tmp/listed; lsinitrd -f etc/cmdline.d/99clevis-pin-attest.conf /tmp/listed"
    )


def test_the_module_leaves_the_settings_of_dracut_alone(root: Path, tmp_path: Path) -> None:
    """dracut sources it into its own shell: a name of ours must not replace dracut's list of drivers."""
    with settings(root, lambda text: re.sub(".*drivers.*", "", text)):
        make_initrd(root, tmp_path / "initrd")
    assert "/virtio_blk.ko" in contents(root, tmp_path / "initrd")


def test_an_image_for_this_machine_only_has_the_pin_too(root: Path, tmp_path: Path) -> None:
    """hostonly=yes is what distributions build; no disk of the building machine says that the pin is needed."""
    with settings(root, lambda text: text.replace("hostonly=no", "hostonly=yes")):
        make_initrd(root, tmp_path / "initrd")
    listing = contents(root, tmp_path / "initrd")
    for name in (
        *("bin/clevis-decrypt-attest", "bin/clevis-luks-unlock", "bin/tpm2", "libtss2-tcti-device.so.0"),
        *("initrd.target.wants/clevis-attest-cap.service", "lib/clevis-attest/clevis-attest-before-shell"),
        *("emergency.service.d/50-clevis-attest.conf", "sysroot.mount.d/40-clevis-attest-cap.conf"),
        *("systemd-cryptsetup@.service.d/50-clevis-attest.conf", "system/clevis-attest-root.service"),
    ):
        assert name in listing, name
    assert listing.endswith("rd.neednet=1\n")
    # Prediction is for the running system.
    assert "python" not in listing
    assert ".py" not in listing


def shown(root: Path, image: Path, name: str) -> str:
    """The content of the file *name* in *image*."""
    shutil.copy(image, root / "tmp/listed")
    return chroot(root, f"lsinitrd -f {name} /tmp/listed")


def test_what_runs_first_is_ours_and_so_is_what_hands_on_a_key(root: Path, tmp_path: Path) -> None:
    """/init looks for unmeasured channels, and clevis-decrypt tries a key; what systemd and clevis have is behind them."""
    make_initrd(root, tmp_path / "initrd")
    for name, ours in (
        ("init", "initrd/systemd/clevis-attest-init"),
        ("usr/bin/clevis-decrypt", "initrd/initrd-decrypt"),
        ("usr/bin/clevis-decrypt-attest", "initrd/initrd-pin"),
        ("usr/lib/clevis-attest/clevis-decrypt-attest", "clevis-pin/clevis-decrypt-attest"),
    ):
        assert shown(root, tmp_path / "initrd", name).strip() == (cache.ROOT / ours).read_text().strip(), name
    assert "lib/systemd/systemd\n" in contents(root, tmp_path / "initrd")


def test_the_image_knows_the_volumes_of_this_machine(root: Path, tmp_path: Path) -> None:
    """The volumes of crypttab and of the kernel's command line, as their headers say; an image for any machine knows none.

    To resume from one of them is no risk, but this image does not, and says so.
    """
    uuid, other = "0f6e5a3c-0000-4000-8000-00000000000c", "0f6e5a3c-0000-4000-8000-00000000000d"
    payload = tmp_path / "payload"
    disk.filesystem(payload, 4096)
    disk.luks_image(root / "var/tmp/volume.img", payload, uuid)
    crypttab = root / "etc/crypttab"
    before = crypttab.read_text()
    crypttab.write_text(f"# root\nroot /var/tmp/volume.img none luks\nswap {SWAP} /dev/urandom swap\n")
    named = f'kernel_cmdline+=" rd.luks.name={other}=second resume=/dev/mapper/root "\n'
    try:
        with settings(root, lambda text: text + named):
            said = make_initrd(root, tmp_path / "initrd")
        with settings(root, lambda text: text + 'attest_any_machine="yes"\n'):
            make_initrd(root, tmp_path / "any")
    finally:
        crypttab.write_text(before)
        (root / "var/tmp/volume.img").unlink()
    first, second = shown(root, tmp_path / "initrd", "etc/clevis-attest/volumes").splitlines()
    assert first.startswith(f"{uuid} aes-xts-plain64 512 4096")
    assert second.split()[:4] == [other, "-", "-", "-"]
    assert "etc/clevis-attest/volumes" not in contents(root, tmp_path / "any")
    assert "resume=/dev/mapper/root in kernel_cmdline has no effect" in said


def test_a_plain_swap_is_not_resumed(root: Path, tmp_path: Path) -> None:
    """Named on a command line, it fails the build, unless noresume is there too; dracut's module stays out in any case."""
    resume = f'add_dracutmodules+=" resume "\nkernel_cmdline+=" resume={SWAP} "\n'
    with settings(root, lambda text: text + resume), pytest.raises(AssertionError) as failure:
        make_initrd(root, tmp_path / "initrd")
    assert f"resume={SWAP} in kernel_cmdline is not on an encrypted volume" in str(failure.value)
    with settings(root, lambda text: f'{text}kernel_cmdline+=" resume={SWAP} noresume "\n'):
        make_initrd(root, tmp_path / "initrd")
    assert "systemd-hibernate-resume\n" not in contents(root, tmp_path / "initrd")


def test_a_client_certificate_and_the_provider_of_its_key(root: Path, tmp_path: Path) -> None:
    """A key in a file is warned of; one in the TPM brings OpenSSL's provider, without which no image is made."""
    named = 'attest_files="/etc/ssl/m.crt /etc/ssl/m.key"\n'
    with settings(root, lambda text: text + named):
        with client_files(root, "PRIVATE KEY"):
            said = make_initrd(root, tmp_path / "initrd")
            assert "/etc/ssl/m.key is a private key: who can read the image has it" in said
            assert "ossl-modules/tpm2.so" not in contents(root, tmp_path / "initrd")
        with client_files(root, "TSS2 PRIVATE KEY"):
            with pytest.raises(AssertionError, match="install tpm2-openssl"):
                make_initrd(root, tmp_path / "initrd2")
            with provider(root):
                said = make_initrd(root, tmp_path / "initrd2")
    assert "is a private key" not in said
    listing = contents(root, tmp_path / "initrd2")
    for name in ("etc/ssl/m.crt", "etc/ssl/m.key", "ossl-modules/tpm2.so", *PROVIDER_NEEDS):
        assert name in listing, name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            lambda text: text.replace(" systemd ", " ") + 'omit_dracutmodules+=" systemd "\n',
            "'systemd', which can't be installed",
            id="omitted",
        ),
        pytest.param(
            lambda text: text.replace(" systemd-initrd ", " ").replace(" dracut-systemd ", " "),
            "clevis-pin-attest: cannot enable clevis-attest-cap.service",
            id="half",
        ),
    ],
)
def test_an_image_without_systemd_is_not_made(
    root: Path, tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    """clevis 19 asks for systemd, ours with clevis 20; and in an image with half of it nothing would cap."""
    with settings(root, change), pytest.raises(AssertionError) as failure:
        make_initrd(root, tmp_path / "initrd")
    assert said in str(failure.value)
    assert not (root / "tmp/initrd").exists()
