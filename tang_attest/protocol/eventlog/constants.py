"""Bytes that every boot may measure whatever it runs: their digests, and the PCR values that they alone lead
to.
"""

from __future__ import annotations

import hashlib
from functools import cache
from itertools import product
from typing import Final

NORMAL_SEPARATORS: Final = (bytes(4), b"\xff" * 4)
SEPARATORS: Final = (*NORMAL_SEPARATORS, b"\x01\0\0\0", b"\0\0\0\x01")
"""EV_SEPARATOR (PFP): zeros and ones are normal, 1 stands for an error, in either byte order."""

ACTIONS: Final = (
    b"Calling EFI Application from Boot Option",
    b"Returning from EFI Application from Boot Option",
    b"Exit Boot Services Invocation",
    b"Exit Boot Services Returned with Failure",
    b"Exit Boot Services Returned with Success",
)
"""EV_EFI_ACTION (PFP "EV_EFI_ACTION Event Types")."""

LABELS: Final = (b"linux", b"initrd", b"dts")
"""U-Boot hashes the label of an event in place of a range that is empty (lib/tpm-v2.c): ``booti`` knows no
size.
"""

PHASES: Final = ("enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final")
"""systemd-pcrphase.service(8), PCR 11, in this order."""

OS_SEPARATOR: Final = "os-separator"
OS_SEPARATOR_PCRS: Final = frozenset({*range(8), 9, 12, 13, 14})
"""systemd-pcrosseparator.service(8), systemd 261: into each of these once, in the initrd."""

NV_SEPARATOR: Final = "nvpcr-separator"
"""systemd-pcrnvdone.service(8), systemd 259: its NvPCRs are ready.  Nothing here reads or extends those."""

_EMPTY: Final = (b"", b"\0")
_MOST_EXTENDS: Final = 2


@cache
def nothing_digests(bank: str) -> frozenset[bytes]:
    """Return the digests in *bank* (``sha256``) that are the same whatever a machine boots."""
    words = [text.encode() for text in (*PHASES, OS_SEPARATOR, NV_SEPARATOR)]
    labels = [label + end for label in LABELS for end in (b"", b"\0")]
    return frozenset(digest(bank, data) for data in (*SEPARATORS, *ACTIONS, *labels, *words, *_EMPTY))


def measures_nothing(value: bytes, bank: str) -> bool:
    """Return True for a PCR *value* that says nothing about software.

    That is the value after a reset (zeros, ones, or the startup locality in the last byte), and the value
    after up to two constants, such as a separator and systemd's ``os-separator``.  Announcements and phases
    are constants too.
    """
    return value in _nothing_values(bank)


@cache
def _nothing_values(bank: str) -> frozenset[bytes]:
    size = len(digest(bank, b""))
    resets = [bytes(size), b"\xff" * size, *(locality.to_bytes(size, "big") for locality in (3, 4))]
    values = set(resets)
    for count in range(1, _MOST_EXTENDS + 1):
        for digests in product(sorted(nothing_digests(bank)), repeat=count):
            for value in resets:
                after = value
                for each in digests:
                    after = digest(bank, after + each)
                values.add(after)
    return frozenset(values)


def digest(bank: str, data: bytes) -> bytes:
    """Return the digest of *data* in *bank*."""
    return hashlib.new(bank, data).digest()
