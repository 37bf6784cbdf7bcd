"""The row locks of a batch of decisions, taken beforehand and in one order.

Two replicas write batches that share devices, and states that are being rolled out.  If each took its locks as it
comes to them, the two could wait for each other in a circle, and PostgreSQL would end one of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from tang_attest.ports import Decision
from tang_attest.store import tables
from tang_attest.store.sql import among

_device = tables.device
_state = tables.reference_state

# FOR NO KEY UPDATE: what an UPDATE of these columns takes; rows that refer to a device can still be added.
_DEVICES = (
    sa.select(_device.c.id)
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


def take(connection: sa.Connection, decisions: Sequence[Decision]) -> None:
    """Lock the devices of *decisions*, then the states that they change.

    SQLite has one writer, and nothing to order.  A nonce needs no lock of its own: it is valid for one device.
    """
    if not decisions or connection.dialect.name == "sqlite":
        return
    ids = sorted({decision.device_id for decision in decisions})
    connection.execute(_DEVICES, {"ids": ids})
    met = (decision.met for decision in decisions)
    if labels := sorted({state.label for state in met if state is not None and state.changes_when_met}):
        connection.execute(_STATES, {"ids": ids, "labels": labels})
