"""Groups of events and messages to receivers.

Rules of this module:

* Every change of a group holds the row of the cursor, so that two servers make one message of one event.
* A server that delivers moves ``due_at`` first, by compare-and-set: of two servers one has the message until then.  One
  that dies meanwhile leaves it to another, so a message can come twice; both have the same id.
* These rows have no seals.  One that cannot be read is logged, counted and removed, and others go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.notices import Delivery, NoticeGroup, NoticeKind
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.sql import changed, full_page
from tang_attest.store.database.types import BIG
from tang_attest.store.records import audit_log

_cursor = tables.notice_cursor
_group = tables.notice_group
_delivery = tables.delivery
_audit = tables.audit
_READ_CURSOR: Final = authentic.PlainForm(_cursor)
_READ_GROUP: Final = authentic.PlainForm(_group)
_READ_DELIVERY: Final = authentic.PlainForm(_delivery)


def cursor(connection: sa.Connection) -> int | None:
    """The number of the last audit entry that was looked at."""
    found = connection.execute(sa.select(*_READ_CURSOR.raw))
    return next(_READ_CURSOR.readable(connection, found, lambda row: _number(row["audit_id"])), None)


def _number(found: int) -> int | None:
    return None if found < 0 else found


def has_due(connection: sa.Connection, now: datetime) -> bool:
    """True if a group has a message due, or can be forgotten."""
    over = sa.and_(_group.c.due_at.is_(None), _group.c.known_until < now)
    query = sa.select(_group.c.key).where(sa.or_(_group.c.due_at <= now, over)).limit(1)
    return connection.execute(query).first() is not None


def notable(
    connection: sa.Connection, after: int, up_to: int, since: datetime, limit: int
) -> list[tuple[int, AuditEntry]]:
    """Entries by number, without unlocks that were permitted, and without entries that cannot be read."""
    query = (
        sa.select(*audit_log.READ.raw)
        .where(
            _audit.c.id > after,
            _audit.c.id <= up_to,
            _audit.c.at >= since,
            sa.or_(_audit.c.event != "unlock", _audit.c.code != "ok"),
        )
        .order_by(_audit.c.id)
    )

    def read(last: Any, count: int) -> Sequence[Any]:
        further = query if last is None else query.where(_audit.c.id > sa.literal(last.id, BIG))
        return connection.execute(further.limit(count)).all()

    def keep(found: Sequence[Any]) -> list[tuple[int, AuditEntry]]:
        return list(audit_log.READ.readable(connection, found, audit_log.read_entry))

    return full_page(read, keep, limit)


def due_receivers(connection: sa.Connection, now: datetime) -> list[str]:
    """The receivers with a message to deliver now."""
    return list(
        connection.scalars(sa.select(_delivery.c.receiver).where(_delivery.c.due_at <= now).distinct())
    )


def claim(connection: sa.Connection, receiver: str, now: datetime, until: datetime) -> Delivery | None:
    """The oldest message to deliver, ours until then; messages that cannot be read are removed."""
    waiting = sa.select(*_READ_DELIVERY.raw).where(
        _delivery.c.receiver == receiver, _delivery.c.due_at <= now
    )
    while (row := connection.execute(waiting.order_by(_delivery.c.id).limit(1)).one_or_none()) is not None:
        mine = _delivery.c.id == row.id
        for delivery, due_at in _READ_DELIVERY.readable(connection, [row], _delivery_of):
            same = sa.and_(mine, _delivery.c.due_at == due_at)
            if changed(connection, _delivery.update().where(same).values(due_at=until)) == 1:
                return delivery
            return None  # another server was faster
        connection.execute(_delivery.delete().where(mine))
    return None


def _delivery_of(row: Mapping[str, Any]) -> tuple[Delivery, datetime]:
    if not isinstance(row["message"], dict):
        raise ValueError("message")  # noqa: TRY004 - the value is wrong, wherever it came from
    return Delivery(row["id"], row["receiver"], row["message"], row["tries"]), row["due_at"]


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


def find_group(connection: sa.Connection, key: str) -> NoticeGroup | None:
    """The group with this key; one that cannot be read is none, and is written over."""
    found = connection.execute(sa.select(*_READ_GROUP.raw).where(_group.c.key == key))
    return next(_READ_GROUP.readable(connection, found, _group_of), None)


def due_groups(connection: sa.Connection, now: datetime, limit: int) -> list[NoticeGroup]:
    """The groups that have a message due, the first ones first; groups that cannot be read are removed."""
    query = sa.select(*_READ_GROUP.raw).where(_group.c.due_at <= now).order_by(_group.c.due_at).limit(limit)
    rows = connection.execute(query).all()
    groups = list(_READ_GROUP.readable(connection, rows, _group_of))
    kept = {group.key for group in groups}
    for row in rows:
        if row.key not in kept:
            connection.execute(_group.delete().where(_group.c.key == row.key))
    return groups


def read_cursor(connection: sa.Connection) -> tuple[int, datetime | None] | None:
    """The cursor and the time of the last check of the record, locked; a row that cannot be read begins anew."""
    row = connection.execute(sa.select(*_READ_CURSOR.raw).with_for_update()).one_or_none()
    if row is None:
        return None
    found = _READ_CURSOR.readable(connection, [row], lambda read: (read["audit_id"], read["checked_at"]))
    return next(found, (-1, None))


def _group_of(row: Mapping[str, Any]) -> NoticeGroup:
    body = row["body"]
    group = NoticeGroup(
        row["key"],
        NoticeKind(row["kind"]),
        body["sentence"],
        body["action"],
        datetime.fromisoformat(body["first_at"]),
        known_until=row["known_until"],
        due_at=row["due_at"],
        members={identity: (name, at) for identity, (name, at) in body["members"].items()},
        beyond=body["beyond"],
        step=body["step"],
        told_at=datetime.fromisoformat(body["told_at"]) if body["told_at"] else None,
        page=body.get("page"),  # groups of an older version have none
    )
    _check(body, group)
    return group


def _check(body: Mapping[str, Any], group: NoticeGroup) -> None:
    """Raise ValueError for values that no group of ours has."""
    texts = [
        body["sentence"],
        body["action"],
        body.get("page") or "",
        *(name for name, _ in group.members.values()),
    ]
    counts = [body["beyond"], body["step"]]
    times = [group.first_at, group.told_at or group.first_at]
    times += [datetime.fromisoformat(at) for _, at in group.members.values()]
    if not all(isinstance(text, str) for text in texts) or not all(
        isinstance(count, int) for count in counts
    ):
        raise ValueError("body")
    if min(counts) < 0 or any(at.tzinfo is None for at in times):
        raise ValueError("body")
