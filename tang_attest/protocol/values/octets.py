"""Octets of a TPM structure, taken from the front: big-endian numbers and sized buffers (TPM 2.0 part 1,
section 4).
"""

from __future__ import annotations

from struct import Struct
from typing import Any


class Octets:
    """A cursor over *data*.  A read of more than is there raises :class:`ValueError`, and so does a
    rest.
    """

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        """The next *size* bytes."""
        end = self._at + size
        if end > len(self._data):
            raise ValueError("it ends too early")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        """An unsigned number of *size* bytes."""
        return int.from_bytes(self.take(size), "big")

    def numbers(self, form: Struct) -> tuple[Any, ...]:
        """The next numbers, of the sizes that *form* has."""
        return form.unpack(self.take(form.size))

    def sized(self, limit: int) -> bytes:
        """A TPM2B: a UINT16 and as many bytes, at most *limit*."""
        size = self.number(2)
        if size > limit:
            raise ValueError(f"a buffer of {size} bytes, at most {limit} make sense")
        return self.take(size)

    def left(self) -> int:
        """Return the number of bytes that were not taken."""
        return len(self._data) - self._at
