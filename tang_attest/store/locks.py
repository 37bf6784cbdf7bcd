"""The rows that a batch of decisions is about, locked beforehand and in one order.

Two replicas write batches that share devices, and states that are being rolled out.  If each took its locks as it
comes to them, the two could wait for each other in a circle, and PostgreSQL would end one of them.  SQLite has one
writer at a time, and nothing to order.

What is read under the lock stays true until the transaction ends, also of a device's nonces: each is valid for one
device (its kid is part of it), so whoever uses it up holds that device's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.ports import Decision
from tang_attest.store import tables
from tang_attest.store.sql import among

_device = tables.device
_state = tables.reference_state

#: What a decision may change of its device's row.
MOVED: Final = (
    "clock",
    "reset_count",
    "restart_count",
    "clock_safe",
    "last_seen_at",
    "last_code",
    "opened_reset_count",
    "learned_reset_count",
    "last_state",
    "verified_at",
)
# FOR NO KEY UPDATE: what an UPDATE of these columns takes; rows that refer to a device can still be added.
_DEVICES = (
    sa.select(
        _device.c.id,
        _device.c.policy_id,
        _device.c.learning,
        _device.c.suspended_at,
        *(_device.c[name] for name in MOVED),
    )
    .where(among(_device.c.id, "ids"))
    .order_by(_device.c.id)
    .with_for_update(key_share=True)
)
_STATES = (
    sa.select(_state.c.id)
    .where(
        among(_state.c.label, "labels"),
        _state.c.policy_id.in_(sa.select(_device.c.policy_id).where(among(_device.c.id, "ids"))),
    )
    .order_by(_state.c.id)
    .with_for_update(key_share=True)
)


def take(connection: sa.Connection, decisions: Sequence[Decision]) -> dict[int, dict[str, Any]]:
    """Lock the devices of *decisions*, then the states that they change; the devices' rows by id.

    A device that was removed has none.
    """
    ids = sorted({decision.device_id for decision in decisions})
    rows = {row["id"]: dict(row) for row in connection.execute(_DEVICES, {"ids": ids}).mappings()}
    met = (decision.met for decision in decisions)
    labels = sorted({state.label for state in met if state is not None and state.changes_when_met})
    if labels and connection.dialect.name != "sqlite":
        connection.execute(_STATES, {"ids": ids, "labels": labels})
    return rows
