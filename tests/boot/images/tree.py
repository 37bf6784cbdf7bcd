"""The root file system of the test machines: the base tree, with the pin and our part of the initrd in it."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.boot.images import cache, emulated
from tests.boot.images.base import PACKAGES, arm64_tree, base_tree, cloud_tree

ROOT_UUID: Final = "0f6e5a3c-0000-4000-8000-000000000001"
SECOND_UUID: Final = "0f6e5a3c-0000-4000-8000-000000000002"
PASSWORD: Final = "guest"

#: With all modules the initrd takes a minute to build and several seconds to measure and unpack.
_MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "ext4",
    "dm_crypt",
    "xts",
    "ecb",
    "crypto_null",  # for what attacks the header
    "af_packet",
)
_MODULES_OF: Final = {
    "amd64": ("aesni_intel",),
    "arm64": ("aes_ce_blk", "tpm_tis"),  # the TPM's driver is a module there
}

_FILES: Final = {
    "etc/crypttab": f"root UUID={ROOT_UUID} none luks,initramfs\n",
    "etc/fstab": "/dev/mapper/root / ext4 defaults 0 0\n",
    "etc/hostname": "guest\n",
    "etc/initramfs-tools/initramfs.conf": (
        "MODULES=list\nBUSYBOX=auto\nCOMPRESS=zstd\nCOMPRESSLEVEL=3\nDEVICE=\nNFSROOT=auto\nRUNSIZE=10%\nFSTYPE=ext4\n"
    ),
    "etc/initramfs-tools/conf.d/resume": "RESUME=none\n",
    # For the benchmark: when the initrd's work begins.
    "etc/initramfs-tools/scripts/init-top/stamp": """#!/bin/sh
[ "$1" = prereqs ] || cat /proc/uptime >/run/initrd-started
""",
    # An emulator beside others is slow, and systemd would give up a device that udev has not reached in 90 seconds.
    "etc/systemd/system.conf.d/patient.conf": (
        "[Manager]\nDefaultTimeoutStartSec=20min\nDefaultDeviceTimeoutSec=20min\n"
    ),
    # An init that costs no time: most tests are over when the root is open.  The disk's serial number chooses,
    # because the command line is measured.
    "usr/local/sbin/first-init": """#!/bin/bash
[ "$(cat /sys/block/vda/serial)" != systemd ] || exec /sbin/init
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin PS1='guest# ' HOME=/root TERM=dumb
mount -t tmpfs tmpfs /tmp
read -r initrd _ </run/initrd-started
read -r now _ </proc/uptime
echo "first-init: the root is open:" $(cd /dev/mapper && echo *), initrd $initrd root $now
cd /
while :; do setsid --ctty --wait bash --norc --noediting -i; done
""",
}
#: Units that a test machine can do without.
_MASKED: Final = (
    *(
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
    ),
    *(
        "e2scrub_reap.service",
        "systemd-timesyncd.service",
        "systemd-update-utmp.service",
        "systemd-random-seed.service",
    ),
    *(
        "systemd-journal-flush.service",
        "modprobe@drm.service",
        "modprobe@fuse.service",
        "kmod-static-nodes.service",
    ),
    *(
        "systemd-pcrphase.service",
        "systemd-pcrphase-sysinit.service",
        "getty@tty1.service",
        "systemd-networkd.service",
    ),
)
#: cloud-init does what the user data need, and not all of a Debian's first boot.
_CLOUD: Final = """datasource_list: [NoCloud]
cloud_init_modules: [write-files, set_hostname]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
"""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Differences between the trees of the tests."""

    second: bool = False  #: a second encrypted volume, opened in the initrd too
    attest: bool = True  #: our pin and our part of the initrd; without, it is stock Debian
    touched: str = ""  #: a file in the initrd with this content: an initrd that differs
    architecture: str = "amd64"
    python: bool = False  #: Python in the running system, for the prediction
    cloud: bool = False  #: cloud-init, and a data volume that is there from the second boot on
    suite: str | None = None  #: another Debian than this machine's


