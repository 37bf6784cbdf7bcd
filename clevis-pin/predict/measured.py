"""The table: everything that a boot chain measures and that a new kernel, initrd or command line can change.

:data:`TABLE` says for each way to boot which part of the chain extends which PCR, with what, and where the
value of the next boot comes from.  :func:`classify` finds the events of these kinds in a log, and which way
to boot it is. docs/how-to/predict.md shows the table; a test compares the two.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from predict.text import event_text, from_utf16, of_bytes
from tang_attest.protocol.eventlog.structures import Event, EventLog, EventType


class Kind(Enum):
    """One kind of measurement; the value says what is hashed."""

    IMAGE = "an EFI image that the firmware or shim loads (Authenticode)"
    COMMAND = "a command of GRUB, or the command line that GRUB hands over"
    FILE = "a file that GRUB reads"
    LOADER_CONF = "loader.conf"
    OPTIONS = "the command line that systemd hands over (UTF-16)"
    SECTION = "the name and the content of a section of a unified kernel image"
    STUB_OPTIONS = "the command line that Linux' EFI stub receives (UTF-16)"
    STUB_INITRD = "the initrd that Linux' EFI stub receives"
    UBOOT_FILE = "the kernel or the initrd that U-Boot starts"
    UBOOT_OPTIONS = "the command line that U-Boot hands over"


class Loader(Enum):
    """One way to boot; the value is its name in the documentation."""

    GRUB = "GRUB"
    SYSTEMD_BOOT = "systemd-boot"
    NIXOS = "a NixOS generation (systemd-boot)"
    UNIFIED = "a unified kernel image"
    FIRMWARE = "the firmware, or `qemu -kernel`"
    UBOOT = "U-Boot without EFI"


@dataclass(frozen=True, slots=True)
class TableRow:
    """*loader* measures *kind* into *pcr*; *source* is where the value of the next boot comes from."""

    loader: Loader
    pcr: int
    kind: Kind
    source: str


TABLE: Final = (
    TableRow(Loader.GRUB, 4, Kind.IMAGE, "shim's and GRUB's files; a kernel that GRUB starts, from grub.cfg"),
    TableRow(Loader.GRUB, 8, Kind.COMMAND, "grub.cfg: its menu entries, and the body of the first one"),
    TableRow(Loader.GRUB, 9, Kind.FILE, "the file of that name, or the one that grub.cfg puts in its place"),
    TableRow(Loader.GRUB, 9, Kind.STUB_OPTIONS, "grub.cfg"),
    TableRow(Loader.GRUB, 9, Kind.STUB_INITRD, "the file that grub.cfg names"),
    TableRow(
        Loader.SYSTEMD_BOOT, 4, Kind.IMAGE, "systemd-boot's file, and the kernel of the entry that comes next"
    ),
    TableRow(Loader.SYSTEMD_BOOT, 5, Kind.LOADER_CONF, "loader.conf"),
    TableRow(Loader.SYSTEMD_BOOT, 12, Kind.OPTIONS, "the entry that comes next; up to systemd 250 in PCR 8"),
    TableRow(Loader.SYSTEMD_BOOT, 9, Kind.STUB_OPTIONS, "the same entry"),
    TableRow(Loader.SYSTEMD_BOOT, 9, Kind.STUB_INITRD, "the same entry"),
    TableRow(Loader.NIXOS, 4, Kind.IMAGE, "systemd-boot's file, and the generation's kernel"),
    TableRow(Loader.NIXOS, 5, Kind.LOADER_CONF, "loader.conf"),
    TableRow(
        Loader.NIXOS,
        12,
        Kind.OPTIONS,
        "init= of the generation, its kernel-params, and the initrd's name on the partition",
    ),
    TableRow(Loader.NIXOS, 9, Kind.STUB_OPTIONS, "the same"),
    TableRow(
        Loader.NIXOS,
        9,
        Kind.STUB_INITRD,
        "the generation's initrd, with its secrets if the partition has a copy",
    ),
    TableRow(Loader.UNIFIED, 4, Kind.IMAGE, "the image that comes next, and the kernel inside it"),
    TableRow(Loader.UNIFIED, 5, Kind.LOADER_CONF, "loader.conf"),
    TableRow(Loader.UNIFIED, 11, Kind.SECTION, "the image's sections, in the order of systemd-stub(7)"),
    TableRow(Loader.UNIFIED, 12, Kind.OPTIONS, "the image's .cmdline"),
    TableRow(Loader.UNIFIED, 9, Kind.STUB_OPTIONS, "the image's .cmdline"),
    TableRow(Loader.UNIFIED, 9, Kind.STUB_INITRD, "the image's .initrd"),
    TableRow(
        Loader.FIRMWARE,
        4,
        Kind.IMAGE,
        "the kernel's file; QEMU changes the header of one that it starts itself",
    ),
    TableRow(Loader.FIRMWARE, 9, Kind.STUB_OPTIONS, "--cmdline, or the command line of this boot"),
    TableRow(Loader.FIRMWARE, 9, Kind.STUB_INITRD, "--initrd, or the file that the command line names"),
    TableRow(Loader.UBOOT, 1, Kind.UBOOT_OPTIONS, "--cmdline"),
    TableRow(Loader.UBOOT, 8, Kind.UBOOT_FILE, "--kernel"),
    TableRow(Loader.UBOOT, 9, Kind.UBOOT_FILE, "--initrd"),
)

TAGS: Final = {
    bytes.fromhex("8f3b22ec"): Kind.STUB_INITRD,
    bytes.fromhex("8f3b22ed"): Kind.STUB_OPTIONS,
    bytes.fromhex("f5bc582a"): Kind.LOADER_CONF,
}
"""Tags of EV_EVENT_TAG: Linux' drivers/firmware/efi/libstub, and systemd's src/fundamental/tpm-pcr.h."""

OPTIONS_PCRS: Final = (8, 12)
"""systemd 251 and newer measure command lines into PCR 12, older ones into PCR 8."""

_UBOOT_FILES: Final = {8: (b"linux",), 9: (b"initrd",)}
_COMMAND: Final = re.compile(r"(grub_cmd|kernel_cmdline|module_cmdline): ")


@dataclass(frozen=True, slots=True)
class Measurements:
    """The events of a log by kind, in the order of the log; *unknown* are (PCR, sentence) of those that are
    not understood.

    *loader* is GRUB, UNIFIED, UBOOT or SYSTEMD_BOOT, which stands for NIXOS and FIRMWARE too; None if the log
    shows none of them.
    """

    loader: Loader | None
    by_kind: Mapping[Kind, Sequence[Event]]
    unknown: tuple[tuple[int, str], ...]

    def of(self, *kinds: Kind) -> list[Event]:
        """Return the events of *kinds*, one kind after the other."""
        return [event for kind in kinds for event in self.by_kind.get(kind, ())]


def classify(log: EventLog, hash_of: Callable[[bytes], bytes], bank: str) -> Measurements:
    """Find the events of every :class:`Kind` in *log*.

    A command line of systemd counts only if its digest in *bank* is the one that *hash_of* makes of the
    event's data. NOT checked: the other digests; their predictors do that where the old file or text is at
    hand.
    """
    by_kind: dict[Kind, list[Event]] = defaultdict(list)
    unknown: list[tuple[int, str]] = []
    for event in log.events:
        try:
            kind = _kind(event, hash_of, bank)
        except _UnknownKind as reason:
            unknown.append((event.pcr, f"event {event.index} {reason}"))
            continue
        if kind is not None:
            by_kind[kind].append(event)
    loader = _loader(by_kind)
    if loader is Loader.UBOOT:
        by_kind[Kind.UBOOT_OPTIONS] = [event for event in log.events if _is_uboot_options(event)]
    return Measurements(loader, by_kind, tuple(unknown))


class _UnknownKind(Exception):
    """The event is in a PCR and of a type where only known kinds are expected."""


def _kind(event: Event, hash_of: Callable[[bytes], bytes], bank: str) -> Kind | None:
    if event.type == EventType.EV_EFI_BOOT_SERVICES_APPLICATION and event.pcr == 4:
        return Kind.IMAGE
    if event.type == EventType.EV_EVENT_TAG:
        tag = event.data[:4][::-1]
        if tag not in TAGS:
            raise _UnknownKind(f"has a tag that this program does not know ({tag.hex()})")
        return TAGS[tag]
    if event.type == EventType.EV_COMPACT_HASH and event.data.removesuffix(b"\0") in _UBOOT_FILES.get(
        event.pcr, ()
    ):
        return Kind.UBOOT_FILE
    if event.type != EventType.EV_IPL:
        return None
    if event.pcr in OPTIONS_PCRS:
        return _command_or_options(event, hash_of, bank)
    return {9: Kind.FILE, 11: Kind.SECTION}.get(event.pcr)


def _command_or_options(event: Event, hash_of: Callable[[bytes], bytes], bank: str) -> Kind:
    """Tell GRUB's text from systemd's UTF-16."""
    text = event_text(event.data)
    if text is not None and _COMMAND.match(text):
        return Kind.COMMAND
    if from_utf16(event.data) is not None and hash_of(event.data) == event.digests[bank]:
        return Kind.OPTIONS
    raise _UnknownKind("is of a kind that this program does not know (a credential or an add-on?)")


def _is_uboot_options(event: Event) -> bool:
    """Other firmware has its own settings in such events, so they are a command line only if U-Boot starts
    Linux.
    """
    return event.type == EventType.EV_PLATFORM_CONFIG_FLAGS and event.pcr == 1


def _loader(by_kind: Mapping[Kind, Sequence[Event]]) -> Loader | None:
    if by_kind.get(Kind.COMMAND):
        return Loader.GRUB
    if by_kind.get(Kind.SECTION):
        return Loader.UNIFIED
    if any(by_kind.get(kind) for kind in (Kind.STUB_INITRD, Kind.STUB_OPTIONS, Kind.OPTIONS)):
        return Loader.SYSTEMD_BOOT
    return Loader.UBOOT if by_kind.get(Kind.UBOOT_FILE) else None


def image_path(event: Event) -> str:
    r"""Return the path of the image that the firmware loaded, such as ``\EFI\BOOT\BOOTX64.EFI``; empty for
    one from memory.

    It is in the file path nodes (type 4, subtype 4) of an EFI device path behind 32 bytes of
    UEFI_IMAGE_LOAD_EVENT.  A device path that is malformed, or a name that is not printable ASCII, gives an
    empty path.
    """
    data, at, path = event.data, 32, ""
    while at + 4 <= len(data):
        end = at + int.from_bytes(data[at + 2 : at + 4], "little")
        if not at + 4 <= end <= len(data):
            return ""
        if data[at : at + 2] == b"\x04\x04":
            part = from_utf16(data[at + 4 : end])
            if part is None:
                return ""
            path += part
        at = end
    return path


def command_text(event: Event) -> str:
    """Return what GRUB hashed of a COMMAND: its text behind the prefix."""
    return of_bytes(event.data.removesuffix(b"\0")).partition(": ")[2]
