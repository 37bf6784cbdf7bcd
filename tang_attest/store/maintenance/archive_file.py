"""The form of a backup: lines of JSON, and the proof that they are complete.

    {"format": "tang-attest backup", "version": 1, "schema": "0002", ...}     the head, with members of the caller's
    {"table": "policy", "columns": ["id", "name", ...]}                       each table, after those it refers to
    [1, "pi-b", ...]                                                          its rows, by primary key
    {"rows": {"policy": 1, ...}, "last_ids": {"device": 7, ...}}              the foot
    {"sha256": "<hex>", "hmac": "<hex>"}                                      over every line before

Values are as the columns hold them; bytes are ``{"b": "<base64>"}``.  SHA-256 finds damage.  HMAC-SHA-256
over the digest, under a key of the server's secret, finds a change of the file by an attacker who made the
digest anew.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, BinaryIO, Final

from tang_attest.errors import Conflict, Malformed

VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of file in this form: ``format`` and the member ``needs`` in its first line, ``noun`` in sentences, and
    the codes of errors.
    """

    format: str
    needs: str
    noun: str
    damaged: str
    _: KW_ONLY
    foreign: str

    def error(self, how: str) -> Malformed:
        """The error that says *how* a file is not whole."""
        return Malformed(self.damaged, f"The {self.noun} cannot be used: {how}.")


BACKUP: Final = FileKind("tang-attest backup", "schema", "backup", "backup-damaged", foreign="backup-foreign")
#: Bytes of one line.  The longest rows have an event log of 128 KiB; base64 makes 171 KiB of it.
_MAX_LINE: Final = 4 * 1024 * 1024


class Writer:
    """Writes lines to *file*, or to nowhere, and keeps their digest."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def line(self, value: object) -> None:
        """One line of JSON."""
        data = json.dumps(value, separators=(",", ":"), default=_encode).encode() + b"\n"
        self.digest.update(data)
        if self._file is not None:
            self._file.write(data)

    def head(self, kind: FileKind, members: Mapping[str, object]) -> None:
        """The first line."""
        self.line({"format": kind.format, "version": VERSION, **members})

    def end(self, key: bytes) -> None:
        """The last line."""
        digest = self.digest.digest()
        self.line({"sha256": digest.hex(), "hmac": hmac.digest(key, digest, "sha256").hex()})


class Reader:
    """Reads lines of *file* and keeps their digest.  Raises the *kind*'s error for any other form."""

    def __init__(self, file: BinaryIO, kind: FileKind = BACKUP) -> None:
        self._file, self._kind = file, kind
        self._digest = hashlib.sha256()
        self.head = self._object()
        if self.head.get("format") != kind.format:
            raise kind.error("it is not one of this program")
        if self.head.get("version") != VERSION or not isinstance(self.head.get(kind.needs), str):
            raise Malformed(kind.damaged, f"The {kind.noun} has a form that this program does not know.")

    @property
    def revision(self) -> str:
        """The schema's revision."""
        return str(self.head.get("schema"))

    @property
    def sha256(self) -> bytes:
        """The digest of the lines that were read."""
        return self._digest.digest()

    def content(self) -> Iterator[dict[str, Any] | list[Any]]:
        """Tables and rows; the foot, an object with the member ``rows``, is the last."""
        while True:
            value = self._value()
            yield value
            if isinstance(value, dict) and "rows" in value:
                return

    def check_end(self, *keys: bytes) -> bytes:
        """Compare the digests in the last line; return the one of *keys* that it was made with.

        Raises the kind's errors.
        """
        digest = self._digest.digest()
        end = self._object()
        if end.get("sha256") != digest.hex():
            raise self._kind.error("its digest is not the one that it ends with")
        found = str(end.get("hmac")).encode()
        fitting = [
            key
            for key in keys
            if hmac.compare_digest(found, hmac.digest(key, digest, "sha256").hex().encode())
        ]
        if not fitting:
            sentence = f"The {self._kind.noun} was made under another key-encryption key, or changed."
            raise Conflict(self._kind.foreign, sentence)
        if self._file.read(1):
            raise self._kind.error("it goes on after its end")
        return fitting[0]

    def _object(self) -> dict[str, Any]:
        value = self._value()
        if not isinstance(value, dict):
            raise self._kind.error("a line is missing")
        return value

    def _value(self) -> dict[str, Any] | list[Any]:
        line = self._file.readline(_MAX_LINE)
        if not line.endswith(b"\n"):
            raise self._kind.error("it is cut off" if len(line) < _MAX_LINE else "a line is too long")
        self._digest.update(line)
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise self._kind.error("a line is not JSON") from None
        if not isinstance(value, dict | list):
            raise self._kind.error("a line is neither a table nor a row")
        return value


def decode(value: object) -> object:
    """A column's value of a row's.  Raises ``backup-damaged``."""
    if not isinstance(value, dict):
        return value
    try:
        return base64.b64decode(value["b"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise damaged("a value is not what a column holds") from None


def damaged(how: str) -> Malformed:
    """The error that says *how* a backup is not whole."""
    return BACKUP.error(how)


def _encode(value: object) -> object:
    if isinstance(value, bytes):
        return {"b": base64.b64encode(value).decode()}
    raise TypeError(f"a column holds {type(value).__name__}")
