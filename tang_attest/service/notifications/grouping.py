"""Groups of equal events: one message when they begin, and later counts while they grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from tang_attest.ports.notices import NoticeBook, NoticeGroup, NoticeKind, Occurrence
from tang_attest.service.notifications import places
from tang_attest.service.notifications.events import group_key

#: Time in which equal events are gathered before the first message.
GATHER: Final = timedelta(seconds=5)
#: Time before the first later count; each further one waits twice as long, up to :data:`LONGEST`.
PAUSE: Final = timedelta(minutes=10)
LONGEST: Final = timedelta(hours=4)
#: The same machine with the same difference is a new event after so long without one: it tries about twice a minute.
CALM: Final = timedelta(minutes=10)
#: Time after which the last attempt of a machine is noted again.
_NOTED: Final = timedelta(minutes=1)
#: Events of one group that are told apart, and groups of one kind; more are only counted.
MEMBERS: Final = 2000
GROUPS: Final = 20
#: Messages that wait for one receiver; older ones are dropped.
WAITING: Final = 200

#: Makes a message of a group that has not told every event.
Compose = Callable[[NoticeGroup], Mapping[str, object]]


def add(book: NoticeBook, event: Occurrence, now: datetime) -> None:
    """Add *event* to its group, and let a message be due if it is news."""
    group = book.group(event.key)
    if group is None or _is_over(group, now):
        group = _new_group(book, event, now)
    identity = f"{event.subject} {event.identity}" if event.identity else event.subject
    known = group.members.get(identity)
    last = datetime.fromisoformat(known[1]) if known else None
    if last is not None and event.at - last < _NOTED:
        return
    if last is None or (event.at - last >= CALM and event.known_until is None):
        group.due_at = group.due_at or _next(group, now)
        # The newest event is the last member.
        group.members.pop(identity, None)
    if identity in group.members or len(group.members) < MEMBERS:
        group.members[identity] = (event.subject, event.at.isoformat())
    else:
        group.beyond += 1
    group.known_until = max(group.known_until, event.known_until or event.at + CALM)
    book.keep(group)


def _is_over(group: NoticeGroup, now: datetime) -> bool:
    return group.due_at is None and group.known_until < now


def _new_group(book: NoticeBook, event: Occurrence, now: datetime) -> NoticeGroup:
    key, sentence, page = event.key, event.sentence, event.page
    if book.count_groups(event.kind) >= GROUPS:
        # An attacker with one machine can show any number of differences.
        key, sentence, page = group_key(event.kind, "others"), _OTHERS[event.kind], places.FIRST
        if (others := book.group(key)) is not None and not _is_over(others, now):
            return others
    return NoticeGroup(
        key,
        event.kind,
        sentence,
        event.action,
        event.at,
        known_until=event.known_until or event.at + CALM,
        due_at=None,
        page=page,
    )


_OTHERS: Final = {kind: f"More events of the kind '{kind}', each different." for kind in NoticeKind}


def _next(group: NoticeGroup, now: datetime) -> datetime:
    """Return the time of the next message of a group with news."""
    if group.told_at is None:
        return now + GATHER
    pause: timedelta = min(PAUSE * 2 ** min(group.step - 1, 16), LONGEST)
    return max(now + GATHER, group.told_at + pause)


def publish(
    book: NoticeBook, now: datetime, receivers: Mapping[str, Sequence[NoticeKind]], compose: Compose
) -> int:
    """Give the messages that are due to the *receivers* of their kinds; return the number of dropped ones."""
    dropped = 0
    for group in book.due(now):
        message = compose(group)
        for name, kinds in receivers.items():
            if group.kind in kinds:
                dropped += book.send(name, message, now, WAITING)
        book.keep(replace(group, step=group.step + 1, told_at=now, due_at=None))
    book.forget(now)
    return dropped
