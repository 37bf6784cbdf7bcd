r"""Bytes from a log -> text that is safe to show.

A log may be written by an attacker, and is shown on an operator's terminal: control characters, escape
sequences and text-direction overrides are shown as ``\x1b``, never sent.  (A terminal library's own markup,
such as rich's brackets, is for the caller to escape.)
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

LONGEST: Final = 200
"""Characters of one piece of text; the whole is in the log itself."""

_SHOWN_BYTES: Final = 16
_LONGEST_FLAG: Final = 3


class Fields:
    """Little-endian fields of event data, for display: a short read is a plain ``ValueError``."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def rest(self) -> bytes:
        """Return the rest that was not taken yet."""
        return self._data[self._at :]

    def take(self, size: int) -> bytes:
        """The next *size* bytes."""
        if not 0 <= size <= len(self._data) - self._at:
            raise ValueError("event data is too short")
        self._at += size
        return self._data[self._at - size : self._at]

    def integer(self, size: int) -> int:
        """The next *size* bytes as an unsigned integer."""
        return int.from_bytes(self.take(size), "little")

    def guid(self) -> str:
        """The next 16 bytes as an EFI_GUID (mixed-endian), lower-case with dashes."""
        return str(UUID(bytes_le=self.take(16)))


def printable(text: str) -> str:
    """*text* without anything that acts on a terminal, at most ``LONGEST`` characters and an ellipsis."""
    cut = text if len(text) <= LONGEST else text[:LONGEST] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)


def utf16(data: bytes) -> str:
    """UTF-16LE up to the first NUL, made printable; broken surrogates become U+FFFD."""
    return printable(data.decode("utf-16-le", "replace").split("\0", 1)[0])


def text_or_bytes(data: bytes) -> str:
    """Quoted text if *data* is UTF-8 or UTF-16LE without control characters, else the first bytes."""
    if len(data) % 2 and data.endswith(b"\0") and _looks_like_utf16(data[:-1]):
        data = data[:-1]  # systemd-boot before 254 counts half a terminator
    for encoding in ("utf-16-le", "utf-8") if _looks_like_utf16(data) else ("utf-8",):
        try:
            text = data.decode(encoding).rstrip("\0")
        except UnicodeDecodeError:
            continue
        if text and all(c.isprintable() or c in "\r\n\t" for c in text):
            return f'"{printable(text)}"'
    return size_and_bytes(data)


def size_and_bytes(data: bytes) -> str:
    """``4 bytes 01020304``; of longer data only the beginning."""
    shown = data[:_SHOWN_BYTES].hex()
    more = "..." if len(data) > _SHOWN_BYTES else ""
    return f"{len(data)} bytes {shown}{more}" if data else "no data"


def value_text(data: bytes) -> str:
    """As :func:`text_or_bytes`, but flags and counters of up to 3 bytes stay bytes."""
    return text_or_bytes(data) if len(data) > _LONGEST_FLAG else size_and_bytes(data)


def _looks_like_utf16(data: bytes) -> bool:
    return len(data) >= 4 and len(data) % 2 == 0 and data[0] != 0 and data[1] == 0 and data[3] == 0
