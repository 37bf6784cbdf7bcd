"""Groups of events and messages to receivers.

Rules of this module:

* Every change of a group holds the row of the cursor, so that two servers make one message of one event.
* A server that delivers moves ``due_at`` first, by compare-and-set: of two servers one has the message until then.  One
  that dies meanwhile leaves it to another, so a message can come twice; both have the same id.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.notices import Delivery, NoticeGroup, NoticeKind
from tang_attest.store.database import tables
from tang_attest.store.database.failures import UnreadableValue
from tang_attest.store.database.sql import changed
from tang_attest.store.records.audit_log import read_entry

_cursor = tables.notice_cursor
_group = tables.notice_group
_delivery = tables.delivery
_audit = tables.audit


def cursor(connection: sa.Connection) -> int | None:
    """The number of the last audit entry that was looked at."""
    found: int | None = connection.scalar(sa.select(_cursor.c.audit_id))
    return None if found is None or found < 0 else found


def has_due(connection: sa.Connection, now: datetime) -> bool:
    """True if a group has a message due, or can be forgotten."""
    over = sa.and_(_group.c.due_at.is_(None), _group.c.known_until < now)
    query = sa.select(_group.c.key).where(sa.or_(_group.c.due_at <= now, over)).limit(1)
    return connection.execute(query).first() is not None


def notable(
    connection: sa.Connection, after: int, up_to: int, since: datetime, limit: int
) -> list[tuple[int, AuditEntry]]:
    """Entries by number, without unlocks that were permitted."""
    query = (
        sa.select(_audit)
        .where(
            _audit.c.id > after,
            _audit.c.id <= up_to,
            _audit.c.at >= since,
            sa.or_(_audit.c.event != "unlock", _audit.c.code != "ok"),
        )
        .order_by(_audit.c.id)
        .limit(limit)
    )
    return [read_entry(row) for row in connection.execute(query).mappings()]


def due_receivers(connection: sa.Connection, now: datetime) -> list[str]:
    """The receivers with a message to deliver now."""
    return list(
        connection.scalars(sa.select(_delivery.c.receiver).where(_delivery.c.due_at <= now).distinct())
    )


def claim(connection: sa.Connection, receiver: str, now: datetime, until: datetime) -> Delivery | None:
    """The oldest message to deliver, ours until then."""
    waiting = sa.select(_delivery).where(_delivery.c.receiver == receiver, _delivery.c.due_at <= now)
    row = connection.execute(waiting.order_by(_delivery.c.id).limit(1)).one_or_none()
    if row is None:
        return None
    same = sa.and_(_delivery.c.id == row.id, _delivery.c.due_at == row.due_at)
    if changed(connection, _delivery.update().where(same).values(due_at=until)) != 1:
        return None  # another server was faster
    return Delivery(row.id, row.receiver, row.message, row.tries)


def finish(connection: sa.Connection, number: int) -> None:
    """Remove a message."""
    connection.execute(_delivery.delete().where(_delivery.c.id == number))


def postpone(connection: sa.Connection, number: int, tries: int, until: datetime) -> None:
    """Try a message again later."""
    connection.execute(_delivery.update().where(_delivery.c.id == number).values(tries=tries, due_at=until))


def dump(group: NoticeGroup) -> dict[str, object]:
    """Return the columns without one of their own."""
    return {
        "sentence": group.sentence,
        "action": group.action,
        "first_at": group.first_at.isoformat(),
        "members": {identity: list(member) for identity, member in group.members.items()},
        "beyond": group.beyond,
        "step": group.step,
        "told_at": group.told_at.isoformat() if group.told_at else None,
        "page": group.page,
    }


def load_group(row: Any) -> NoticeGroup:
    """Return the group of a row.  Raises :class:`UnreadableValue`."""
    try:
        return _group_of(row, row.body)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableValue("A row of table notice_group") from error


def _group_of(row: Any, body: Any) -> NoticeGroup:
    return NoticeGroup(
        row.key,
        NoticeKind(row.kind),
        body["sentence"],
        body["action"],
        datetime.fromisoformat(body["first_at"]),
        known_until=row.known_until,
        due_at=row.due_at,
        members={identity: (name, at) for identity, (name, at) in body["members"].items()},
        beyond=body["beyond"],
        step=body["step"],
        told_at=datetime.fromisoformat(body["told_at"]) if body["told_at"] else None,
        page=body.get("page"),  # groups of an older version have none
    )
