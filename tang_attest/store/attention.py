"""Bounded reads for a person's page: each uses an index, and reads as many rows as it shows.

Partial indexes hold the devices that want a person; their conditions are literals here and in the tables, as
SQLite uses a partial index only for a query that repeats its condition.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.ports.attention import MOST_COUNTED, Attention, ChangeMark, RefusedBoot, StateUsers
from tang_attest.ports.machines import Device
from tang_attest.protocol.changes.rollout import Rollout, RolloutOutcome
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.sql import among, full_page
from tang_attest.store.records import devices, policies, rollouts

_device, _policy, _state = tables.device, tables.policy, tables.reference_state
_observation, _rollout, _audit = tables.observation, tables.rollout, tables.audit
_outcome = tables.rollout_device

#: Above every character of a name (protocol/enrollment.py).
_ABOVE: Final = "\x7f"

_NEWEST: Final = (
    sa.select(_observation.c.device_id, sa.func.max(_observation.c.id).label("id"))
    .where(among(_observation.c.device_id, "ids"))
    .group_by(_observation.c.device_id)
    .subquery()
)
_REFUSED_BOOTS: Final = sa.select(*authentic.form(_observation).raw).join(
    _NEWEST, _NEWEST.c.id == _observation.c.id
)


def attention(connection: sa.Connection, limit: int) -> Attention:
    """Return what waits for a person; see :class:`~tang_attest.ports.attention.AttentionStore`."""
    refused = devices.choose(connection, tables.REFUSED_BOOT, newest=_device.c.last_seen_at, limit=limit)
    boots = _refused_boots(connection, [device.id for device in refused])
    named = {device.policy for device in refused}
    announced = _announced(connection, limit)
    return Attention(
        refused=tuple((device, boots.get(device.id)) for device in refused),
        policies={policy.name: policy for policy in (policies.load(connection, *named) if named else ())},
        suspended=tuple(
            devices.choose(connection, tables.SUSPENDED, newest=_device.c.suspended_at, limit=limit)
        ),
        unwell=tuple(devices.choose(connection, tables.UNWELL, newest=_device.c.outcome_since, limit=limit)),
        announced=announced,
        stopped=_stopped(connection, limit),
        counts={
            "refused": _count(connection, _device, tables.REFUSED_BOOT),
            "suspended": _count(connection, _device, tables.SUSPENDED),
            "unwell": _count(connection, _device, tables.UNWELL),
            "announced": _count(connection, _state, tables.PROPOSED),
            "stopped": _count(connection, _rollout, tables.STOPPED),
        },
    )


def _refused_boots(connection: sa.Connection, ids: Collection[int]) -> dict[int, RefusedBoot]:
    found = connection.execute(_REFUSED_BOOTS, {"ids": list(ids)})
    return {
        row["device_id"]: RefusedBoot(
            *(row[name] for name in ("id", "at", "code", "selection", "pcr_values"))
        )
        for row, _ in authentic.ours(connection, _observation, found)
    }


def _announced(connection: sa.Connection, limit: int) -> tuple[tuple[str, ReferenceState], ...]:
    query = sa.select(*authentic.form(_state).raw, _policy.c.name.label("policy_name"))
    query = query.join_from(_state, _policy).where(tables.PROPOSED)
    rows = connection.execute(query.order_by(_state.c.created_at.desc()).limit(limit)).all()
    found = authentic.ours(connection, _state, rows)
    return tuple((values.policy_name, policies.state_from(row)) for row, values in found)


def _stopped(connection: sa.Connection, limit: int) -> tuple[Rollout, ...]:
    query = sa.select(_rollout.c.under_way).where(tables.STOPPED).order_by(_rollout.c.under_way).limit(limit)
    found = rollouts.under_way_if_ours(connection, list(connection.scalars(query)))
    return tuple(rollout for rollout in found.values() if isinstance(rollout, Rollout))


def page_devices(connection: sa.Connection, after: str, limit: int, beginning: str) -> list[Device]:
    """Return a page of devices, by name; without rows that are not ours."""
    return full_page(
        lambda last, count: _names(connection, _device, after if last is None else last, beginning, count),
        lambda names: devices.load(connection, *names) if names else [],
        limit,
    )


def page_policies(connection: sa.Connection, after: str, limit: int, beginning: str) -> list[ReferencePolicy]:
    """Return a page of policies, by name; without rows that are not ours."""
    return full_page(
        lambda last, count: _names(connection, _policy, after if last is None else last, beginning, count),
        lambda names: policies.load(connection, *names) if names else [],
        limit,
    )


def _names(
    connection: sa.Connection, table: sa.Table, after: str, beginning: str, limit: int
) -> Sequence[str]:
    """Return the next names of *table* that begin with *beginning*."""
    names = sa.select(table.c.name).where(*_after(connection, table.c.name, after, beginning))
    return connection.scalars(names.order_by(table.c.name).limit(limit)).all()


def _after(
    connection: sa.Connection, column: sa.Column[str], after: str, beginning: str
) -> list[sa.ColumnElement[bool]]:
    """Return the conditions of names after *after* that begin with *beginning*.

    Names are ASCII, so a beginning is a range of bytes.  PostgreSQL sorts by its locale: the operators of bytes read an
    index of their own (``ix_..._name_bytes``).  In each locale a name sorts after its beginning, where the page begins.
    """
    if not beginning:
        return [column > after]
    end = beginning + _ABOVE
    if connection.dialect.name == "sqlite":
        return [column > after, column >= beginning, column < end]
    return [column > after, column >= beginning, column.op("~>=~")(beginning), column.op("~<~")(end)]


def state_users(
    connection: sa.Connection, policy: str, labels: Sequence[str], names: int
) -> dict[str | None, StateUsers]:
    """Return the users of states; see :class:`~tang_attest.ports.attention.AttentionStore`."""
    policy_id = policies.find_id(connection, policy)
    return {label: _users(connection, policy_id, label, names) for label in (*labels, None)}


def _users(connection: sa.Connection, policy_id: int, label: str | None, names: int) -> StateUsers:
    last = _device.c.last_state
    mine = sa.and_(_device.c.policy_id == policy_id, last.is_(None) if label is None else last == label)
    count = _count(connection, _device, mine)
    found = connection.scalars(sa.select(_device.c.name).where(mine).order_by(_device.c.name).limit(names))
    return StateUsers(count, tuple(found))


def rollout_counts(connection: sa.Connection, rollout_id: int) -> dict[str, int]:
    """Count the devices of a rollout by outcome."""
    return {
        outcome.value: _count(
            connection,
            _outcome,
            sa.and_(_outcome.c.rollout_id == rollout_id, _outcome.c.outcome == outcome.value),
        )
        for outcome in RolloutOutcome
    }


def _count(connection: sa.Connection, table: sa.Table, where: sa.ColumnElement[bool]) -> int:
    """Count the rows that meet *where*, and no further than :data:`MOST_COUNTED` and one."""
    rows = sa.select(sa.literal(1).label("row")).select_from(table).where(where).limit(MOST_COUNTED + 1)
    return int(connection.scalar(sa.select(sa.func.count()).select_from(rows.subquery())) or 0)


def change_mark(connection: sa.Connection) -> ChangeMark:
    """Return the newest rows."""
    newest: list[Any] = [
        connection.scalar(sa.select(sa.func.max(table.c.id)))
        for table in (_audit, _observation, tables.verification)
    ]
    return ChangeMark(*(int(number or 0) for number in newest))


def changed_devices(connection: sa.Connection, since: ChangeMark, limit: int) -> frozenset[str | None]:
    """Return the devices that entries and rounds after *since* are about."""
    found: set[str | None] = set()
    for table, mark in ((_audit, since.audit), (tables.verification, since.verification)):
        query = sa.select(table.c.device).where(table.c.id > mark).order_by(table.c.id).limit(limit)
        found |= set(connection.scalars(query))
    return frozenset(found)