@dataclass(frozen=True)
class Built:
    """A root tree, its kernel and its initrd."""

    path: Path
    name: str

    @property
    def root(self) -> Path:
        return self.path / "root"

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd"


def _ours() -> list[Path]:
    return [
        *cache.files_below(cache.ROOT / "clevis-pin", cache.ROOT / "initrd" / "initramfs-tools"),
        *shared_by_initrds(),
    ]


def shared_by_initrds() -> list[Path]:
    """The files that every initrd uses, and the makefile that installs them."""
    return sorted(path for path in (cache.ROOT / "initrd").iterdir() if path.is_file())


def build(variant: Variant) -> Built:
    """The tree of *variant*."""
    base, base_name = _base(variant)
    inputs: list[str | Path] = [base_name, repr(variant), Path(__file__)]
    if variant.attest:
        inputs += _ours()
    if variant.python:
        inputs += cache.files_below(cache.ROOT / "tang_attest" / "protocol" / "eventlog")
    name = cache.key(*inputs)
    # Trees of arm64 take minutes, for which those of this architecture need not wait.
    kind = "tree" if variant.architecture == "amd64" else f"{variant.architecture}tree"
    return Built(cache.entry(kind, name, lambda path: _build(path, base, variant), keep=8), name)


def _base(variant: Variant) -> tuple[Path, str]:
    if variant.architecture == "arm64":
        return arm64_tree()
    if variant.cloud:
        return cloud_tree()
    if variant.python:
        return base_tree((*PACKAGES, "python3"), "pythonbase", variant.suite)
    return base_tree(suite=variant.suite)


def _build(path: Path, base: Path, variant: Variant) -> None:
    root = path / "root"
    path.mkdir()
    prepare(root, base, variant)
    make_initrd(root, path / "initrd")
    shutil.copy(next((root / "boot").glob("vmlinuz-*")), path / "vmlinuz")
    shutil.rmtree(root / "boot")
    # Every module that the guest needs is loaded by its initrd.
    for directory in ("usr/lib/modules", "var/cache/apt", "var/lib/apt", "usr/lib/firmware"):
        shutil.rmtree(root / directory, ignore_errors=True)


def prepare(root: Path, base: Path, variant: Variant) -> None:
    """Make *root*: the base tree, configured, with our parts installed; everything but the initrd."""
    subprocess.run(["cp", "-a", "--reflink=auto", str(base), str(root)], check=True)
    for name, text in _FILES.items():
        _write(root / name, text)
    modules = (*_MODULES, *_MODULES_OF[variant.architecture])
    if variant.second:
        with (root / "etc/crypttab").open("a") as file:
            file.write(f"second UUID={SECOND_UUID} none luks,initramfs\n")
    if variant.cloud:
        modules += ("vfat", "nls_cp437", "nls_ascii")  # of the disk with the user data
        with (root / "etc/crypttab").open("a") as file:
            file.write("data /dev/disk/by-id/virtio-data none luks,initramfs,nofail\n")
        _write(root / "etc/cloud/cloud.cfg.d/90_image.cfg", _CLOUD)
    _write(root / "etc/initramfs-tools/modules", "".join(f"{name}\n" for name in modules))
    if variant.touched:
        _write(root / "etc/initramfs-tools/conf.d/touched", f"TOUCHED={variant.touched}\n")
    for name in ("usr/local/sbin/first-init", "etc/initramfs-tools/scripts/init-top/stamp"):
        (root / name).chmod(0o755)
    for unit in _MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    if variant.cloud:
        (root / "etc/systemd/system/systemd-networkd.service").unlink()
        chroot(root, "systemctl enable systemd-networkd.service")
    chroot(root, f"printf 'root:{PASSWORD}\\n' | chpasswd")
    if variant.attest:
        install(root, "install-initramfs-tools")


