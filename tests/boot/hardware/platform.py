"""The kinds of machine that QEMU can be: processor, board, firmware, TPM and serial console."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Platform:
    """One kind of machine, as QEMU's options."""

    architecture: str  #: Debian's name
    emulator: str
    board: tuple[str, ...]  #: processor and memory
    firmware: Path  #: the code in the flash
    variables: Path | None  #: an empty store of EFI variables; None for firmware that keeps none
    tpm: str  #: QEMU's device
    console: str  #: Linux' name of the serial port
    boot_file: str  #: the program that the firmware starts from an EFI system partition
    #: The disk with that partition, as QEMU's devices over the drive "esp".
    boot_disk: tuple[str, ...] = ("virtio-blk-pci,drive=esp,bootindex=0",)

    def flash(self, variables: Path) -> list[str]:
        """Return QEMU's options for the firmware, with *variables* as the machine's own store."""
        if self.variables is None:
            return ["-bios", str(self.firmware)]
        return [
            *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={self.firmware}"),
            *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
        ]


#: One processor, because tests run beside others, and little memory for translated code: QEMU 7.2 keeps the parts of each
#: page of memory in a list, and a write to a page whose list is long takes seconds.
_PROCESSOR: Final = ("-accel", "tcg,tb-size=128", "-smp", "1")

#: OVMF has a TPM with a command response buffer; a PC's firmware mostly has, too.
PC: Final = Platform(
    architecture="amd64",
    emulator="qemu-system-x86_64",
    board=(
        *("-machine", "q35", "-vga", "none"),
        *(*_PROCESSOR, "-cpu", "max,la57=off", "-m", "640"),
    ),
    firmware=Path("/usr/share/OVMF/OVMF_CODE_4M.fd"),
    variables=Path("/usr/share/OVMF/OVMF_VARS_4M.fd"),
    tpm="tpm-crb",
    console="ttyS0",
    boot_file="BOOTX64.EFI",
)

#: The same with Secure Boot, for images that are signed with Debian's test key (its passphrase is "snakeoil").
SECURE_PC: Final = replace(
    PC,
    board=(
        *("-machine", "q35,smm=on", "-vga", "none", "-global", "ICH9-LPC.disable_s3=1"),
        # Only System Management Mode writes the variables; it would have to wait for a second processor.
        *("-global", "driver=cfi.pflash01,property=secure,value=on"),
        *(*_PROCESSOR, "-cpu", "max,la57=off", "-m", "640"),
    ),
    firmware=Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"),
    variables=Path("/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"),
)

_VIRT: Final = (
    *("-machine", "virt,gic-version=3"),
    *(*_PROCESSOR, "-cpu", "cortex-a57", "-m", "768"),
)

#: Debian 13's AAVMF_CODE.fd is the build without Secure Boot, and has no driver for a TPM: it measures nothing.
_SECURE_AAVMF: Final = Path("/usr/share/AAVMF/AAVMF_CODE.secboot.fd")

EDK2_ARM64: Final = Platform(
    architecture="arm64",
    emulator="qemu-system-aarch64",
    board=_VIRT,
    firmware=_SECURE_AAVMF if _SECURE_AAVMF.exists() else Path("/usr/share/AAVMF/AAVMF_CODE.fd"),
    variables=Path("/usr/share/AAVMF/AAVMF_VARS.fd"),
    tpm="tpm-tis-device",
    console="ttyAMA0",
    boot_file="BOOTAA64.EFI",
)

#: Debian's own build; its EFI variables do not survive a power cycle here.  Of virtio disks, Debian 12's looks at one
#: only, which is Linux' first.
UBOOT_ARM64: Final = Platform(
    architecture="arm64",
    emulator="qemu-system-aarch64",
    board=_VIRT,
    firmware=Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin"),
    variables=None,
    tpm="tpm-tis-device",
    console="ttyAMA0",
    boot_file="BOOTAA64.EFI",
    boot_disk=("ahci,id=ahci", "ide-hd,drive=esp,bus=ahci.0"),
)
