"""Kernel command lines in an event log: who measures one, where, and as which bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tang_attest.protocol.eventlog.structures import Event, EventType

COMMAND_LINE_PCRS: Final = frozenset({1, 8, 9, 11, 12})
"""U-Boot: 1.  GRUB: 8.  Linux' EFI stub, load options: 9.  systemd-stub, section .cmdline: 11, and what
replaced or extended it: 12.
"""

_LOAD_OPTIONS_TAG: Final = (0x8F3B22ED).to_bytes(4, "little")
_GRUB: Final = b"kernel_cmdline: "
_STUB: Final = ".cmdline\0".encode("utf-16-le")

_BOOT_IMAGE: Final = "BOOT_IMAGE="
"""GRUB measures a line without this, and hands it to the kernel with this in front."""


def claims_command_line(event: Event) -> bool:
    """Return True if *event* claims to measure a kernel command line.

    Its type and its data say so, and these are the sender's: True is a claim, and False proves nothing.
    """
    if event.type == EventType.EV_PLATFORM_CONFIG_FLAGS:
        # Other firmware has settings of its own under this type; U-Boot's boot arguments end with a NUL.
        return event.pcr == 1 and event.data.endswith(b"\0") and decoded_text(event.data) is not None
    if event.type == EventType.EV_EVENT_TAG:
        return event.pcr == 9 and event.data.startswith(_LOAD_OPTIONS_TAG)
    if event.type != EventType.EV_IPL:
        return False
    if event.pcr == 8:
        return event.data.startswith(_GRUB)
    return event.pcr == 12 or (event.pcr == 11 and event.data == _STUB)


def encodings(line: str) -> Iterator[bytes]:
    """Every way in which somebody measures *line*: UTF-8 or UTF-16, with and without a NUL.

    Also with GRUB's word in front, if the line begins with a path, which the kernel ignores either way: in
    front of anything else it would take a parameter away.  Nothing else may be added here; ``initrd=initrd``,
    which OVMF adds to QEMU's -append, elsewhere loads a file that Linux's stub may not measure.
    """
    lines = [line, _BOOT_IMAGE + line] if line.startswith(("/", "(")) else [line]
    for candidate in lines:
        for encoding in ("utf-8", "utf-16-le"):
            for end in ("", "\0"):
                yield f"{candidate}{end}".encode(encoding)


def decoded_text(measured: bytes) -> str | None:
    r"""*measured* as text: UTF-16LE when it is, else UTF-8; without NULs at its end.

    ``None`` if it is neither, is empty, or has control characters other than ``\n`` and ``\t``.
    """
    encoding = "utf-16-le" if len(measured) >= 2 and len(measured) % 2 == 0 and measured[1] == 0 else "utf-8"
    try:
        text = measured.decode(encoding).rstrip("\0")
    except UnicodeDecodeError:
        return None
    readable = all(character.isprintable() or character in "\n\t" for character in text)
    return text if text and readable else None
