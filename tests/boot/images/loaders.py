"""EFI system partitions with a real boot loader, from this machine's own apt sources."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.boot.images import cache
from tests.boot.images.base import arm64_tree, own_suite

#: Debian 12's GRUB is packaged otherwise than newer ones, and has commands for EFI alone.
_IS_BOOKWORM: Final = own_suite() == "bookworm"
_PACKAGES: Final = (
    "grub-efi-amd64-bin" if _IS_BOOKWORM else "grub-efi-amd64-unsigned",
    "systemd-boot-efi",
)


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The boot loaders for one architecture's firmware, as Debian's packages have them."""

    root: Path  #: a tree with the packages
    architecture: str  #: in the names of EFI programs
    grub: str  #: GRUB's name of the architecture
    linux: str  #: GRUB's commands in the configuration that grub-mkconfig writes
    initrd: str
    objcopy: str

    @property
    def boot_file(self) -> str:
        """The name that firmware looks for."""
        return f"BOOT{self.architecture.upper()}.EFI"

    @property
    def systemd(self) -> Path:
        """The folder with systemd-boot and its stub."""
        return self.root / "usr/lib/systemd/boot/efi"


@dataclass(frozen=True, kw_only=True)
class System:
    """One operating system for a boot loader to start."""

    version: str
    kernel: Path
    initrd: Path
    options: str


def pc() -> Programs:
    """Return the programs for a PC; the packages are not installed, because one of them brings a service."""
    return Programs(
        root=cache.entry("loaders", cache.key("1", *_PACKAGES), _unpack, keep=1),
        architecture="x64",
        grub="x86_64-efi",
        linux="linuxefi" if _IS_BOOKWORM else "linux",
        initrd="initrdefi" if _IS_BOOKWORM else "initrd",
        objcopy="objcopy",
    )


def arm64() -> Programs:
    """Return the programs for arm64, from Debian 12."""
    root, _ = arm64_tree()
    return Programs(
        root=root,
        architecture="aa64",
        grub="arm64-efi",
        linux="linux",
        initrd="initrd",
        objcopy="aarch64-linux-gnu-objcopy",
    )


def _unpack(path: Path) -> None:
    path.mkdir()
    subprocess.run(["apt-get", "download", "-qq", *_PACKAGES], cwd=path, check=True, capture_output=True)
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
\t@LINUX@\t/vmlinuz-@VERSION@  @OPTIONS@
\techo\t'Loading initial ramdisk ...'
\t@INITRD@\t/initrd.img-@VERSION@
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced' {
\tmenuentry 'Debian GNU/Linux, with Linux @VERSION@' $menuentry_id_option 'gnulinux-@VERSION@' {
\t\t@LINUX@\t/vmlinuz-@VERSION@  @OPTIONS@
\t\t@INITRD@\t/initrd.img-@VERSION@
\t}
}
if [ "$grub_platform" = "efi" ]; then
\tset firmware=yes
fi
"""


def grub(directory: Path, system: System, programs: Programs) -> None:
    """Make a partition with GRUB, with a configuration of the shape that grub-mkconfig gives it."""
    binary = programs.root / f"usr/lib/grub/{programs.grub}/monolithic/grub{programs.architecture}.efi"
    _copy(binary, directory / "EFI/BOOT" / programs.boot_file)
    _copy(system.kernel, directory / f"vmlinuz-{system.version}")
    _copy(system.initrd, directory / f"initrd.img-{system.version}")
    text = _GRUB
    for name in ("linux", "initrd"):
        text = text.replace(f"@{name.upper()}@", getattr(programs, name))
    config = directory / "EFI/debian/grub.cfg"
    config.parent.mkdir()
    config.write_text(text.replace("@VERSION@", system.version).replace("@OPTIONS@", system.options))


def systemd_boot(directory: Path, system: System, programs: Programs) -> None:
    """Make a partition with systemd-boot and an entry, as kernel-install makes it."""
    _systemd_boot(directory, programs)
    version = system.version
    _copy(system.kernel, directory / "machine" / version / "linux")
    _copy(system.initrd, directory / "machine" / version / "initrd.img")
    entry = directory / "loader/entries" / f"machine-{version}.conf"
    entry.parent.mkdir(parents=True)
    entry.write_text(
        f"title Debian\nlinux /machine/{version}/linux\ninitrd /machine/{version}/initrd.img\n"
        f"options {system.options}\n"
    )


def unified(directory: Path, system: System, programs: Programs) -> None:
    """Make a partition with a unified kernel image that the firmware starts."""
    _unified(directory / "EFI/BOOT" / programs.boot_file, system, programs)


def systemd_boot_unified(directory: Path, system: System, programs: Programs) -> None:
    """Make a partition with systemd-boot, and a unified kernel image where it looks for one."""
    _systemd_boot(directory, programs)
    _unified(directory / f"EFI/Linux/debian-{system.version}.efi", system, programs)


LOADERS: Final[dict[str, Callable[[Path, System, Programs], None]]] = {
    "grub": grub,
    "systemd-boot": systemd_boot,
    "unified": unified,
    "systemd-boot-unified": systemd_boot_unified,
}


def unify(target: Path, stub: Path, sections: Mapping[str, Path], objcopy: str = "objcopy") -> None:
    """Make a unified kernel image: systemd's *stub* with *sections* (systemd-stub(7) of version 252) in it."""
    command, address = [objcopy], _image_base(stub) + _FIRST_SECTION
    for name, contents in sections.items():
        command += [f"--add-section=.{name}={contents}", f"--change-section-vma=.{name}={address:#x}"]
        address += -(-contents.stat().st_size // _ALIGNMENT) * _ALIGNMENT
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, str(stub), str(target)], check=True)


def _image_base(program: Path) -> int:
    """Return the ImageBase of an EFI program, a PE32+ file; the stub has one since version 254, which objcopy adds."""
    data = program.read_bytes()
    (header,) = struct.unpack_from("<I", data, 0x3C)
    (base,) = struct.unpack_from("<Q", data, header + 0x30)
    return int(base)


#: Beyond every section of the stub itself.
_FIRST_SECTION: Final = 0x1000000
_ALIGNMENT: Final = 0x1000000


def _unified(target: Path, system: System, programs: Programs) -> None:
    parts = target.with_suffix(".parts")
    parts.mkdir(parents=True)
    (parts / "osrel").write_text("ID=debian\n")
    (parts / "cmdline").write_text(system.options)
    sections = {"osrel": parts / "osrel", "cmdline": parts / "cmdline"}
    sections |= {"linux": system.kernel, "initrd": system.initrd}
    unify(target, programs.systemd / f"linux{programs.architecture}.efi.stub", sections, programs.objcopy)
    shutil.rmtree(parts)


def _systemd_boot(directory: Path, programs: Programs) -> None:
    _copy(
        programs.systemd / f"systemd-boot{programs.architecture}.efi",
        directory / "EFI/BOOT" / programs.boot_file,
    )
    (directory / "loader").mkdir()
    (directory / "loader/loader.conf").write_text("timeout 0\n")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
