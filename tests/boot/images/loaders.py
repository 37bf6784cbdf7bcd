"""EFI system partitions with a real boot loader, from this machine's own apt sources."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.boot.images import cache

PACKAGES: Final = ("grub-efi-amd64-bin", "systemd-boot-efi")


def loaders() -> Path:
    """The packages, unpacked and not installed: one of them brings a service."""
    return cache.entry("loaders", cache.key("1", *PACKAGES), _unpack, keep=1)


def _unpack(path: Path) -> None:
    path.mkdir()
    subprocess.run(["apt-get", "download", "-qq", *PACKAGES], cwd=path, check=True, capture_output=True)
    for package in path.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(path)], check=True)


_GRUB: Final = """set default="0"
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi

export menuentry_id_option

function quietly {
  if [ x$grub_platform = xefi ]; then
    set pager=0
  fi
}
set timeout=0
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple' {
\tquietly
\tif [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
\techo\t'Loading Linux @VERSION@ ...'
\tlinuxefi\t/vmlinuz-@VERSION@  @OPTIONS@
\techo\t'Loading initial ramdisk ...'
\tinitrdefi\t/initrd.img-@VERSION@
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced' {
\tmenuentry 'Debian GNU/Linux, with Linux @VERSION@' $menuentry_id_option 'gnulinux-@VERSION@' {
\t\tlinuxefi\t/vmlinuz-@VERSION@  @OPTIONS@
\t\tinitrdefi\t/initrd.img-@VERSION@
\t}
}
if [ "$grub_platform" = "efi" ]; then
\tset firmware=yes
fi
"""


def grub(directory: Path, version: str, kernel: Path, initrd: Path, options: str) -> None:
    """GRUB, with a configuration of the shape that grub-mkconfig gives it."""
    binary = loaders() / "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi"
    _copy(binary, directory / "EFI/BOOT/BOOTX64.EFI")
    _copy(kernel, directory / f"vmlinuz-{version}")
    _copy(initrd, directory / f"initrd.img-{version}")
    config = directory / "EFI/debian/grub.cfg"
    config.parent.mkdir()
    config.write_text(_GRUB.replace("@VERSION@", version).replace("@OPTIONS@", options))


def systemd_boot(directory: Path, version: str, kernel: Path, initrd: Path, options: str) -> None:
    """systemd-boot and an entry, as kernel-install makes it."""
    _copy(loaders() / "usr/lib/systemd/boot/efi/systemd-bootx64.efi", directory / "EFI/BOOT/BOOTX64.EFI")
    _copy(kernel, directory / "machine" / version / "linux")
    _copy(initrd, directory / "machine" / version / "initrd.img")
    entry = directory / "loader/entries" / f"machine-{version}.conf"
    entry.parent.mkdir(parents=True)
    entry.write_text(
        f"title Debian\nlinux /machine/{version}/linux\ninitrd /machine/{version}/initrd.img\noptions {options}\n"
    )
    (directory / "loader/loader.conf").write_text("timeout 0\n")


def unified(directory: Path, version: str, kernel: Path, initrd: Path, options: str) -> None:
    """A unified kernel image that the firmware starts, with systemd's stub in it."""
    parts = directory.parent / f"parts-{version}"
    parts.mkdir()
    (parts / "osrel").write_text("ID=debian\n")
    (parts / "cmdline").write_text(options)
    _copy(kernel, parts / "linux")
    _copy(initrd, parts / "initrd")
    command = ["objcopy"]
    for name, address in _SECTIONS.items():
        command += [f"--add-section=.{name}={parts / name}", f"--change-section-vma=.{name}={address:#x}"]
    target = directory / "EFI/BOOT/BOOTX64.EFI"
    target.parent.mkdir(parents=True)
    stub = loaders() / "usr/lib/systemd/boot/efi/linuxx64.efi.stub"
    subprocess.run([*command, str(stub), str(target)], check=True)
    shutil.rmtree(parts)


#: Addresses at which the stub expects its sections (systemd-stub(7) of version 252).
_SECTIONS: Final = {"osrel": 0x20000, "cmdline": 0x30000, "linux": 0x2000000, "initrd": 0x3000000}

LOADERS: Final[dict[str, Callable[[Path, str, Path, Path, str], None]]] = {
    "grub": grub,
    "systemd-boot": systemd_boot,
    "unified": unified,
}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
