"""Groups of events, and messages to receivers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Final, TypeVar

import sqlalchemy as sa

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.notices import Delivery, NoticeBook, NoticeGroup, NoticeKind, NoticeStore
from tang_attest.store import notices
from tang_attest.store.database import tables
from tang_attest.store.database.sql import changed
from tang_attest.store.roles.role import Role

T = TypeVar("T")

_cursor = tables.notice_cursor
_group = tables.notice_group
_delivery = tables.delivery
_THE_ROW: Final = 1
#: The most groups that one transaction makes messages of.
_DUE: Final = 50


class SqlNoticeBook(NoticeBook):
    """:class:`~tang_attest.ports.notices.NoticeBook` over one connection."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        found = notices.read_cursor(connection)
        if found is None:
            # Of two servers that begin now, one fails here, and begins again.
            connection.execute(_cursor.insert(), {"place": _THE_ROW, "audit_id": -1})
        self._audit_id, self._checked_at = found or (-1, None)

    def cursor(self) -> int | None:
        return None if self._audit_id < 0 else self._audit_id

    def move_cursor(self, to: int) -> None:
        self._audit_id = to
        self._connection.execute(_cursor.update().values(audit_id=to))

    def checked_at(self) -> datetime | None:
        return self._checked_at

    def mark_checked(self, at: datetime) -> None:
        self._checked_at = at
        self._connection.execute(_cursor.update().values(checked_at=at))

    def group(self, key: str) -> NoticeGroup | None:
        return notices.find_group(self._connection, key)

    def count_groups(self, kind: NoticeKind) -> int:
        query = sa.select(sa.func.count()).select_from(_group).where(_group.c.kind == kind.value)
        return int(self._connection.scalar(query) or 0)

    def keep(self, group: NoticeGroup) -> None:
        row = {
            "kind": group.kind.value,
            "body": notices.dump(group),
            "due_at": group.due_at,
            "known_until": group.known_until,
        }
        if changed(self._connection, _group.update().where(_group.c.key == group.key).values(row)) == 0:
            self._connection.execute(_group.insert(), {"key": group.key, **row})

    def due(self, now: datetime) -> Sequence[NoticeGroup]:
        return notices.due_groups(self._connection, now, _DUE)

    def forget(self, now: datetime) -> None:
        self._connection.execute(_group.delete().where(_group.c.due_at.is_(None), _group.c.known_until < now))

    def send(self, receiver: str, message: Mapping[str, object], now: datetime, most: int) -> int:
        row = {"receiver": receiver, "message": dict(message), "tries": 0, "due_at": now}
        self._connection.execute(_delivery.insert(), row)
        mine = sa.select(_delivery.c.id).where(_delivery.c.receiver == receiver)
        newest = self._connection.scalars(mine.order_by(_delivery.c.id.desc()).limit(most)).all()
        older = _delivery.delete().where(_delivery.c.receiver == receiver, _delivery.c.id < newest[-1])
        return changed(self._connection, older)


class SqlNotices(Role, NoticeStore):
    """:class:`~tang_attest.ports.notices.NoticeStore` over SQLAlchemy Core."""

    async def notice_cursor(self) -> int | None:
        return await self._database.read(notices.cursor)

    async def list_notable(
        self, after: int, up_to: int, since: datetime, limit: int
    ) -> Sequence[tuple[int, AuditEntry]]:
        return await self._database.read(
            lambda connection: notices.notable(connection, after, up_to, since, limit)
        )

    async def has_due_notices(self, now: datetime) -> bool:
        return await self._database.read(lambda connection: notices.has_due(connection, now))

    async def update_notices(self, work: Callable[[NoticeBook], T]) -> T:
        return await self._database.write(lambda connection: work(SqlNoticeBook(connection)))

    async def list_due_receivers(self, now: datetime) -> Collection[str]:
        return await self._database.read(lambda connection: notices.due_receivers(connection, now))

    async def claim_delivery(self, receiver: str, now: datetime, until: datetime) -> Delivery | None:
        return await self._database.write(lambda connection: notices.claim(connection, receiver, now, until))

    async def finish_delivery(self, number: int, audit: AuditEntry) -> None:
        await self._change(lambda connection: notices.finish(connection, number), audit)

    async def postpone_delivery(self, number: int, tries: int, until: datetime) -> None:
        await self._database.write(lambda connection: notices.postpone(connection, number, tries, until))
