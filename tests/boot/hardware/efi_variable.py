"""Writes an EFI variable into OVMF's store while the machine is off, as somebody can who boots another medium.

UEFI PI, volume 3, and EDK II's VariableFormat.h: a firmware volume, in it a store of authenticated variables, each a header
of 60 bytes, the name in UTF-16 and the value, aligned to four bytes.
"""

from __future__ import annotations

import struct
import uuid
from pathlib import Path
from typing import Final

#: The vendor of systemd's variables.
SYSTEMD: Final = uuid.UUID("8cf2644b-4b0b-428f-9387-6d876050dc67")

_STORE: Final = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_STORE_HEADER: Final = 28
_HEADER: Final = struct.Struct("<HBBIQ16sIII16s")
_START: Final = 0x55AA
_ADDED: Final = 0x3F
#: Non-volatile, for the firmware's boot services and for the running system.
_ATTRIBUTES: Final = 7


def add(variables: Path, vendor: uuid.UUID, name: str, value: bytes) -> None:
    """Append a variable that the store *variables* does not have yet."""
    store = bytearray(variables.read_bytes())
    start = store.index(_STORE)
    (size,) = struct.unpack_from("<I", store, start + 16)
    position = start + _STORE_HEADER
    while struct.unpack_from("<H", store, position)[0] == _START:
        header = _HEADER.unpack_from(store, position)
        position = _aligned(position + _HEADER.size + header[7] + header[8])
    encoded = (name + "\0").encode("utf-16-le")
    header = (_START, _ADDED, 0, _ATTRIBUTES, 0, bytes(16), 0, len(encoded), len(value), vendor.bytes_le)
    record = _HEADER.pack(*header) + encoded + value
    assert position + len(record) < start + size
    assert set(store[position : position + len(record)]) == {0xFF}
    store[position : position + len(record)] = record
    variables.write_bytes(store)


def _aligned(position: int) -> int:
    return (position + 3) // 4 * 4
