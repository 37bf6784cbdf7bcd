"""Groups of events and messages to receivers, in each database: of two servers, one makes and delivers a message."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial

import pytest_asyncio

from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.notices import NoticeBook, NoticeGroup, NoticeKind
from tang_attest.store import SqlStore
from tests.store.conftest import Opener
from tests.store.samples import NOW

MINUTE = timedelta(minutes=1)


@pytest_asyncio.fixture
async def other(open_another: Opener) -> SqlStore:
    """Another process."""
    return await open_another()


def group(key: str = "boot x", **changes: object) -> NoticeGroup:
    """A group with every field set."""
    made = NoticeGroup(
        key,
        NoticeKind.BOOT,
        "The boot was refused.",
        "Approve DEVICE.",
        NOW,
        known_until=NOW + MINUTE,
        due_at=NOW,
        members={"pi-b": ("pi-b", NOW.isoformat())},
        beyond=3,
        step=1,
        told_at=NOW,
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


async def test_a_group_is_kept(store: SqlStore, other: SqlStore) -> None:
    """As it was, also for another server; one that is over is forgotten."""
    await store.notices.update_notices(lambda book: book.keep(group()))
    assert await other.notices.update_notices(lambda book: book.group("boot x")) == group()
    assert await other.notices.update_notices(lambda book: list(book.due(NOW))) == [group()]
    assert await other.notices.update_notices(lambda book: book.count_groups(NoticeKind.BOOT)) == 1
    assert await other.notices.has_due_notices(NOW)
    await store.notices.update_notices(lambda book: book.keep(group(due_at=None)))
    assert not await other.notices.has_due_notices(NOW)
    assert await other.notices.has_due_notices(NOW + 2 * MINUTE)
    await store.notices.update_notices(lambda book: book.forget(NOW + 2 * MINUTE))
    assert await other.notices.update_notices(lambda book: book.group("boot x")) is None


def take(book: NoticeBook, number: int) -> bool:
    """Move the cursor from where it was, once."""
    if book.cursor() != 7:
        return False
    book.move_cursor(number)
    return True


async def test_one_server_moves_the_cursor(store: SqlStore, other: SqlStore) -> None:
    """Of many that saw the same entries."""
    assert await store.notices.notice_cursor() is None
    await store.notices.update_notices(lambda book: book.move_cursor(7))
    assert await other.notices.notice_cursor() == 7
    moves = [
        each.notices.update_notices(partial(take, number=number))
        for number, each in enumerate([store, other] * 4, 10)
    ]
    assert sum(await asyncio.gather(*moves)) == 1
    await store.notices.update_notices(lambda book: book.mark_checked(NOW))
    assert await other.notices.update_notices(lambda book: book.checked_at()) == NOW


async def test_one_server_delivers_a_message(store: SqlStore, other: SqlStore) -> None:
    """Until its time is over; a message that was delivered is gone, with its audit entry."""
    await store.notices.update_notices(lambda book: book.send("hub", {"id": "1"}, NOW, 10))
    assert list(await other.notices.list_due_receivers(NOW)) == ["hub"]
    assert list(await other.notices.list_due_receivers(NOW - MINUTE)) == []
    claims = [each.notices.claim_delivery("hub", NOW, NOW + MINUTE) for each in (store, other) * 3]
    (mine,) = [claim for claim in await asyncio.gather(*claims) if claim is not None]
    assert (mine.receiver, mine.message, mine.tries) == ("hub", {"id": "1"}, 0)
    await store.notices.postpone_delivery(mine.id, 1, NOW + MINUTE)
    assert await other.notices.claim_delivery("hub", NOW, NOW + MINUTE) is None
    again = await other.notices.claim_delivery("hub", NOW + MINUTE, NOW + 2 * MINUTE)
    assert again is not None
    assert again.tries == 1
    await other.notices.finish_delivery(again.id, AuditEntry(NOW, "notify", "server", "done"))
    assert list(await store.notices.list_due_receivers(NOW + 9 * MINUTE)) == []
    assert [entry.event for _, entry in await store.audit.list_audit(limit=1)] == ["notify"]


async def test_entries_that_may_be_events(store: SqlStore) -> None:
    """In order, without unlocks that were permitted, and none that is too old."""
    for at, event, code in (
        (NOW - 9 * MINUTE, "device suspend", "ok"),
        (NOW, "unlock", "ok"),
        (NOW, "unlock", "pcr-mismatch"),
        (NOW, "device suspend", "ok"),
    ):
        await store.audit.append(AuditEntry(at, event, "server", "done", code))
    final = await store.audit.final_audit_id(None)
    assert final is not None
    found = await store.notices.list_notable(0, final, NOW - MINUTE, 10)
    assert [(entry.event, entry.code) for _, entry in found] == [
        ("unlock", "pcr-mismatch"),
        ("device suspend", "ok"),
    ]
    assert list(await store.notices.list_notable(found[0][0], final, NOW - MINUTE, 10)) == list(found[1:])
    assert len(await store.notices.list_notable(0, final, NOW - MINUTE, 1)) == 1
