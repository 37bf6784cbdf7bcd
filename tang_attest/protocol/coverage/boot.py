"""EventLog -> Boot: the chain that measured, and the PCRs into which it measured each part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from tang_attest.protocol.eventlog.constants import SEPARATORS, digest, nothing_digests
from tang_attest.protocol.eventlog.replay import replay
from tang_attest.protocol.eventlog.structures import Event, EventLog


class BootPart(StrEnum):
    """The parts of a boot, in the order of the boot."""

    FIRMWARE = "firmware"
    BOOT_LOADER = "boot_loader"
    SECURE_BOOT = "secure_boot"
    KERNEL = "kernel"
    INITRD = "initrd"
    COMMAND_LINE = "command_line"
    DEVICE_TREE = "device_tree"

    @property
    def words(self) -> str:
        """The part in a sentence: ``command line``."""
        return "Secure Boot" if self is BootPart.SECURE_BOOT else self.value.replace("_", " ")


class Chain(StrEnum):
    """The last boot loader before Linux, as far as it shows."""

    UBOOT = "U-Boot without EFI"
    GRUB = "GRUB"
    UKI = "a unified kernel image"
    STUB = "Linux' EFI stub"
    UNKNOWN = "an unknown boot chain"


@dataclass(frozen=True, slots=True)
class Boot:
    """Proof of a log: each part to its PCRs and the software that measured it there.

    ``hollow`` has a sentence for a part that a chain should measure and measured as a constant, or by its
    name only. ``used`` are the PCRs with more than constants.
    """

    chain: Chain
    measured: Mapping[BootPart, Mapping[int, str]]
    hollow: Mapping[BootPart, str]
    used: frozenset[int]


_FIRMWARE: Final = "the firmware"
_GRUB: Final = "GRUB"
_STUB: Final = "Linux' EFI stub"
_UKI: Final = "systemd-stub"
_SYSTEMD: Final = "systemd-boot or systemd-stub"
_UBOOT: Final = "U-Boot"

_SECTIONS: Final = {
    ".linux": BootPart.KERNEL,
    ".initrd": BootPart.INITRD,
    ".cmdline": BootPart.COMMAND_LINE,
    ".dtb": BootPart.DEVICE_TREE,
    ".dtbauto": BootPart.DEVICE_TREE,
}
_GRUB_PREFIXES: Final = (b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: ")
_KERNEL_COMMANDS: Final = frozenset({"linux", "linuxefi", "linux16", "module", "module2", "xen_module"})
_INITRD_COMMANDS: Final = frozenset({"initrd", "initrdefi", "initrd16"})
_MODULE_COMMANDS: Final = frozenset({"module", "module2", "xen_module"})
"""Under Xen: first the kernel, then the initrd."""
_KERNEL_PATHS: Final = ("/", "(")
_SECURE_BOOT: Final = (
    bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
    + (10).to_bytes(8, "little")
    + (1).to_bytes(8, "little")
    + "SecureBoot".encode("utf-16-le")
)
"""UEFI_VARIABLE_DATA (PFP) of the variable SecureBoot, up to its one byte."""

_BOOTI: Final = "U-Boot hashed the name in place of the {}, because booti does not know its size; boot a FIT image with bootm"
_VERSION_ONLY: Final = (
    "only the version text of the firmware is measured, and other code can measure the same text"
)


@dataclass(frozen=True, slots=True)
class _Extend:
    """One extend that is no constant; ``proven`` are the bytes of the log that hash to it."""

    digest: bytes
    proven: bytes | None


@dataclass(slots=True)
class _Notes:
    """Parts that were found so far."""

    measured: dict[BootPart, dict[int, str]] = field(default_factory=dict)
    hollow: dict[BootPart, str] = field(default_factory=dict)

    def found(self, part: BootPart, pcr: int, by: str) -> None:
        self.measured.setdefault(part, {}).setdefault(pcr, by)


def preferred(chain: Chain, pcrs: tuple[int, ...]) -> int:
    """Return the one of *pcrs* to select for a part that all of them have.

    The image's own PCR 11 or 12; of GRUB the file of the kernel, which is there whatever loads it.
    """
    order = {Chain.UKI: (11, 12), Chain.GRUB: (8, 9)}.get(chain, ())
    return next((pcr for pcr in order if pcr in pcrs), min(pcrs))


def read_boot(log: EventLog, bank: str) -> Boot:
    """Return the parts that *log* measures in *bank* (``sha256``).

    A function of digests and of the bytes that hash to them: see the rules of this package.  The effort is
    linear in the size of the log.

    Raises :class:`~tang_attest.errors.Malformed` ``eventlog-bank-missing`` as
    :func:`~tang_attest.protocol.eventlog.replay` does.  NOT checked: that any TPM has the values of the log.
    """
    replay(log, bank)
    extends = [event for event in log.events if event.extends]
    by_pcr = {pcr: _extends(extends, pcr, bank) for pcr in range(16)}
    notes = _Notes()
    sections = _uki_sections([event.digests[bank] for event in extends if event.pcr == 11], bank)
    _note_firmware(by_pcr, notes)
    for part, by in ((part, _UKI) for part in sections):
        notes.found(part, 11, by)
    if any(_utf16_text(each.proven) for each in by_pcr[12]):
        notes.found(BootPart.COMMAND_LINE, 12, _SYSTEMD)
    chain = _chain(by_pcr, BootPart.KERNEL in sections)
    match chain:
        case Chain.UBOOT:
            _note_uboot(by_pcr, [event.digests[bank] for event in extends if event.pcr == 8], bank, notes)
        case Chain.GRUB:
            _note_grub(by_pcr, bank, notes)
        case Chain.UKI | Chain.STUB:
            _note_stub(by_pcr, notes)
    used = frozenset(pcr for pcr, found in by_pcr.items() if found)
    return Boot(chain, _ordered(notes.measured), MappingProxyType(notes.hollow), used)


def _ordered(measured: Mapping[BootPart, Mapping[int, str]]) -> Mapping[BootPart, Mapping[int, str]]:
    return MappingProxyType(
        {
            part: MappingProxyType(dict(sorted(measured[part].items())))
            for part in BootPart
            if part in measured
        }
    )


def _extends(events: list[Event], pcr: int, bank: str) -> list[_Extend]:
    nothing = nothing_digests(bank)
    return [
        _Extend(event.digests[bank], _proven(event, bank))
        for event in events
        if event.pcr == pcr and event.digests[bank] not in nothing
    ]


def _proven(event: Event, bank: str) -> bytes | None:
    """The bytes of *event* that hash to its digest, whatever its type says; None if the log does not hold
    them.
    """
    text = event.data.removesuffix(b"\0")
    spans = [event.data, text]
    spans += [text.removeprefix(prefix) for prefix in _GRUB_PREFIXES if text.startswith(prefix)]
    expected = event.digests[bank]
    return next((span for span in spans if digest(bank, span) == expected), None)


def _chain(by_pcr: Mapping[int, list[_Extend]], uki: bool) -> Chain:
    """The chain; PCR 8 must be understood as a whole, or PCR 9 may hold files that anybody read."""
    eight = by_pcr[8]
    if not by_pcr[4] and _is_uboot(by_pcr[0]):
        return Chain.UBOOT
    if any(_grub_text(each.proven) for each in eight):
        return Chain.GRUB
    if by_pcr[4] and all(_utf16_text(each.proven) for each in eight):
        if uki:
            return Chain.UKI
        # systemd-boot measures the line for an image that it has the firmware load; old kernels have a silent
        # stub.
        handed_over = len(by_pcr[4]) > 1 and any(_utf16_text(each.proven) for each in (*eight, *by_pcr[12]))
        if by_pcr[9] or handed_over:
            return Chain.STUB
    return Chain.UNKNOWN


def _note_firmware(by_pcr: Mapping[int, list[_Extend]], notes: _Notes) -> None:
    zero, four, seven = by_pcr[0], by_pcr[4], by_pcr[7]
    uboot = _is_uboot(zero)
    if zero:
        notes.found(BootPart.FIRMWARE, 0, _UBOOT if uboot else _FIRMWARE)
        # A proven version and something else: without the one, the other may be U-Boot's version under a
        # wrong name.
        if uboot or len(zero) < 2 or all(each.proven is None for each in zero):
            notes.hollow[BootPart.FIRMWARE] = _VERSION_ONLY
        if uboot and len(zero) > 1:
            notes.found(BootPart.DEVICE_TREE, 0, _UBOOT)
    if four:
        notes.found(BootPart.BOOT_LOADER, 4, _FIRMWARE)
    if any(
        each.proven is not None
        and len(each.proven) == len(_SECURE_BOOT) + 1
        and each.proven.startswith(_SECURE_BOOT)
        for each in seven
    ):
        notes.found(BootPart.SECURE_BOOT, 7, _FIRMWARE)


def _note_uboot(by_pcr: Mapping[int, list[_Extend]], eight: list[bytes], bank: str, notes: _Notes) -> None:
    """``bootm`` and ``booti`` (boot/bootm.c): PCR 8 the kernel, 9 the initrd, 1 the device tree and then the
    command line.
    """
    if by_pcr[8]:
        notes.found(BootPart.KERNEL, 8, _UBOOT)
    elif any(each not in {digest(bank, data) for data in SEPARATORS} for each in eight):
        notes.hollow[BootPart.KERNEL] = _BOOTI.format("kernel")
    if by_pcr[9]:
        notes.found(BootPart.INITRD, 9, _UBOOT)
    one = by_pcr[1]
    if any(_c_text(each.proven) for each in one):
        notes.found(BootPart.COMMAND_LINE, 1, _UBOOT)
    # The command line is always one of them, proven or not.
    if len(one) > 1:
        notes.found(BootPart.DEVICE_TREE, 1, _UBOOT)


def _note_grub(by_pcr: Mapping[int, list[_Extend]], bank: str, notes: _Notes) -> None:
    """GRUB's tpm module: PCR 8 has each command and the command line, PCR 9 each file that GRUB opened."""
    texts = [text for each in by_pcr[8] if (text := _grub_text(each.proven))]
    lines = [line for text in texts if (line := _kernel_line(text))]
    files = {each.digest for each in by_pcr[9]}
    if lines:
        notes.found(BootPart.COMMAND_LINE, 8, _GRUB)
        if files:
            notes.found(BootPart.KERNEL, 9, _GRUB)
        # Linux' EFI stub measures the same line once more.
        if any(digest(bank, option) in files for line in set(lines) for option in _load_options(line)):
            notes.found(BootPart.COMMAND_LINE, 9, _STUB)
    # A GRUB that measured the file of the kernel measured that of the initrd, too.
    if lines and len(files) > 1 and _loads_initrd(texts):
        notes.found(BootPart.INITRD, 9, _GRUB)
    # shim measures the kernel twice, once for each of GRUB's questions; no loader is there twice in a row.
    images = [each.digest for each in by_pcr[4]]
    if lines and len(images) > 2 and images[-1] == images[-2]:
        notes.found(BootPart.KERNEL, 4, "shim")


