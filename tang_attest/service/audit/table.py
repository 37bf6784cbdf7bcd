"""Audit entries as a table for other programs: CSV by RFC 4180."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tang_attest.ports.audit import AuditEntry  # commands that print no table need not load it

#: The columns, which are the members of an entry as JSON.
COLUMNS: Final = (
    "no",
    "at",
    "event",
    "actor",
    "verdict",
    "code",
    "device",
    "kid",
    "address",
    "request_id",
    "details",
)
#: Beginnings of a cell that spreadsheets take for a formula, full-width signs included.
_FORMULA: Final = re.compile(r"\s*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def as_csv(entries: Iterable[tuple[int, AuditEntry]]) -> str:
    """Return *entries* with their row numbers as CSV, under a header."""
    return csv_text(COLUMNS, ((number, *entry.members().values()) for number, entry in entries))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV: lines that end with CR LF, times of RFC 3339 in UTC, bytes in hex, other objects as JSON.

    Text that a spreadsheet would compute begins with ``'``.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    return text.getvalue()


def plain(value: object) -> str:
    """Return bytes in hex, and a time as RFC 3339 in UTC; for :func:`json.dumps`.  Raises ``TypeError``."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    raise TypeError(f"cannot print {type(value).__name__}")


def _cell(value: object) -> str | int:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, bytes | datetime):
        text = plain(value)
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=plain)
    return f"'{text}" if _FORMULA.match(text) else text
