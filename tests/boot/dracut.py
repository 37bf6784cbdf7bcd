"""The root file system of a machine whose initrd dracut made, with systemd in it."""

from __future__ import annotations

from typing import Final

#: What Fedora and openSUSE have in their own packages; Debian's dracut takes the place of initramfs-tools.
PACKAGES: Final = (
    "linux-image-cloud-amd64",  # TPM drivers built in, and few modules
    "dracut",
    "dracut-network",
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
