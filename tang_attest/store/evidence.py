"""What each device last quoted in its initrd: once permitted, once refused."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import sqlalchemy as sa

from tang_attest.ports import LastEvidence, NewEvidence, Snapshot
from tang_attest.store import devices, policies, tables
from tang_attest.store.sql import insert_new

_device = tables.device
_evidence = tables.evidence

_COLUMNS: Final = (
    _device.c.name,
    _evidence.c.at,
    _evidence.c.permitted,
    _evidence.c.selection,
    _evidence.c.pcr_values,
)


def keep(connection: sa.Connection, device_id: int, at: datetime, new: NewEvidence) -> None:
    """Keep *new* in the place of the one before it that had the same verdict."""
    row = {
        "device_id": device_id,
        "permitted": new.permitted,
        "at": at,
        "selection": new.snapshot.selection,
        "pcr_values": new.snapshot.values,
        "event_log": new.snapshot.event_log,
    }
    if not insert_new(connection, _evidence, row):
        same = sa.and_(_evidence.c.device_id == device_id, _evidence.c.permitted == new.permitted)
        connection.execute(_evidence.update().where(same), row)
    about = {"evidence_digest": new.digest, "grade": new.grade}
    connection.execute(_device.update().where(_device.c.id == device_id), about)


def load(connection: sa.Connection, policy: str, *, with_logs: bool) -> list[LastEvidence]:
    """The newest evidence of every device under *policy*, by name.  Raises ``not-found``."""
    log = _evidence.c.event_log if with_logs else sa.literal(b"").label("event_log")
    query = sa.select(*_COLUMNS, log).join_from(_evidence, _device).order_by(_device.c.name, _evidence.c.at)
    query = query.where(_device.c.policy_id == policies.find_id(connection, policy))
    newest = {row["name"]: row for row in connection.execute(query).mappings()}
    return [_from_row(row) for row in newest.values()]


def get(connection: sa.Connection, device: str, *, permitted: bool) -> LastEvidence | None:
    """The evidence of *device* that was *permitted*, or refused.  Raises ``not-found``."""
    mine = sa.and_(_device.c.id == devices.find_id(connection, device), _evidence.c.permitted == permitted)
    query = sa.select(*_COLUMNS, _evidence.c.event_log).join_from(_evidence, _device).where(mine)
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _from_row(row)


def _from_row(row: sa.RowMapping) -> LastEvidence:
    snapshot = Snapshot(row["selection"], row["pcr_values"], row["event_log"])
    return LastEvidence(row["name"], row["at"], snapshot, row["permitted"])
