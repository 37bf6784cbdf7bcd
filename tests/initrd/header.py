"""LUKS2 headers as somebody without any key changes them: the JSON is plain text, and its checksum has no secret.

The format is that of the LUKS2 On-Disk Format Specification, section 2 (binary header) and 3 (JSON).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_CHECKSUM: Final = slice(448, 512)


def change(image: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Let *edit* change the JSON of both copies of the header, and make the checksums right."""
    with image.open("r+b") as file:
        file.seek(8)
        (size,) = struct.unpack(">Q", file.read(8))
        for offset in (0, size):
            file.seek(offset)
            header = bytearray(file.read(size))
            metadata = json.loads(header[4096:].split(b"\0", 1)[0])
            edit(metadata)
            text = json.dumps(metadata).encode()
            assert len(text) < size - 4096
            header[4096:] = text.ljust(size - 4096, b"\0")
            header[_CHECKSUM] = bytes(64)
            header[448 : 448 + 32] = hashlib.sha256(header).digest()
            file.seek(offset)
            file.write(header)


def null_segment(metadata: dict[str, Any]) -> None:
    """The data are not encrypted, says the header."""
    metadata["segments"]["0"]["encryption"] = "cipher_null-ecb"


def token_of(image: Path, number: str = "0") -> dict[str, Any]:
    """A token of a header."""
    with image.open("rb") as file:
        file.seek(4096)
        metadata = json.loads(file.read(1 << 20).split(b"\0", 1)[0])
    return dict(metadata["tokens"][number])
