"""The audit record.

The first entry that a transaction appends lists, beside its own details, the sealed rows that the transaction
changed, with their versions (authentic.py).  The list is for ``audit verify``, and left out when entries are
read.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.store.database import authentic, tables

#: The member of an entry's details that lists rows: table, key, serial (hex), version; version 0: it was
#: removed.
ROWS: Final = "sealed_rows"


def append(connection: sa.Connection, *entries: AuditEntry) -> None:
    """Append *entries* in their order."""
    rows = [_row(entry) for entry in entries]
    if changes := authentic.changes(connection):
        rows[0]["details"] = {**entries[0].details, ROWS: changes}
    connection.execute(tables.audit.insert(), rows)


def newest(
    connection: sa.Connection, device: str | None, limit: int, before: int | None = None
) -> list[tuple[int, AuditEntry]]:
    """The newest entries, perhaps only those about *device* or *before* a number, with their row numbers."""
    query = sa.select(tables.audit).order_by(tables.audit.c.id.desc()).limit(limit)
    if device is not None:
        query = query.where(tables.audit.c.device == device)
    if before is not None:
        query = query.where(tables.audit.c.id < before)
    return [_entry(row) for row in connection.execute(query).mappings()]


def _row(entry: AuditEntry) -> dict[str, object]:
    return {
        "at": entry.at,
        "event": entry.event,
        "actor": entry.actor,
        "verdict": entry.verdict,
        "code": entry.code,
        "device": entry.device,
        "kid": entry.kid,
        "address": entry.address,
        "request_id": entry.request_id,
        "details": dict(entry.details),
    }


def _entry(row: sa.RowMapping) -> tuple[int, AuditEntry]:
    fields: dict[str, Any] = {str(name): value for name, value in row.items()}
    fields["details"] = {name: value for name, value in fields["details"].items() if name != ROWS}
    return fields.pop("id"), AuditEntry(**fields)
