"""Writes TCG event logs: the inverse of ``tang_attest.protocol.eventlog.parse``, sharing no code with it.

``python -m tests.protocol.eventlog.writer`` writes the built vectors of tests/vectors/eventlogs again.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

VECTORS = Path(__file__).parents[2] / "vectors" / "eventlogs"

SHA1, SHA256, SHA384, SHA512, SM3 = 0x4, 0xB, 0xC, 0xD, 0x12
HASHES = {SHA1: "sha1", SHA256: "sha256", SHA384: "sha384", SHA512: "sha512"}
SIZES = {SHA1: 20, SHA256: 32, SHA384: 48, SHA512: 64, SM3: 32}

EV_POST_CODE, EV_NO_ACTION, EV_SEPARATOR, EV_ACTION, EV_EVENT_TAG = 1, 3, 4, 5, 6
EV_S_CRTM_VERSION, EV_IPL = 8, 13
EV_EFI_VARIABLE_DRIVER_CONFIG, EV_EFI_VARIABLE_BOOT = 0x80000001, 0x80000002
EV_EFI_BOOT_SERVICES_APPLICATION, EV_EFI_HCRTM_EVENT = 0x80000003, 0x80000010

EFI_GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
NO_PCR = 0xFFFFFFFF


class Measurement(NamedTuple):
    """One event to write; ``measured`` is what was hashed, the data itself unless given."""

    pcr: int
    type: int
    data: bytes
    measured: bytes | None = None

    def digest(self, algorithm: int) -> bytes:
        """Zeros for EV_NO_ACTION, as PFP asks; otherwise the hash of what was measured."""
        if self.type == EV_NO_ACTION:
            return bytes(SIZES[algorithm])
        return hashlib.new(HASHES[algorithm], self.data if self.measured is None else self.measured).digest()


def event1(pcr: int, event_type: int, digest: bytes, data: bytes) -> bytes:
    """TCG_PCR_EVENT."""
    return struct.pack("<II", pcr, event_type) + digest + struct.pack("<I", len(data)) + data


def event2(pcr: int, event_type: int, digests: Sequence[tuple[int, bytes]], data: bytes) -> bytes:
    """TCG_PCR_EVENT2."""
    values = b"".join(struct.pack("<H", algorithm) + digest for algorithm, digest in digests)
    return struct.pack("<III", pcr, event_type, len(digests)) + values + struct.pack("<I", len(data)) + data


def spec_id(
    algorithms: Sequence[tuple[int, int]],
    *,
    signature: bytes = b"Spec ID Event03\0",
    vendor: bytes = b"",
    vendor_size: int | None = None,
    count: int | None = None,
    tail: bytes = b"",
) -> bytes:
    """The first event of a crypto-agile log, with whatever is wrong about it."""
    announced = b"".join(struct.pack("<HH", *algorithm) for algorithm in algorithms)
    body = signature + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
    body += struct.pack("<I", len(algorithms) if count is None else count) + announced
    body += bytes([len(vendor) if vendor_size is None else vendor_size]) + vendor + tail
    return event1(0, EV_NO_ACTION, bytes(20), body)


def agile(algorithms: Sequence[int], measurements: Sequence[Measurement], *, vendor: bytes = b"") -> bytes:
    """A whole crypto-agile log."""
    log = spec_id([(algorithm, SIZES[algorithm]) for algorithm in algorithms], vendor=vendor)
    for measured in measurements:
        digests = [(algorithm, measured.digest(algorithm)) for algorithm in algorithms]
        log += event2(measured.pcr, measured.type, digests, measured.data)
    return log


def sha1_only(measurements: Sequence[Measurement]) -> bytes:
    """A whole SHA-1 log, without a Spec ID event."""
    return b"".join(event1(m.pcr, m.type, m.digest(SHA1), m.data) for m in measurements)


def variable(name: str, value: bytes, guid: UUID = EFI_GLOBAL) -> bytes:
    """UEFI_VARIABLE_DATA."""
    return guid.bytes_le + struct.pack("<QQ", len(name), len(value)) + name.encode("utf-16-le") + value


def startup_locality(locality: int) -> Measurement:
    """EV_NO_ACTION with a TCG_EfiStartupLocalityEvent."""
    return Measurement(0, EV_NO_ACTION, b"StartupLocality\0" + bytes([locality]))


def image_load(path: str) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT: PciRoot, Pci, GPT partition, file path."""

    def node(kind: int, subtype: int, body: bytes) -> bytes:
        return struct.pack("<BBH", kind, subtype, 4 + len(body)) + body

    partition = UUID("e3d1a5a0-12b2-4c1f-9d3b-0a5c6f7e8d90").bytes_le
    nodes = node(2, 1, struct.pack("<II", 0x0A0341D0, 0)) + node(1, 1, bytes([0, 2]))
    nodes += node(4, 1, struct.pack("<IQQ", 1, 2048, 1048576) + partition + bytes([2, 2]))
    nodes += node(4, 4, (path + "\0").encode("utf-16-le")) + node(0x7F, 0xFF, b"")
    return struct.pack("<QQQQ", 0x7E000000, 123456, 0, len(nodes)) + nodes


