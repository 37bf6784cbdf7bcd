"""Subject of an event, in words: the initrd, Secure Boot, a boot application, a command line."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from tang_attest.errors import Malformed
from tang_attest.protocol.eventlog.command_line import claims_command_line, decoded_text
from tang_attest.protocol.eventlog.constants import LABELS, digest
from tang_attest.protocol.eventlog.describe import describe, split_variable
from tang_attest.protocol.eventlog.rehash import OFTEN_LABELED, REHASHABLE, measured_data
from tang_attest.protocol.eventlog.structures import Event, EventType
from tang_attest.protocol.eventlog.text import printable, text_or_bytes


@dataclass(frozen=True, slots=True)
class EventSubject:
    """Subject of one event.

    ``what`` is a noun phrase.  ``text`` is what was measured, when the log holds it, and then it is proven as
    far as the log is; otherwise ``claim`` is what the log says about it, which nothing proves.  ``words`` are
    those of a command line; ``switch`` is the position of something that is on or off.
    """

    what: str
    text: str | None = None
    claim: str | None = None
    words: tuple[str, ...] | None = None
    switch: Literal["on", "off"] | None = None

    @property
    def named(self) -> str:
        """``what`` and what the log claims."""
        return f"{self.what} (claims: {self.claim})" if self.claim else self.what

    @property
    def shown(self) -> str:
        """``what`` and what is known or claimed of it."""
        return f"{self.what} ({self.text})" if self.text is not None else self.named


def subject_of(event: Event, bank: str) -> EventSubject:
    """Return the subject of *event*, whose digest in *bank* counts.  Never raises on odd data.

    NOT checked: the type and the PCR, which the sender of a log may choose freely.
    """
    measured = measured_data(event, bank)
    if measured is None and event.type in REHASHABLE - OFTEN_LABELED:
        # The type's digest is over the data, and this data has another one: the sender of the log changed it.
        return EventSubject(
            f"an {event.type_name} whose data is not what was measured", claim=describe(event)
        )
    if event.type in _UBOOT_TYPES and (empty := _empty_range(event, bank)):
        return empty
    about = _BY_TYPE.get(event.type, _other)
    return about(event, measured)


def _other(event: Event, measured: bytes | None) -> EventSubject:
    if measured is None:
        return EventSubject(
            _FIRMWARE.get(event.type, f"an event of type {event.type_name}"), claim=describe(event)
        )
    return EventSubject(
        _FIRMWARE.get(event.type, f"an event of type {event.type_name}"), text=describe(event)
    )


def _variable(event: Event, _measured: bytes | None) -> EventSubject:
    try:
        _, name, value = split_variable(event.data)
    except ValueError:
        return EventSubject("a firmware variable", text=describe(event))
    if name == "SecureBoot":
        return EventSubject("Secure Boot", text=describe(event), switch="on" if value == b"\x01" else "off")
    if name in _VARIABLES:
        size = f"{len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:12]}..."
        return EventSubject(_VARIABLES[name], text=size)
    return EventSubject(f"the firmware variable {name}", text=describe(event))


def _authority(event: Event, _measured: bytes | None) -> EventSubject:
    # Here, so that this package loads on machines that have nothing but Python's standard library.
    from tang_attest.protocol.x509.loose import read_certificate

    try:
        _, name, value = split_variable(event.data)
    except ValueError:
        return EventSubject("what images were checked with", text=describe(event))
    try:
        certificate = read_certificate(
            value[16:]
        )  # EFI_SIGNATURE_DATA: the owner's GUID, then the certificate
    except Malformed:
        return EventSubject(f"the firmware variable {name}", text=text_or_bytes(value))
    fingerprint = hashlib.sha256(certificate.der).hexdigest()
    return EventSubject(
        "a certificate that images were checked with", text=f"{certificate.subject}, sha256:{fingerprint}"
    )


def _application(event: Event, _measured: bytes | None) -> EventSubject:
    return EventSubject(_IMAGES[event.type], claim=describe(event))


def _ipl(event: Event, measured: bytes | None) -> EventSubject:
    """EV_IPL: what GRUB, shim, systemd-boot and systemd-stub measure, told apart by the PCR."""
    text = decoded_text(measured) if measured is not None else None
    if text is not None and event.pcr != 11 and claims_command_line(event):
        return EventSubject("the kernel command line", text=f'"{printable(text)}"', words=_words(text))
    if text is not None and event.pcr == 8:
        what = "a module's command line" if event.data.startswith(b"module_cmdline: ") else "a GRUB command"
        return EventSubject(what, text=f'"{printable(text)}"')
    return _label(event, measured)


def _label(event: Event, measured: bytes | None) -> EventSubject:
    """Data that is a name: of a file (GRUB), of a section (systemd-stub), of a list (shim)."""
    claim = text_or_bytes(event.data)
    if event.pcr == 9:
        return EventSubject(_file(claim), claim=claim)
    if event.pcr == 14:
        return EventSubject("a list of shim", claim=claim)
    if measured is not None:
        section = event.pcr == 11 and claim.strip('"') in _SECTIONS
        return EventSubject("a section of the unified kernel image" if section else "an EV_IPL", text=claim)
    if event.pcr == 11 and (section_of := _SECTIONS.get(claim.strip('"'))):
        return EventSubject(f"{section_of} in the unified kernel image", claim=claim)
    return EventSubject("an EV_IPL", claim=claim)


def _file(claim: str) -> str:
    """Of GRUB's files, whose names are a claim: the kernel and the initrd are called so by everyone."""
    name = claim.strip('"').rsplit("/", 1)[-1]
    if name.startswith(("initrd", "initramfs")):
        return "the initrd"
    return "the kernel" if name.startswith(("vmlinuz", "linux", "bzImage")) else "a file that GRUB read"


