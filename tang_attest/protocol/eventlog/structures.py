"""Structures of a parsed event log: algorithms, event types, events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from enum import IntEnum
from typing import Final, Literal, NamedTuple

PCR_COUNT: Final = 24
"""PCRs 0 to 23 (TCG PC Client Platform TPM Profile, "PCR Attributes")."""

NO_PCR: Final = 0xFFFFFFFF
"""The PCR index of informative EV_NO_ACTION events, such as the SP 800-155 platform id (PFP)."""

HASH_ALGORITHMS: Final[Mapping[int, tuple[str, int]]] = {
    0x0004: ("sha1", 20),
    0x000B: ("sha256", 32),
    0x000C: ("sha384", 48),
    0x000D: ("sha512", 64),
    0x0012: ("sm3_256", 32),
    0x0027: ("sha3_256", 32),
    0x0028: ("sha3_384", 48),
    0x0029: ("sha3_512", 64),
}
"""TPM_ALG_ID -> bank name as tpm2-tools spells it, digest size in bytes (TCG Algorithm Registry)."""


class EventType(IntEnum):
    """TCG_EVENTTYPE (PFP "Event Types"); a log may hold others, so ``Event.type`` is a plain int."""

    EV_PREBOOT_CERT = 0x0
    EV_POST_CODE = 0x1
    EV_UNUSED = 0x2
    EV_NO_ACTION = 0x3
    EV_SEPARATOR = 0x4
    EV_ACTION = 0x5
    EV_EVENT_TAG = 0x6
    EV_S_CRTM_CONTENTS = 0x7
    EV_S_CRTM_VERSION = 0x8
    EV_CPU_MICROCODE = 0x9
    EV_PLATFORM_CONFIG_FLAGS = 0xA
    EV_TABLE_OF_DEVICES = 0xB
    EV_COMPACT_HASH = 0xC
    EV_IPL = 0xD
    EV_IPL_PARTITION_DATA = 0xE
    EV_NONHOST_CODE = 0xF
    EV_NONHOST_CONFIG = 0x10
    EV_NONHOST_INFO = 0x11
    EV_OMIT_BOOT_DEVICE_EVENTS = 0x12
    EV_POST_CODE2 = 0x13
    EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
    EV_EFI_VARIABLE_BOOT = 0x80000002
    EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
    EV_EFI_BOOT_SERVICES_DRIVER = 0x80000004
    EV_EFI_RUNTIME_SERVICES_DRIVER = 0x80000005
    EV_EFI_GPT_EVENT = 0x80000006
    EV_EFI_ACTION = 0x80000007
    EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
    EV_EFI_HANDOFF_TABLES = 0x80000009
    EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
    EV_EFI_HANDOFF_TABLES2 = 0x8000000B
    EV_EFI_VARIABLE_BOOT2 = 0x8000000C
    EV_EFI_GPT_EVENT2 = 0x8000000D
    EV_EFI_HCRTM_EVENT = 0x80000010
    EV_EFI_VARIABLE_AUTHORITY = 0x800000E0
    EV_EFI_SPDM_FIRMWARE_BLOB = 0x800000E1
    EV_EFI_SPDM_FIRMWARE_CONFIG = 0x800000E2
    EV_EFI_SPDM_DEVICE_POLICY = 0x800000E3
    EV_EFI_SPDM_DEVICE_AUTHORITY = 0x800000E4


class Algorithm(NamedTuple):
    """One PCR bank: its name (``sha256``; ``0x0099`` if we do not know it) and digest size in bytes."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Event:
    """One TCG_PCR_EVENT or TCG_PCR_EVENT2.

    ``index`` counts from 0, the Spec ID event included; ``offset`` is the byte in the log where it starts.
    ``pcr`` is 0 to 23, or ``NO_PCR`` for an EV_NO_ACTION event that names none.  ``digests`` maps a bank's
    name to the raw digest, in the order of the log.  NOT checked: that ``data`` belongs to ``digests``.
    """

    index: int
    offset: int
    pcr: int
    type: int
    digests: Mapping[str, bytes]
    _: KW_ONLY
    data: bytes

    @property
    def type_name(self) -> str:
        """``EV_SEPARATOR``; for a type that the PFP does not name, ``0x80000099``."""
        try:
            return EventType(self.type).name
        except ValueError:
            return f"0x{self.type:08x}"

    @property
    def names_pcr(self) -> bool:
        """True if ``pcr`` is a PCR, which it is for all but informative events."""
        return self.pcr != NO_PCR

    @property
    def extends(self) -> bool:
        """True if the digests were extended into the PCR: always, except for EV_NO_ACTION (PFP)."""
        return self.type != EventType.EV_NO_ACTION


@dataclass(frozen=True, slots=True)
class EventLog:
    """A whole log.

    ``algorithms`` are the banks that the events carry, in the order of the Spec ID event.
    ``startup_locality`` is what the log claims for PCR 0's initial value: 4 after an H-CRTM event, else the
    value of the StartupLocality event, else ``None`` (which counts as locality 0).
    """

    format: Literal["crypto-agile", "sha1"]
    algorithms: tuple[Algorithm, ...]
    events: tuple[Event, ...]
    startup_locality: int | None = None
