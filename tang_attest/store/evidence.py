"""What each device last quoted in its initrd."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from tang_attest.ports import LastEvidence, Snapshot
from tang_attest.store import devices, policies, tables
from tang_attest.store.sql import insert_new

_device = tables.device
_evidence = tables.evidence

_WITHOUT_LOG: Final = (_device.c.name, _evidence.c.at, _evidence.c.selection, _evidence.c.pcr_values)


def keep(
    connection: sa.Connection,
    device_id: int,
    at: datetime,
    snapshot: Snapshot,
    grade: Mapping[str, object] | None,
) -> None:
    """Keep *snapshot* in the place of the one before it."""
    row = {
        "device_id": device_id,
        "at": at,
        "selection": snapshot.selection,
        "pcr_values": snapshot.values,
        "event_log": snapshot.event_log,
    }
    if not insert_new(connection, _evidence, row):
        connection.execute(_evidence.update().where(_evidence.c.device_id == device_id), row)
    about = {"evidence_digest": snapshot.digest(), "grade": grade}
    connection.execute(_device.update().where(_device.c.id == device_id), about)


def load(connection: sa.Connection, policy: str) -> list[LastEvidence]:
    """The evidence of every device under *policy*, by name, without event logs.  Raises ``not-found``."""
    query = sa.select(*_WITHOUT_LOG).join_from(_evidence, _device).order_by(_device.c.name)
    query = query.where(_device.c.policy_id == policies.find_id(connection, policy))
    return [
        LastEvidence(row.name, row.at, Snapshot(row.selection, row.pcr_values))
        for row in connection.execute(query)
    ]


def get(connection: sa.Connection, device: str) -> LastEvidence | None:
    """The evidence of *device*.  Raises ``not-found``."""
    query = sa.select(*_WITHOUT_LOG, _evidence.c.event_log).join_from(_evidence, _device)
    query = query.where(_device.c.id == devices.find_id(connection, device))
    row = connection.execute(query).one_or_none()
    if row is None:
        return None
    return LastEvidence(row.name, row.at, Snapshot(row.selection, row.pcr_values, row.event_log))
