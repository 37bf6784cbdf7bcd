"""Refused quotes, kept for an operator to examine and approve."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.errors import NotFound
from tang_attest.ports.decisions import Decision, Snapshot
from tang_attest.ports.policies import Observation
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.sql import full_page
from tang_attest.store.records import devices

_device = tables.device
_observation = tables.observation

#: Observations kept for each device.  One has an event log of up to 128 KiB, and a machine that is refused
#: tries again for as long as it has power.
KEPT: Final = 32


def keep(connection: sa.Connection, decision: Decision, observed: Snapshot) -> None:
    """Add the observation of *decision*, and delete the device's oldest."""
    row = {
        "device_id": decision.device_id,
        "at": decision.audit.at,
        "selection": observed.selection,
        "pcr_values": observed.values,
        "code": decision.audit.code,
        "reset_count": decision.clock.reset_count,
        "event_log": observed.event_log,
    }
    authentic.insert(connection, _observation, row)
    mine = _observation.c.device_id == decision.device_id
    kept = sa.select(_observation.c.id).where(mine).order_by(_observation.c.id.desc()).limit(KEPT)
    authentic.delete(connection, _observation, sa.and_(mine, _observation.c.id.not_in(kept)))


def remove(connection: sa.Connection, ids: Collection[int]) -> None:
    """Delete the observations *ids*.  Raises ``observation-missing``."""
    for number in sorted(ids):
        if authentic.delete(connection, _observation, _observation.c.id == number) != 1:
            raise NotFound("observation-missing", f"There is no observation {number}.")


def load(
    connection: sa.Connection,
    device: str | None,
    limit: int,
    before: int | None = None,
    under: Collection[str] | None = None,
) -> list[Observation]:
    """The newest observations, perhaps only those of *device*, *before* an id, or of devices *under*
    policies.

    Rows that are not ours are left out, so that they hide no other machine's.  Of *device* they are an error: raises
    ``registry-tampered``.
    """
    query = sa.select(*authentic.form(_observation).raw, _device.c.name.label("device_name"))
    query = query.join_from(_observation, _device).order_by(_observation.c.id.desc())
    if device is not None:
        query = query.where(_device.c.id == devices.find_id(connection, device))
    if before is not None:
        query = query.where(_observation.c.id < before)
    if under is not None:
        named = sa.select(tables.policy.c.id).where(tables.policy.c.name.in_(under))
        query = query.where(_device.c.policy_id.in_(named))

    def read(last: Any, count: int) -> Sequence[Any]:
        older = query if last is None else query.where(_observation.c.id < last.id)
        return connection.execute(older.limit(count)).all()

    def keep(found: Sequence[Any]) -> list[Observation]:
        if device is not None:
            return [_from_row(authentic.check(connection, _observation, each[:-1]), each) for each in found]
        return [_from_row(*each) for each in authentic.ours(connection, _observation, found)]

    return full_page(read, keep, limit)


def _from_row(row: authentic.Row, values: Any) -> Observation:
    return Observation(
        id=row["id"],
        device=values.device_name,
        at=row["at"],
        snapshot=Snapshot(row["selection"], row["pcr_values"], row["event_log"]),
        code=row["code"],
        reset_count=row["reset_count"],
    )
