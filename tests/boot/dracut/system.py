"""The root file system of a machine whose initrd dracut made, with systemd in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from tests.boot.hardware.machine import FASTER, TELLING
from tests.boot.images import cache, tree
from tests.boot.images.base import NEWER, base_tree, own_suite
from tests.boot.images.disk import ROOT_FILESYSTEM
from tests.boot.images.tree import ROOT_UUID, SECOND_UUID, Built, Variant

#: Files that Fedora and openSUSE have in their own packages; Debian's dracut takes the place of initramfs-tools.
_PACKAGES: Final = (
    "linux-image-cloud-amd64",  # TPM drivers built in, and few modules
    "dracut",
    "dracut-network",
    "dbus",  # systemd-networkd in the initrd wants it
    "binutils",  # objcopy, for a unified kernel image
    "systemd-boot-efi",  # its stub
    "zstd",
    "cryptsetup-bin",
    "cryptsetup",
    "clevis-luks",
    "clevis-systemd",
    "clevis-dracut",
    "curl",
    "jose",
    "luksmeta",
    "tpm2-tools",
    "libtss2-tcti-device0",
    "systemd-sysv",
    "udev",
    "kmod",
    "iproute2",
)

#: In Debian 13 a package, and a module of dracut.
_OF_THE_NEWER: Final = ("systemd-cryptsetup",)

COMMAND_LINE: Final = (
    f"console=ttyS0 quiet loglevel=3 no_timer_check net.ifnames=0 {FASTER} {TELLING}"
    f" rd.luks.name={ROOT_UUID}=root rd.luks.name={SECOND_UUID}=second root=UUID={ROOT_FILESYSTEM} ro fastboot"
    # A missing disk leads to the emergency shell after 20 seconds instead of minutes.
    " rd.retry=20 rd.luks.options=x-systemd.device-timeout=0 init=/usr/local/sbin/first-init"
)

_FILES: Final = {
    # Only what a machine of this kind needs: with all modules and drivers, an image takes a minute to make and several
    # seconds to measure and unpack.  The network is what our module asks for, and the rest what its users have anyway.
    # Plain "zstd" is level 15 to dracut, which is four fifths of the work.
    "etc/dracut.conf.d/small.conf": (
        'hostonly=no\ncompress="zstd -3 -q -T1"\nearly_microcode=no\nreproducible=yes\n'
        'dracutmodules+=" base bash crypt dm dracut-systemd fs-lib kernel-modules rootfs-block stamp systemd'
        ' systemd-initrd terminfo udev-rules usrmount "\n'
        'drivers+=" virtio_pci virtio_blk virtio_net ext4 dm_crypt xts ecb aesni_intel af_packet "\n'
    ),
    # For first-init: when the initrd's work begins.
    "usr/lib/dracut/modules.d/00stamp/module-setup.sh": (
        'check() { return 0; }\ndepends() { return 0; }\ninstall() { inst_hook cmdline 00 "$moddir/stamp.sh"; }\n'
    ),
    "usr/lib/dracut/modules.d/00stamp/stamp.sh": "#!/bin/sh\ncat /proc/uptime >/run/initrd-started\n",
}


def dracut_base(suite: str | None = None) -> tuple[Path, str]:
    """Return the tree of a Debian *suite* (this machine's by default) with dracut, and the name of this version of it."""
    newer = (suite or own_suite()) == NEWER
    return base_tree((*_PACKAGES, *_OF_THE_NEWER) if newer else _PACKAGES, "dracutbase", suite)


def build(suite: str | None = None) -> Built:
    """A machine's root tree, its kernel and its initrd."""
    base, base_name = dracut_base(suite)
    ours = cache.files_below(
        *(cache.ROOT / name for name in ("clevis-pin", "initrd/dracut", "initrd/systemd"))
    )
    name = cache.key(base_name, Path(__file__), Path(tree.__file__), *ours, *tree.shared_by_initrds())
    return Built(cache.entry("dracut", name, lambda path: _build(path, base), keep=2), name)


def _build(path: Path, base: Path) -> None:
    root = path / "root"
    path.mkdir()
    prepare(root, base)
    make_initrd(root, path / "initrd")
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), path / "vmlinuz")
    shutil.rmtree(root / "boot")
    # Every module that the guest needs is loaded by its initrd.
    for directory in ("usr/lib/modules", "var/cache/apt", "var/lib/apt", "usr/lib/firmware"):
        shutil.rmtree(root / directory, ignore_errors=True)


def prepare(root: Path, base: Path, *, phases: bool = True) -> None:
    """Make *root*: the base tree, configured, with our parts installed; everything but the initrd.

    With *phases* the initrd measures its phase into PCR 11, which signed values are about.
    """
    tree.prepare(root, base, Variant(attest=False))
    for name, text in _FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace(" systemd ", _modules(root, phases)))
        path.chmod(0o755)
    tree.install(root, "install-dracut")


def _modules(root: Path, phases: bool) -> str:
    """Return dracut's modules for systemd in *root*, in a list of modules; newer versions have more of them."""
    there = sorted(path.name[2:] for path in (root / "usr/lib/dracut/modules.d").iterdir())
    wanted = ["systemd", "systemd-cryptsetup", "systemd-networkd", "systemd-ask-password", "systemd-udevd"]
    # systemd 255 renamed the program.
    programs = (root / f"usr/lib/systemd/systemd-{name}" for name in ("pcrphase", "pcrextend"))
    if phases and any(program.exists() for program in programs):
        wanted.append("systemd-pcrphase")
    return f" {' '.join(name for name in wanted if name in there)} "


def make_initrd(root: Path, target: Path) -> str:
    """Run dracut in *root*; what it said.  A failure raises, and says what it said."""
    (version,) = (path.name for path in (root / "usr/lib/modules").iterdir())
    said = tree.chroot(
        root, f"rm -f /tmp/initrd; SOURCE_DATE_EPOCH=1700000000 dracut --force /tmp/initrd {version}"
    )
    shutil.move(root / "tmp/initrd", target)
    return said