def _loads_initrd(texts: list[str]) -> bool:
    commands = [text.split(" ", 1)[0] for text in texts]
    return any(command in _INITRD_COMMANDS for command in commands) or (
        sum(command in _MODULE_COMMANDS for command in commands) > 1
    )


def _note_stub(by_pcr: Mapping[int, list[_Extend]], notes: _Notes) -> None:
    """The kernel is an image that firmware loaded; its stub measures into PCR 9
    (drivers/firmware/efi/libstub).
    """
    notes.found(BootPart.KERNEL, 4, _FIRMWARE)
    if by_pcr[8]:
        notes.found(BootPart.COMMAND_LINE, 8, _SYSTEMD)
    nine = by_pcr[9]
    if nine:
        notes.found(BootPart.COMMAND_LINE, 9, _STUB)
    if len(nine) > 1:
        notes.found(BootPart.INITRD, 9, _STUB)


def _uki_sections(eleven: list[bytes], bank: str) -> list[BootPart]:
    """Parts in PCR 11: after the digest of a section's name comes the digest of its content (systemd-stub)."""
    names = {digest(bank, f"{name}\0".encode()): part for name, part in _SECTIONS.items()}
    nothing = nothing_digests(bank)
    return [
        names[name]
        for name, content in pairwise(eleven)
        if name in names and content not in names and content not in nothing
    ]