def tagged(tag: int, data: bytes) -> bytes:
    """TCG_PCClientTaggedEvent."""
    return struct.pack("<II", tag, len(data)) + data


SEPARATORS = [Measurement(pcr, EV_SEPARATOR, bytes(4)) for pcr in range(8)]

FIRMWARE = [
    Measurement(0, EV_S_CRTM_VERSION, "1.2\0".encode("utf-16-le")),
    Measurement(0, EV_POST_CODE, b"ACPI DATA", b"the tables themselves"),
    Measurement(7, EV_EFI_VARIABLE_DRIVER_CONFIG, variable("SecureBoot", b"\x01")),
    Measurement(1, EV_EFI_VARIABLE_BOOT, variable("BootOrder", b"\1\0\0\0"), b"\1\0\0\0"),
    *SEPARATORS,
    Measurement(4, EV_EFI_BOOT_SERVICES_APPLICATION, image_load("\\EFI\\BOOT\\BOOTX64.EFI"), b"the image"),
]

LINUX = [
    Measurement(8, EV_IPL, b"grub_cmd: linux /vmlinuz ro\0", b"linux /vmlinuz ro"),
    Measurement(9, EV_IPL, b"/vmlinuz\0", b"the kernel"),
    Measurement(9, EV_EVENT_TAG, tagged(0x8F3B22EC, b"Linux initrd\0"), b"the initrd"),
]

HCRTM_MEASURED = b"what the H-CRTM hashed"


def built_vectors() -> dict[str, bytes]:
    """File name -> content of every vector that is built, not recorded."""
    banks = (SHA1, SHA256, SHA384)
    hcrtm = Measurement(0, EV_EFI_HCRTM_EVENT, b"HCRTM", HCRTM_MEASURED)
    id00 = event1(0, EV_NO_ACTION, bytes(20), b"Spec ID Event00\0" + struct.pack("<IBBBBB", 0, 2, 1, 0, 0, 0))
    return {
        "agile.bin": agile(banks, FIRMWARE + LINUX, vendor=b"vendor"),
        "hcrtm.bin": agile(banks, [startup_locality(3), hcrtm, *FIRMWARE]),
        "sha1.bin": sha1_only(FIRMWARE),
        "sha1-spec-id-00.bin": id00 + sha1_only(FIRMWARE),
        "startup-locality-3.bin": agile(banks, [startup_locality(3), *FIRMWARE]),
        "startup-locality-only.bin": agile((SHA256,), [startup_locality(3)]),
    }


RECORDED = ("kernel-changed", "ovmf", "secure-boot", "uki")


def recorded_values(name: str) -> dict[str, dict[int, bytes]]:
    """The PCRs that the kernel of the boot *name* read, by bank."""
    banks = json.loads((VECTORS / "pcrs" / f"{name}-pcrs.json").read_text())
    return {
        bank: {int(pcr): bytes.fromhex(value) for pcr, value in values.items()}
        for bank, values in banks.items()
    }


if __name__ == "__main__":
    for name, content in built_vectors().items():
        (VECTORS / name).write_bytes(content)
        print(f"{name}: {len(content)} bytes")
