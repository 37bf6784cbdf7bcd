"""Locks on the rows of a batch of decisions, taken beforehand and in one order: devices, policies, states.

Two replicas write batches that share devices, and states that are being rolled out.  If each took its locks
as it reaches the rows, the two could wait for each other in a circle, and PostgreSQL would end one of them.
SQLite has one writer at a time, and nothing to order.

A policy is locked against changes only (FOR SHARE): decisions do not wait for each other there.  A batch that raises
the highest version of a signer changes its policies, and locks them all for that.  A transaction that changes a
policy, a state of it or its rollout takes the policy's row first
(:func:`tang_attest.store.records.policies.take`), so a change that was committed is seen by every decision
that is committed after it.

Rows read under the lock stay true until the transaction ends, also of a device's nonces: each is valid
for one device (its kid is part of it), so the transaction that uses it up holds that device's row.

A decision by recalled rows (recalled.py) stands if its reading is that of now.  All locks are taken before that is
read (locked.py), in a statement of its own: one that waits for a lock sees the other tables as they were before the
wait.  Every change that takes something away holds the row of the device or of the policy, so none is committed
between the look and the decision.

On PostgreSQL devices and policies are locked by one statement, devices first: all of them are an array before the
first policy is looked for.  It sees policies as they were before it waited for a device.  A device that was moved
meanwhile to a policy that is newer has that policy locked by a further statement.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from tang_attest.ports.decisions import Decision
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.composed import Composed
from tang_attest.store.database.sql import among, steady
from tang_attest.store.locked import LockedRows, Rows, checked, look, policies_of

_device = tables.device
_policy = tables.policy
_state = tables.reference_state

#: Columns of its device's row that a decision may change.
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
    "signed",
    "verified_at",
    "learning",
)
# FOR NO KEY UPDATE: the lock that an UPDATE of these columns takes; rows that refer to a device can still be
# added.
_DEVICES = Composed(authentic.form(_device).lock.where(among(_device.c.id, "ids")), "ids")
_IDS: Final = postgresql.ARRAY(sa.BigInteger)
_STATES = Composed(
    sa.select(_state.c.id)
    .where(
        among(_state.c.label, "labels"),
        _state.c.policy_id.in_(sa.select(_device.c.policy_id).where(among(_device.c.id, "ids"))),
    )
    .order_by(_state.c.id)
    .with_for_update(key_share=True),
    "ids",
    "labels",
)


def _lock_policies(raising: bool) -> sa.Select[Any]:
    """Lock policies against changes (FOR SHARE), or to change them (FOR NO KEY UPDATE).

    Never the latter after the former: two that hold it would wait for each other.
    """
    return sa.select(_policy.c.id).order_by(_policy.c.id).with_for_update(read=not raising, key_share=raising)


def _lock_both(raising: bool) -> sa.Select[Any]:
    """Lock devices, then the policies of those that permit; rows of devices, each with the ids of all locked policies."""
    devices = authentic.form(_device).lock.where(among(_device.c.id, "ids")).cte("devices")
    permitting = steady(sa.bindparam("permitting", type_=_IDS))
    theirs = sa.select(sa.func.array_agg(devices.c.policy_id)).where(devices.c.id == sa.any_(permitting))
    wanted = sa.cast(theirs.scalar_subquery(), _IDS)
    policies = _lock_policies(raising).where(_policy.c.id == sa.any_(wanted)).cte("policies")
    locked = sa.func.array(sa.select(policies.c.id).scalar_subquery())
    return sa.select(*devices.c, locked.label("policies")).order_by(devices.c.id)


_LOCK_BOTH: Final = {raising: Composed(_lock_both(raising), "ids", "permitting") for raising in (False, True)}
_LOCK_POLICIES: Final = {
    raising: Composed(_lock_policies(raising).where(among(_policy.c.id, "ids")), "ids")
    for raising in (False, True)
}


def take_devices(connection: sa.Connection, device_ids: Collection[int]) -> Rows:
    """Lock devices, in the order of their ids.  A device that was removed has no row."""
    return _rows(connection, _DEVICES.rows(connection, ids=sorted(device_ids)))


def take(connection: sa.Connection, decisions: Sequence[Decision]) -> LockedRows:
    """Lock the devices of *decisions*, the policies of those that permit, then the states that they change; then
    read what the decisions rest on.
    """
    ids = sorted({decision.device_id for decision in decisions})
    permits = [decision for decision in decisions if decision.met is not None]
    if connection.dialect.name == "sqlite" or not permits:
        return look(connection, decisions, take_devices(connection, ids))
    raising = any(decision.raises_version for decision in permits)
    permitting = sorted({decision.device_id for decision in permits})
    found = _LOCK_BOTH[raising].rows(connection, ids=ids, permitting=permitting)
    rows = _rows(connection, [values[:-1] for values in found])
    locked = set(found[0][-1]) if found else set()  # in each row, all of them
    if not locked.issuperset(judging := policies_of(rows, permits)):
        _LOCK_POLICIES[raising].rows(connection, ids=judging)
    met = (decision.met for decision in permits)
    labels = sorted({state.label for state in met if state is not None and state.changes_when_met})
    if labels:
        _STATES.rows(connection, ids=ids, labels=labels)
    return look(connection, decisions, rows)


def _rows(connection: sa.Connection, found: Sequence[Any]) -> Rows:
    # The id is the first column.
    return {values[0]: checked(connection, _device, values) for values in found}
