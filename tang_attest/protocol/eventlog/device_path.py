"""EFI device paths as text, after the UEFI specification's "Device Path Display Format" where it is simple.

Covers what event logs hold: PCI, ACPI, partitions, file paths and firmware files.  Other nodes are shown as
``Path(type,subtype)``; nothing here decides anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tang_attest.protocol.eventlog.text import Fields, utf16

_END: Final = 0x7F
_UBOOT: Final = "e61d73b9-a384-4acc-aeab-82e828f3628b"
"""U-Boot's own nodes: one for the root, and one for each device of its tree down to the disk
(lib/efi_loader).
"""
_MOST_NODES: Final = 64


def device_path_text(data: bytes) -> str:
    r"""``PciRoot(0x0)/Pci(0x2,0x0)/HD(1,GPT,<guid>)/\EFI\BOOT\BOOTX64.EFI``.

    A chain of U-Boot's own nodes is one ``U-Boot``: their numbers mean something in one build only.

    Raises ``ValueError`` if a node is cut short or shorter than its own header.
    """
    fields = Fields(data)
    parts: list[str] = []
    while fields.rest and len(parts) < _MOST_NODES:
        kind, subtype, length = fields.integer(1), fields.integer(1), fields.integer(2)
        body = fields.take(length - 4)
        if kind == _END:
            break
        render = _NODES.get((kind, subtype))
        text = render(Fields(body)) if render else f"Path({kind},{subtype})"
        if text != "U-Boot" or parts[-1:] != [text]:
            parts.append(text)
    return "/".join(parts)


def _vendor_hardware(node: Fields) -> str:
    guid = node.guid()
    return "U-Boot" if guid == _UBOOT else f"VenHw({guid})"


def _pci(node: Fields) -> str:
    function, device = node.integer(1), node.integer(1)
    return f"Pci(0x{device:x},0x{function:x})"


def _acpi(node: Fields) -> str:
    hid, uid = node.integer(4), node.integer(4)
    # EISA id PNP0A03 / PNP0A08: a PCI or PCIe root bridge.
    return f"PciRoot(0x{uid:x})" if hid in (0x0A0341D0, 0x0A0841D0) else f"Acpi(0x{hid:08x},0x{uid:x})"


def _hard_drive(node: Fields) -> str:
    partition = node.integer(4)
    node.take(16)  # start and size in blocks
    signature = node.take(16)
    node.take(1)  # format
    if node.integer(1) == 2:
        return f"HD({partition},GPT,{Fields(signature).guid()})"
    return f"HD({partition},MBR,0x{int.from_bytes(signature[:4], 'little'):08x})"


def _cdrom(node: Fields) -> str:
    return f"CDROM(0x{node.integer(4):x})"


def _mac(node: Fields) -> str:
    return f"MAC({node.take(6).hex()})"


def _usb(node: Fields) -> str:
    return f"USB(0x{node.integer(1):x},0x{node.integer(1):x})"


def _sata(node: Fields) -> str:
    return f"Sata(0x{node.integer(2):x},0x{node.integer(2):x},0x{node.integer(2):x})"


def _nvme(node: Fields) -> str:
    return f"NVMe(0x{node.integer(4):x},{node.take(8)[::-1].hex('-')})"


def _vendor(node: Fields) -> str:
    return f"Vendor({node.guid()})"


def _memory(node: Fields) -> str:
    return f"MemoryMapped(0x{node.integer(4):x},0x{node.integer(8):x},0x{node.integer(8):x})"


def _offset(node: Fields) -> str:
    node.take(4)
    return f"Offset(0x{node.integer(8):x},0x{node.integer(8):x})"


_NODES: Final[dict[tuple[int, int], Callable[[Fields], str]]] = {
    (1, 1): _pci,
    (1, 3): _memory,
    (1, 4): _vendor_hardware,
    (2, 1): _acpi,
    (3, 5): _usb,
    (3, 10): _vendor,
    (3, 11): _mac,
    (3, 18): _sata,
    (3, 23): _nvme,
    (4, 1): _hard_drive,
    (4, 2): _cdrom,
    (4, 3): lambda node: f"VenMedia({node.guid()})",
    (4, 4): lambda node: utf16(node.rest),
    (4, 6): lambda node: f"FvFile({node.guid()})",
    (4, 7): lambda node: f"Fv({node.guid()})",
    (4, 8): _offset,
}