def _is_uboot(zero: list[_Extend]) -> bool:
    """U-Boot measures its own version as that of the CRTM (lib/tpm_tcg2.c), in one encoding of text or
    another.
    """
    return any(each.proven is not None and each.proven.startswith(b"U-Boot ") for each in zero)


def _grub_text(proven: bytes | None) -> str | None:
    """*proven* as a command of GRUB or a command line: ASCII, or UTF-8 where a menu has names in it."""
    if not proven or proven[-1:] == b"\0" or _utf16_text(proven):
        return None
    try:
        return proven.decode()
    except UnicodeDecodeError:
        return None


def _kernel_line(text: str) -> str | None:
    """The kernel's path and command line in a command ``linux PATH ...``, or in such a line; None in any
    other text.
    """
    command, _, rest = text.partition(" ")
    if command in _KERNEL_COMMANDS:
        return rest.strip() or None
    return text if text.startswith(_KERNEL_PATHS) else None


def _load_options(line: str) -> Iterator[bytes]:
    """The load options that GRUB hands to the kernel's stub, with and without the word in front and the NUL."""
    for text in (line, f"BOOT_IMAGE={line}"):
        for end in ("", "\0", " \0"):
            yield f"{text}{end}".encode("utf-16-le")


def _utf16_text(proven: bytes | None) -> str | None:
    """*proven* as the UTF-16 text of systemd-boot and systemd-stub."""
    if not proven or len(proven) < 4 or len(proven) % 2 or proven[0] == 0 or proven[1] != 0:
        return None
    try:
        text = proven.decode("utf-16-le").rstrip("\0")
    except UnicodeDecodeError:
        return None
    return text if text and all(c.isprintable() or c in "\n\t" for c in text) else None


def _c_text(proven: bytes | None) -> str | None:
    """*proven* as the command line of U-Boot: text, and a NUL at its end."""
    if not proven or not proven.endswith(b"\0"):
        return None
    try:
        text = proven[:-1].decode()
    except UnicodeDecodeError:
        return None
    return text if text.strip() and all(c.isprintable() or c in "\n\t" for c in text) else None