def _tag(event: Event, _measured: bytes | None) -> EventSubject:
    """EV_EVENT_TAG of Linux's EFI stub: the digest is over the initrd or the load options, the data only a
    label.
    """
    tag, _, label = describe(event).partition(": ")
    if claims_command_line(event):
        return EventSubject("the kernel command line", claim=label)
    return EventSubject("the initrd" if tag == "initrd" else f"a tagged event, {tag}", claim=label)


def _config(event: Event, measured: bytes | None) -> EventSubject:
    """EV_PLATFORM_CONFIG_FLAGS: U-Boot's boot arguments in PCR 1, or settings of other firmware."""
    text = decoded_text(measured) if measured is not None else None
    if claims_command_line(event):
        if text is None:
            return EventSubject("the kernel command line", claim=describe(event))
        return EventSubject("the kernel command line", text=f'"{printable(text)}"', words=_words(text))
    return _other(event, measured)


def _hash(event: Event, _measured: bytes | None) -> EventSubject:
    """EV_COMPACT_HASH and EV_TABLE_OF_DEVICES, as U-Boot writes them: the data is a label."""
    claim = text_or_bytes(event.data)
    what = _UBOOT_LABELS.get(event.data.removesuffix(b"\0"))
    return EventSubject(what or f"an event of type {event.type_name}", claim=claim)


def _empty_range(event: Event, bank: str) -> EventSubject | None:
    """U-Boot hashes the label where there is no data: proven by the digest, whatever the label says."""
    for label in LABELS:
        if event.digests.get(bank) == digest(bank, label + b"\0"):
            return EventSubject(
                f"an empty range in place of {_UBOOT_LABELS[label]}", text="the same for whatever is booted"
            )
    return None


def _words(text: str) -> tuple[str, ...]:
    return tuple(printable(word) for word in text.split())


_VARIABLES: Final = {
    "PK": "Secure Boot's platform key (PK)",
    "KEK": "Secure Boot's key exchange keys (KEK)",
    "db": "Secure Boot's allowed signatures (db)",
    "dbx": "Secure Boot's revocation list (dbx)",
}

_SECTIONS: Final = {
    ".linux": "the kernel",
    ".initrd": "the initrd",
    ".cmdline": "the kernel command line",
    ".osrel": "the os-release file",
    ".uname": "the kernel's version",
    ".splash": "the splash image",
    ".dtb": "the device tree",
    ".ucode": "the processor microcode",
    ".sbat": "the SBAT table",
    ".pcrpkey": "the key of the PCR signatures",
    ".profile": "the profile",
}
"""Sections that systemd-stub measures into PCR 11 (systemd-stub(7))."""

SECTION_NAMES: Final = tuple(_SECTIONS)

_IMAGES: Final[dict[int, str]] = {
    EventType.EV_EFI_BOOT_SERVICES_APPLICATION: "a boot application",
    EventType.EV_EFI_BOOT_SERVICES_DRIVER: "a boot driver",
    EventType.EV_EFI_RUNTIME_SERVICES_DRIVER: "a runtime driver",
}

_FIRMWARE: Final[dict[int, str]] = {
    EventType.EV_S_CRTM_VERSION: "the firmware's version",
    EventType.EV_S_CRTM_CONTENTS: "the firmware's first code (CRTM)",
    EventType.EV_EFI_HCRTM_EVENT: "the hardware's first code (H-CRTM)",
    EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB: "a part of the firmware",
    EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB2: "a part of the firmware",
    EventType.EV_POST_CODE: "a part of the firmware",
    EventType.EV_POST_CODE2: "a part of the firmware",
    EventType.EV_EFI_HANDOFF_TABLES: "the firmware's tables",
    EventType.EV_EFI_HANDOFF_TABLES2: "the firmware's tables",
    EventType.EV_CPU_MICROCODE: "the processor microcode",
    EventType.EV_EFI_GPT_EVENT: "the partition table",
    EventType.EV_EFI_GPT_EVENT2: "the partition table",
    EventType.EV_EFI_VARIABLE_BOOT: "a boot entry",
    EventType.EV_EFI_VARIABLE_BOOT2: "a boot entry",
    EventType.EV_SEPARATOR: "a separator",
    EventType.EV_TABLE_OF_DEVICES: "the device tree",
    EventType.EV_PLATFORM_CONFIG_FLAGS: "the firmware's settings",
    EventType.EV_EFI_ACTION: "an action of the firmware",
}

_UBOOT_LABELS: Final = {b"linux": "the kernel", b"initrd": "the initrd", b"dts": "the device tree"}
_UBOOT_TYPES: Final = frozenset({EventType.EV_COMPACT_HASH, EventType.EV_TABLE_OF_DEVICES})

_BY_TYPE: Final[dict[int, Callable[[Event, bytes | None], EventSubject]]] = {
    EventType.EV_EFI_VARIABLE_DRIVER_CONFIG: _variable,
    EventType.EV_EFI_VARIABLE_AUTHORITY: _authority,
    EventType.EV_IPL: _ipl,
    EventType.EV_EVENT_TAG: _tag,
    EventType.EV_PLATFORM_CONFIG_FLAGS: _config,
    **dict.fromkeys(_UBOOT_TYPES, _hash),
    **dict.fromkeys(_IMAGES, _application),
}