def install(root: Path, initrd_target: str) -> None:
    """Install the pin and our part of an initrd, by their makefiles."""
    for directory, target in (("clevis-pin", "install"), ("initrd", initrd_target)):
        command = [
            "make",
            "--silent",
            "-C",
            str(cache.ROOT / directory),
            target,
            f"DESTDIR={root}",
            "PREFIX=/usr",
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{' '.join(command)}: {result.stdout}{result.stderr}"


def make_initrd(root: Path, target: Path, *, reproducible: bool = True) -> str:
    """Run mkinitramfs in *root*; what it said.  A failure raises, and says what it said."""
    (version,) = (path.name for path in (root / "usr/lib/modules").iterdir())
    epoch = "SOURCE_DATE_EPOCH=1700000000 " if reproducible else ""
    said = chroot(root, f"{epoch}mkinitramfs -o /tmp/initrd {version}")
    shutil.move(root / "tmp/initrd", target)
    return said


def list_initrd(root: Path, initrd: Path) -> list[str]:
    """The names in an initrd; *root* has the program that reads it."""
    shutil.copy(initrd, root / "tmp/listed")
    return chroot(root, "lsinitramfs /tmp/listed").splitlines()


@contextmanager
def without(path: Path) -> Iterator[None]:
    """*path* is not there, for a while."""
    # Not beside it, where dracut would take a module's directory for another module.
    hidden = path.parent.parent / f"{path.name}.hidden"
    path.rename(hidden)
    try:
        yield
    finally:
        hidden.rename(path)


@contextmanager
def without_tpm_drivers(root: Path) -> Iterator[None]:
    """The kernel of *root* has no TPM driver, for a while."""
    (builtin,) = (root / "usr/lib/modules").glob("*/modules.builtin")
    before = builtin.read_text()
    builtin.write_text("".join(line for line in before.splitlines(keepends=True) if "/tpm" not in line))
    try:
        yield
    finally:
        builtin.write_text(before)


@contextmanager
def module_only_kernel(root: Path, driver: str, suffix: str) -> Iterator[None]:
    """For a while, the kernel of *root* has no TPM driver but the module *driver*, as kernels of the Raspberry Pi do.

    *suffix* is that of a compressed module (``.xz``, ``.zst``) or empty.  The file is another module of that kernel,
    because nobody loads it here.
    """
    with without_tpm_drivers(root):
        (modules,) = (root / "usr/lib/modules").iterdir()
        (some,) = modules.glob("kernel/drivers/md/dm-crypt.ko*")
        module = some.read_bytes()
        plain = lzma.decompress(module) if some.suffix == ".xz" else module
        target = Path(f"/usr/lib/modules/{modules.name}/kernel/drivers/char/tpm/{driver}.ko{suffix}")
        file = root / target.relative_to("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lzma.compress(plain, check=lzma.CHECK_CRC32) if suffix == ".xz" else plain)
        if suffix == ".zst":
            chroot(root, f"zstd --quiet --rm -o {target}.new {target} && mv {target}.new {target}")
        chroot(root, f"depmod {modules.name}")
        try:
            yield
        finally:
            file.unlink()
            chroot(root, f"depmod {modules.name}")


def chroot(root: Path, script: str) -> str:
    """Run *script* in *root*, a tree of this architecture or of arm64; its mounts end with its namespace."""
    mounts = "".join(f"mount --rbind /{name} {root}/{name} && " for name in ("dev", "proc", "sys"))
    command = [
        *(emulated.PREFIX if emulated.is_arm64(root) else ()),
        *("unshare", "--mount", "--fork", "--kill-child", "sh", "-c"),
        f'{mounts} exec chroot {root} env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -ec "$0"',
        script,
    ]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert result.returncode == 0, f"{script}: {result.stdout}{result.stderr}"
    return result.stdout + result.stderr


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
