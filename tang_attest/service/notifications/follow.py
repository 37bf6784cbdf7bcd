"""Follow the audit record, and make messages of its events.

Each server and each worker follows it; the store's cursor decides which of them makes a message.  Entries are read
once no earlier one can come any more, as when they are sealed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Protocol

import structlog

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.notices import NoticeBook, NoticeKind, Occurrence
from tang_attest.ports.store import HasAudit, HasNotices
from tang_attest.ports.world import Clock
from tang_attest.service.notifications.events import event_of
from tang_attest.service.notifications.grouping import Compose, add, publish

#: Older entries are no news: the server was down, or had no receivers.
OLDEST: Final = timedelta(hours=6)
#: Entries of one round.
_PAGE: Final = 500

_log = structlog.get_logger("notify")


class FollowingStore(HasAudit, HasNotices, Protocol):
    """The roles of the store that following needs."""


class NoticeFollower:
    """Makes messages for *receivers*, by name, of the kinds that each wants; call :meth:`round` about once a second."""

    def __init__(
        self,
        store: FollowingStore,
        clock: Clock,
        receivers: Mapping[str, Sequence[NoticeKind]],
        compose: Compose,
    ) -> None:
        self._store, self._clock, self._receivers, self._compose = store, clock, receivers, compose
        #: The last entry that this process read; the cursor moves only with an event, or after many entries.
        self._read_up_to = -1

    async def begin(self) -> None:
        """Begin with the entries from now on, unless a server has begun before."""
        if await self._store.notices.notice_cursor() is None:
            newest = await self._store.audit.list_audit(limit=1)
            start = newest[0][0] if newest else 0
            await self._store.notices.update_notices(partial(_begin, start=start))

    async def round(self) -> None:
        """Read new entries, and give the messages that are due to their receivers."""
        now = self._clock.now()
        cursor = await self._store.notices.notice_cursor()
        if cursor is None:
            await self.begin()
            return
        after = max(cursor, self._read_up_to)
        final = await self._store.audit.final_audit_id(after)
        events, up_to = [], after
        if final is not None:
            page = await self._store.notices.list_notable(after, final, now - OLDEST, _PAGE)
            up_to = page[-1][0] if len(page) == _PAGE else final
            events = [event for number, entry in page if (event := _event_of(number, entry)) is not None]
        moved = up_to if events or up_to - cursor >= _PAGE else None
        self._read_up_to = up_to
        if moved is None and not await self._store.notices.has_due_notices(now):
            return
        dropped = await self._store.notices.update_notices(
            partial(self._update, cursor=cursor, to=moved, events=events, now=now)
        )
        if dropped:
            _log.warning("messages-dropped", messages=dropped)

    async def report(self, events: Sequence[Occurrence]) -> None:
        """Make messages of *events* that are not in the record."""
        now = self._clock.now()
        if events:
            await self._store.notices.update_notices(partial(_add_all, events=events, now=now))

    def _update(
        self,
        book: NoticeBook,
        cursor: int,
        to: int | None,
        events: Sequence[Occurrence],
        now: datetime,
    ) -> int:
        # Another server that was faster has made messages of these entries.
        if to is not None and book.cursor() == cursor:
            book.move_cursor(to)
            _add_all(book, events, now)
        return publish(book, now, self._receivers, self._compose)


def _event_of(number: int, entry: AuditEntry) -> Occurrence | None:
    """Return the event of an entry; one whose details make no sense is logged, and wants nobody."""
    try:
        return event_of(number, entry)
    except Exception as error:  # noqa: BLE001 - one entry must not end the messages about all later ones
        _log.error("entry-unreadable", entry=number, reason=type(error).__name__)
        return None


def _begin(book: NoticeBook, start: int) -> None:
    if book.cursor() is None:
        book.move_cursor(start)


def _add_all(book: NoticeBook, events: Sequence[Occurrence], now: datetime) -> None:
    for event in events:
        add(book, event, now)
