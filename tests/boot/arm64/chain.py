"""Measured boot chains of arm64: firmware, boot loader, and the PCRs that they measure a system into."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.boot.hardware.machine import FASTER, TELLING
from tests.boot.hardware.platform import EDK2_ARM64, UBOOT_ARM64, Platform
from tests.boot.images import loaders
from tests.boot.images.loaders import LOADERS, System
from tests.boot.images.tree import Variant, build

COMMAND_LINE: Final = (
    f"console={EDK2_ARM64.console} quiet loglevel=3 net.ifnames=0 {FASTER} {TELLING}"
    " root=/dev/mapper/root ro fastboot init=/usr/local/sbin/first-init"
)
VARIANT: Final = Variant(architecture="arm64")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A firmware and a boot loader."""

    name: str
    platform: Platform
    loader: str
    selection: str
    first_refusal: str  #: the refusal of the first boot after the enrollment
    accepted: tuple[str, ...] = ()  #: options of an approval that accept a part which nobody measures
    #: The PCRs of the selection that tell a change, by part of the boot.
    pcrs: dict[str, tuple[int, ...]]

    def make_partition(self, directory: Path, system: System) -> None:
        """Make an EFI system partition that starts *system*, as a directory."""
        LOADERS[self.loader](directory, system, loaders.arm64())


#: Everything is in one file, which the firmware, systemd-boot and systemd's stub measure.
UBOOT: Final = Chain(
    name="u-boot",
    platform=UBOOT_ARM64,
    loader="systemd-boot-unified",
    selection="sha256:0,4,7,11,15",
    first_refusal="policy-empty",
    pcrs={"kernel": (4, 11), "initrd": (4, 11), "command line": (4, 11)},
)
#: Debian 12's GRUB for arm64 measures no initrd.
EDK2_GRUB: Final = Chain(
    name="edk2-grub",
    platform=EDK2_ARM64,
    loader="grub",
    selection="sha256:0,2,4,7,8,9,15",
    first_refusal="pcr-mismatch",
    accepted=("--accept-uncovered", "initrd"),
    pcrs={"kernel": (4,), "command line": (9,)},
)


def system() -> System:
    """Return the system of an enrolled machine."""
    built = build(VARIANT)
    return System(version="6.1.0-28", kernel=built.kernel, initrd=built.initrd, options=COMMAND_LINE)


def _other_kernel(old: System, directory: Path) -> System:
    """Change a letter of the kernel's version text, which nothing reads at boot."""
    path = directory / "other-kernel"
    image = old.kernel.read_bytes()
    assert b"(debian-kernel@" in image
    path.write_bytes(image.replace(b"(debian-kernel@", b"(Debian-kernel@"))
    return System(version=old.version, kernel=path, initrd=old.initrd, options=old.options)


def _other_initrd(old: System, directory: Path) -> System:
    """Append zeros, which an unpacking kernel skips after the last archive."""
    path = directory / "other-initrd"
    shutil.copy(old.initrd, path)
    with path.open("ab") as file:
        file.write(bytes(4096))
    return System(version=old.version, kernel=old.kernel, initrd=path, options=old.options)


def _other_command_line(old: System, _directory: Path) -> System:
    return System(
        version=old.version, kernel=old.kernel, initrd=old.initrd, options=f"{old.options} changed=yes"
    )


#: One changed part each: a system, and a directory for the changed file.
CHANGES: Final[dict[str, Callable[[System, Path], System]]] = {
    "kernel": _other_kernel,
    "initrd": _other_initrd,
    "command line": _other_command_line,
}
