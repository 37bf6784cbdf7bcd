"""Bytes -> entries of an IMA runtime measurement list, strictly.

Linux writes them (security/integrity/ima/ima_fs.c, ``ima_measurements_show``), all integers little-endian:

    pcr u32, SHA-1 over the template data [20], size u32, template name [size], size u32, template data [size]

Template data is fields, each ``size u32, data [size]``.  Template ``ima`` is older: no size of the data, a
digest of 20 bytes without a size, then the name; hashed is the name padded with zeros to 256 bytes.  A
*violation* (a file that was open for writing while it was measured) has a digest of zeros.
"""

from __future__ import annotations

import hashlib
from dataclasses import KW_ONLY, dataclass
from typing import Final

from tang_attest.errors import Malformed
from tang_attest.protocol.values.sizes import MAX_IMA_PART

PCR: Final = 10
"""The PCR that Linux measures to (CONFIG_IMA_MEASURE_PCR_IDX), unless a rule of IMA's policy names another."""

MAX_LIST: Final = 64 << 20
"""Bytes of a whole list, for a command line."""

MAX_ENTRY: Final = 32 * 1024
"""Bytes of template data; the longest field is a buffer, such as a key or a kernel's command line."""

_DIGEST: Final = 20
_MAX_TEMPLATE: Final = 32
#: IMA_EVENT_NAME_LEN_MAX + 1
_OLD_NAME: Final = 256
_SIZES: Final = {"md5": 16, "sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64}
#: Template to its number of fields.  The name is not hashed, so nothing may depend on which of the last two
#: it is.
_FIELDS: Final = {"ima-ng": 2, "ima-sig": 3, "ima-buf": 3}


@dataclass(frozen=True, slots=True)
class Entry:
    """One measurement.

    ``data`` is what was hashed and extended, ``end`` where the entry ends in its part.  ``name`` is a path or
    what else was measured (``boot_aggregate``), ``digest`` that of the content under ``hash_name``, ``extra``
    a signature (security.ima, as it is) or a buffer or empty.
    """

    data: bytes
    violation: bool
    end: int
    hash_name: str
    digest: bytes
    _: KW_ONLY
    name: bytes
    extra: bytes = b""


def read_entries(part: bytes, *, cut: bool = False, limit: int = MAX_IMA_PART) -> tuple[Entry, ...]:
    """The entries of *part*; if it is *cut*, the last one may be incomplete and is left out.

    Raises :class:`Malformed` ``ima-malformed``, with ``offset``: more than *limit* bytes, an entry that is
    cut short all the same, too long, for another PCR than 10, of another template than ima, ima-ng, ima-sig
    or ima-buf, with fields that do not fill its data, or whose SHA-1 is not that of its data.

    NOT checked: that any PCR ever had these values; what a signature or a buffer holds.
    """
    if len(part) > limit:
        raise Malformed("ima-malformed", f"The list has {len(part)} bytes at once, more than {limit}.")
    reader, entries = _EntryReader(part), []
    while reader.at < len(part):
        reader.begin = reader.at
        try:
            entries.append(_read_entry(reader))
        except _TooShortError as short:
            if cut:
                break
            raise reader.error(str(short)) from None
    return tuple(entries)


class _TooShortError(Exception):
    pass


class _EntryReader:
    def __init__(self, data: bytes, begin: int = 0) -> None:
        self.data, self.at, self.begin = data, 0, begin

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.at:
            raise _TooShortError(f"need {size} bytes for {what}, had {len(self.data) - self.at}")
        self.at += size
        return self.data[self.at - size : self.at]

    def sized(self, limit: int, what: str) -> bytes:
        size = int.from_bytes(self.take(4, f"the size of {what}"), "little")
        if size > limit:
            raise self.error(f"{what} has {size} bytes, more than {limit}")
        return self.take(size, what)

    def error(self, what: str) -> Malformed:
        return Malformed("ima-malformed", f"The entry at offset {self.begin}: {what}.", offset=self.begin)


def _read_entry(reader: _EntryReader) -> Entry:
    pcr = int.from_bytes(reader.take(4, "the PCR"), "little")
    if pcr != PCR:
        raise reader.error(f"it is for PCR {pcr}; only PCR {PCR} is verified")
    sha1 = reader.take(_DIGEST, "the template digest")
    template = reader.sized(_MAX_TEMPLATE, "the template name").decode("ascii", "replace")
    if template == "ima":
        hash_name, digest, name, extra = _read_old(reader)
        data = digest + name + bytes(_OLD_NAME - len(name))
    elif template in _FIELDS:
        data = reader.sized(MAX_ENTRY, "the template data")
        hash_name, digest, name, extra = _read_fields(reader, data, _FIELDS[template])
    else:
        known = ", ".join(("ima", *_FIELDS))
        raise reader.error(f"its template is none of {known}")
    violation = not any(sha1)
    # Not proven by another bank's PCR, but a list that contradicts itself was not written by Linux.
    if not violation and hashlib.sha1(data, usedforsecurity=False).digest() != sha1:
        raise reader.error("the template digest is not that of its data")
    return Entry(data, violation, reader.at, hash_name, digest, name=name, extra=extra)


def _read_old(reader: _EntryReader) -> tuple[str, bytes, bytes, bytes]:
    digest = reader.take(_DIGEST, "the digest")
    name = reader.sized(_OLD_NAME - 1, "the name")
    if b"\0" in name:
        raise reader.error("the name has a zero byte")
    return "sha1", digest, name, b""


def _read_fields(reader: _EntryReader, data: bytes, count: int) -> tuple[str, bytes, bytes, bytes]:
    inner = _EntryReader(data, reader.begin)
    try:
        fields = [inner.sized(MAX_ENTRY, "a field") for _ in range(count)]
    except _TooShortError as short:
        raise reader.error(str(short)) from None
    if inner.at != len(data):
        raise reader.error(f"{len(data) - inner.at} bytes follow the last field")
    hash_name, separator, digest = fields[0].partition(b":\0")
    algorithm = hash_name.decode("ascii", "replace")
    if not separator or _SIZES.get(algorithm) != len(digest):
        raise reader.error("its digest is none of a known hash")
    name = fields[1]
    if not name.endswith(b"\0") or b"\0" in name[:-1]:
        raise reader.error("its name does not end with its only zero byte")
    return algorithm, digest, name[:-1], fields[2] if count > 2 else b""
