"""The audit record."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from tang_attest.ports import AuditEntry
from tang_attest.store import tables


def append(connection: sa.Connection, *entries: AuditEntry) -> None:
    """Append *entries* in their order."""
    connection.execute(tables.audit.insert(), [_row(entry) for entry in entries])


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
    return fields.pop("id"), AuditEntry(**fields)
