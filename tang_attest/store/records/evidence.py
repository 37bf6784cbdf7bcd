"""Last evidence of each device's initrd: once permitted, once refused."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.ports.decisions import NewEvidence, Snapshot
from tang_attest.ports.policies import LastEvidence
from tang_attest.store.database import authentic, tables
from tang_attest.store.records import devices, policies

_device = tables.device
_evidence = tables.evidence

_QUERY: Final = sa.select(*authentic.form(_evidence).raw, _device.c.name.label("device_name")).join_from(
    _evidence, _device
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
    same = sa.and_(_evidence.c.device_id == device_id, _evidence.c.permitted == new.permitted)
    authentic.delete(connection, _evidence, same)
    authentic.insert(connection, _evidence, row)
    about = {"evidence_digest": new.digest, "grade": new.grade}
    connection.execute(_device.update().where(_device.c.id == device_id), about)


def load(connection: sa.Connection, policy: str, *, with_logs: bool) -> list[LastEvidence]:
    """The newest evidence of every device under *policy*, by name, without rows that are not ours.

    Raises ``not-found``.
    """
    query = _QUERY.order_by(_device.c.name, _evidence.c.at)
    query = query.where(_device.c.policy_id == policies.find_id(connection, policy))
    newest = {values.device_name: values for values in connection.execute(query)}
    found = authentic.ours(connection, _evidence, newest.values())
    return [_from_row(row, values, with_log=with_logs) for row, values in found]


def get(connection: sa.Connection, device: str, *, permitted: bool) -> LastEvidence | None:
    """The evidence of *device* that was *permitted*, or refused.  Raises ``not-found``, ``registry-tampered``."""
    mine = sa.and_(_device.c.id == devices.find_id(connection, device), _evidence.c.permitted == permitted)
    values = connection.execute(_QUERY.where(mine)).one_or_none()
    if values is None:
        return None
    return _from_row(authentic.check(connection, _evidence, values[:-1]), values)


def _from_row(row: authentic.Row, values: Any, *, with_log: bool = True) -> LastEvidence:
    snapshot = Snapshot(row["selection"], row["pcr_values"], row["event_log"] if with_log else b"")
    return LastEvidence(values.device_name, row["at"], snapshot, row["permitted"])
