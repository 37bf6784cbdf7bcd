"""Vectors of event logs, with their replay and coverage, and of IMA's list in parts.

Replays of recorded logs are compared with what the TPM had (tests/vectors/eventlogs).  Coverage is the program's own.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tang_attest.protocol.coverage import coverage
from tang_attest.protocol.eventlog import parse, replay
from tang_attest.protocol.values.pcr import Selection
from tools.conformance.primitives.encoding import b64u
from tools.vectors.keys import octets

_LOGS: Final = Path(__file__).parents[2] / "tests" / "vectors"
_SELECTIONS: Final = ("sha256:0,2,4,7,15", "sha256:0,2,4,7,8,9,15", "sha256:0,4,7,11,12,15")
_CHOSEN: Final = (
    "eventlogs/agile",
    "eventlogs/startup-locality-3",
    "eventlogs/hcrtm",
    "eventlogs/ovmf",
    "eventlogs/secure-boot",
    "eventlogs/uki",
    "eventlogs-arm64/edk2-grub-2.12",
    "eventlogs-arm64/edk2-kernel",
    "eventlogs-arm64/uboot-booti",
    "eventlogs-arm64/uboot-efi-uki",
)


def event_logs() -> Iterator[dict[str, Any]]:
    """Yield logs, the PCRs that they lead to, and the parts of the boot that a selection covers."""
    for name in _CHOSEN:
        data = (_LOGS / f"{name}.bin").read_bytes()
        log = parse(data)
        values = {str(pcr): value.hex() for pcr, value in sorted(replay(log, "sha256").items())}
        covered = {}
        for text in _SELECTIONS:
            found = coverage(log, Selection.parse(text))
            covered[text] = {part.part.value: part.as_json() for part in found.parts}
        yield {
            "name": name.rpartition("/")[2],
            "reason": "a log as the kernel shows it",
            "log": b64u(data),
            "bank": "sha256",
            "values": values,
            "coverage": covered,
        }


def _field(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _entry(path: str, digest: bytes, *, violation: bool = False) -> tuple[bytes, bytes]:
    """Return an ima-ng entry as the kernel writes it, and the digest that extends PCR 10 of SHA-256 (Linux 5.8)."""
    data = _field(b"sha256:\0" + digest) + _field(path.encode() + b"\0")
    sha1 = bytes(20) if violation else hashlib.sha1(data).digest()  # noqa: S324 - IMA's format
    raw = struct.pack("<I", 10) + sha1 + _field(b"ima-ng") + _field(data)
    return raw, b"\xff" * 32 if violation else hashlib.sha256(data).digest()


Entries = list[tuple[bytes, bytes]]
#: The largest part (10.5): a part of exactly this size is one that more follows.
_LIMIT: Final = 49152


def _value(entries: Entries) -> str:
    value = bytes(32)
    for _, digest in entries:
        value = hashlib.sha256(value + digest).digest()
    return value.hex()


def _raw(entries: Entries) -> bytes:
    return b"".join(raw for raw, _ in entries)


def _round(entries: Entries, known: int, proven: int, outcome: str, **sent: Any) -> dict[str, Any]:
    """Return one round: *known* entries are behind, and *proven* after it; the part is all that the kernel shows."""
    part = sent.get("part", _raw(entries)[len(_raw(entries[:known])) :])
    return {
        "ima_offset": len(_raw(entries[:known])),
        "ima": b64u(part),
        "limit": sent.get("limit", _LIMIT),
        "quoted": sent.get("quoted", _value(entries)),
        "outcome": outcome,
        "next_offset": len(_raw(entries[:proven])) if outcome != "ima-mismatch" else 0,
    }


def ima_lists() -> Iterator[dict[str, Any]]:
    """Yield rounds of one list: a part, the quoted PCR 10, and the offset at which the next part begins."""
    pcrs = [octets(f"ima pcr {pcr}", 32) for pcr in range(10)]
    aggregate = hashlib.sha256(b"".join(pcrs)).digest()
    four = [_entry("boot_aggregate", aggregate)]
    four += [_entry(f"/usr/bin/tool{number}", octets(f"tool {number}", 32)) for number in range(3)]
    violated = [*four, _entry("/var/log/open-for-writing", bytes(32), violation=True)]
    two, whole = len(_raw(four[:2])), _raw(four)
    cases = {
        "one part": [_round(four, 0, 4, "met")],
        "nothing new": [_round(four, 0, 4, "met"), _round(four, 4, 4, "met")],
        "the list grew": [_round(four[:2], 0, 2, "met"), _round(four, 2, 4, "met")],
        "two parts": [
            _round(four, 0, 2, "ima-incomplete", part=whole[:two], limit=two),
            _round(four, 2, 4, "met"),
        ],
        "two parts, the first cut inside an entry": [
            _round(four, 0, 2, "ima-incomplete", part=whole[: two + 9], limit=two + 9),
            _round(four, 2, 4, "met"),
        ],
        "entries came after the quote": [
            _round(four, 0, 2, "met", quoted=_value(four[:2])),
            _round(four, 2, 4, "met"),
        ],
        "an entry was left out": [_round(four, 0, 0, "ima-mismatch", part=_raw([four[0], *four[2:]]))],
        "a violation": [_round(violated, 0, 5, "met")],
    }
    for name, rounds in cases.items():
        yield {
            "name": name,
            "reason": "binary_runtime_measurements, template ima-ng, Linux 5.8 or later",
            "bank": "sha256",
            "pcrs": {str(pcr): value.hex() for pcr, value in enumerate(pcrs)},
            "rounds": rounds,
        }
