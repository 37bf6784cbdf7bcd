"""PE images: the Authenticode digest that the firmware measures, and the sections that systemd's stub
measures.

Sources: Microsoft, "PE Format" and "Windows Authenticode Portable Executable Signature Format"; TCG PFP,
"Measuring PE/COFF Image Files".  Only the fields that decide what is hashed are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import BinaryIO, Final

from predict.files import CHUNK
from predict.sentences import Unpredictable
from predict.text import printable_text

MAX_IMAGE: Final = 1 << 32
"""Bytes of an image: offsets in a PE image have 32 bits."""

MAX_SECTIONS: Final = 64

MAX_ZEROS: Final = 1 << 28
"""Bytes that a section may have in memory beyond those in the file; the stub measures them as zeros."""

_HEADER_BYTES: Final = 4096
_LAST_HEADER: Final = 3072
_OPTIONAL: Final = 24
_CHECKSUM: Final = _OPTIONAL + 64
_HEADERS_SIZE: Final = _OPTIONAL + 60
_SECTION_SIZE: Final = 40
_CERTIFICATE_TABLE: Final = 4
# Magic of the optional header: the offset in it of the number of data directories, which the directories
# follow.
_DIRECTORIES: Final = {0x10B: 92, 0x20B: 108}


class NotAnImage(Exception):
    """The headers are not those of a PE image."""


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a file: *size* bytes, of which *stored* are in the file from *offset* on, and the rest are
    zeros.
    """

    open: Callable[[], BinaryIO]
    offset: int
    stored: int
    size: int

    def chunks(self, at: int, count: int) -> Iterator[bytes]:
        """Yield *count* bytes from *at* on.  Raises :class:`Unpredictable` if the file became shorter."""
        left = max(0, min(count, self.stored - at))
        zeros = count - left
        if left:
            with self.open() as file:
                file.seek(self.offset + at)
                while left:
                    chunk = file.read(min(left, CHUNK))
                    if not chunk:
                        raise Unpredictable("a file became shorter while it was read")
                    left -= len(chunk)
                    yield chunk
        while zeros:
            yield bytes(min(zeros, CHUNK))
            zeros -= min(zeros, CHUNK)

    def read(self, at: int, count: int) -> bytes:
        """Return *count* bytes from *at* on, or as many as there are."""
        return b"".join(self.chunks(at, max(0, min(count, self.size - at))))

    def part(self, at: int, stored: int, size: int) -> Window:
        """Return the window of *size* bytes from *at* on, of which *stored* at most are not zeros."""
        return Window(self.open, self.offset + at, max(0, min(stored, size, self.stored - at)), size)


@dataclass(frozen=True, slots=True)
class Section:
    """A section: its name (empty if not printable), its size in memory, its size and place in the file."""

    name: str
    virtual: int
    raw: int
    offset: int


@dataclass(frozen=True, slots=True)
class Image:
    """The parts of an image that are hashed; offsets and sizes are in bytes."""

    window: Window
    sections: tuple[Section, ...]
    checksum: int
    certificate_entry: int
    headers: int
    _: KW_ONLY
    certificates: int

    def section(self, name: str) -> Section | None:
        """Return the first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    def content(self, section: Section) -> Window:
        """Return *section* as it is in memory: what the file has of it, then zeros."""
        return self.window.part(section.offset, section.raw, section.virtual)

    def authenticode(self) -> Iterator[bytes]:
        """Yield what the Authenticode digest covers: all but the checksum, the certificate table's entry and
        the certificates.

        NOT checked: that the certificates are at the end of the file.
        """
        yield from self.window.chunks(0, self.checksum)
        yield from self.window.chunks(self.checksum + 4, self.certificate_entry - self.checksum - 4)
        yield from self.window.chunks(self.certificate_entry + 8, self.headers - self.certificate_entry - 8)
        hashed = self.headers
        for section in sorted(self.sections, key=lambda section: section.offset):
            yield from self.window.chunks(section.offset, section.raw)
            hashed += section.raw
        rest = self.window.size - self.certificates - hashed
        if rest > 0:
            yield from self.window.chunks(hashed, rest)


def parse(window: Window) -> Image:
    """Read the headers in the first 4096 bytes of *window*.

    Raises :class:`NotAnImage`: no MZ or PE signature, neither PE32 nor PE32+, anything cut short, no section
    or more than MAX_SECTIONS, no entry for a certificate table, a section outside of the file or MAX_ZEROS
    larger in memory, sections that overlap so much that twice the file would be hashed, more than MAX_IMAGE
    bytes. NOT checked: the machine, the alignment, and everything else that decides whether the image would
    run.
    """
    headers = _Headers(window.read(0, _HEADER_BYTES))
    if window.size > MAX_IMAGE or not headers.data.startswith(b"MZ"):
        raise NotAnImage
    at = headers.number(60, 4)
    if at >= _LAST_HEADER or headers.data[at : at + 4] != b"PE\0\0":
        raise NotAnImage
    count = headers.number(at + 6, 2)
    table = at + _OPTIONAL + headers.number(at + 20, 2)
    entry = _certificate_entry(headers, at + _OPTIONAL, table)
    size = headers.number(at + _HEADERS_SIZE, 4)
    if not (0 < count <= MAX_SECTIONS and entry + 8 <= size <= window.size):
        raise NotAnImage
    sections = tuple(_section(headers, table + _SECTION_SIZE * i, window.size) for i in range(count))
    certificates = headers.number(entry + 4, 4)
    hashed = size + sum(section.raw for section in sections)
    if certificates >= window.size or hashed > 2 * window.size:
        raise NotAnImage
    return Image(window, sections, at + _CHECKSUM, entry, size, certificates=certificates)


@dataclass(frozen=True, slots=True)
class _Headers:
    data: bytes

    def number(self, at: int, size: int) -> int:
        """Return the little-endian integer of *size* bytes at *at*."""
        if at + size > len(self.data):
            raise NotAnImage
        return int.from_bytes(self.data[at : at + size], "little")


def _certificate_entry(headers: _Headers, optional: int, end: int) -> int:
    """Return the offset of the certificate table's entry in the optional header, which ends at *end*."""
    directories = _DIRECTORIES.get(headers.number(optional, 2))
    if directories is None:
        raise NotAnImage
    entry = optional + directories + 4 + 8 * _CERTIFICATE_TABLE
    if headers.number(optional + directories, 4) <= _CERTIFICATE_TABLE or entry + 8 > end:
        raise NotAnImage
    return entry


def _section(headers: _Headers, at: int, size: int) -> Section:
    virtual, raw, offset = (headers.number(at + field, 4) for field in (8, 16, 20))
    if (raw and offset + raw > size) or virtual > raw + MAX_ZEROS:
        raise NotAnImage
    name = printable_text(headers.data[at : at + 8].rstrip(b"\0"))
    return Section(name or "", virtual, raw, offset)
