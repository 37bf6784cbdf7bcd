"""One row that this server did not write is logged, counted and left out: no listing, message or round ends with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from tang_attest.errors import TangAttestError, Unavailable
from tang_attest.ports.notices import NoticeBook, NoticeGroup, NoticeKind
from tang_attest.ports.store import if_ours
from tang_attest.store import SqlStore
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.sql import full_page
from tests.store.samples import NOW, entry
from tests.store.tampering import Intruder, ended, fill

HOUR = timedelta(hours=1)


@pytest.fixture
def intruder(url: str, request: pytest.FixtureRequest) -> Intruder:
    """Somebody who has the database."""
    postgres = request.getfixturevalue("postgres") if url.startswith("postgresql") else None
    return Intruder(url, postgres)


Listing = Callable[[SqlStore], Awaitable[Sequence[Any]]]


async def waiting(store: SqlStore) -> Sequence[Any]:
    """Announcements of the page of what waits."""
    return (await store.attention.attention(10)).announced


#: table -> its listings, which a person, a page, a message or a sweep reads.
LISTINGS: dict[str, list[Listing]] = {
    "device": [
        lambda store: store.devices.list_devices(),
        lambda store: store.attention.page_devices("", 10),
        lambda store: store.rounds.list_silent("policy", NOW + HOUR, NOW + HOUR, 10),
    ],
    "policy": [
        lambda store: store.policies.list_policies(),
        lambda store: store.attention.page_policies("", 10),
        lambda store: store.rounds.list_watched(),
    ],
    "reference_state": [waiting],
    "sealed_key": [lambda store: store.keys.list_keys()],
    "token": [lambda store: store.enrollment.list_tokens()],
    "admin_token": [lambda store: store.admin_tokens.list_admin_tokens()],
    "observation": [lambda store: store.policies.list_observations()],
    "ek_root": [lambda store: store.enrollment.list_ek_roots()],
    "registered_ek": [lambda store: store.enrollment.list_registered_eks()],
    "operator": [lambda store: store.operators.list_operators()],
    "passkey": [lambda store: store.operators.list_passkeys()],
    "operator_session": [lambda store: store.operators.list_sessions()],
    "pending_approval": [lambda store: store.signed_acts.list_approvals()],
}
#: Unique columns of a copied row.
FRESH = {
    "id": 77,
    "name": "zz",
    "label": "zz",
    "kid": "zz",
    "ak_spki": b"x",
    "ek_spki": b"x",
    "ek_sha256": b"x",
    "digest": b"x",
    "fingerprint": "x",
    "number": "x",
    "handle": b"x",
    "credential_id": b"x",
    "challenge": b"x",
    "subject": b"x",
}


async def test_listings_go_on(store: SqlStore, intruder: Intruder, caplog: pytest.LogCaptureFixture) -> None:
    """A row that somebody added is not listed, all the others are, and the row is logged and counted."""
    await fill(store)
    await store.policies.add_state("policy", announced(), entry())
    for table, listings in LISTINGS.items():
        form = authentic.SEALED[table]
        before = [list(await listing(store)) for listing in listings]
        assert all(before), table
        row = await newest_row(store, form)
        intruder.insert(table, row | {name: value for name, value in FRESH.items() if name in row})
        counted = store.tampered()[table]
        assert [list(await listing(store)) for listing in listings] == before, table
        assert store.tampered()[table] >= counted + len(listings)
        assert f"of table {table} is not what this server wrote." in caplog.text
        intruder.do(f"DELETE FROM {table} WHERE {form.keys[0]} = {intruder.literal(FRESH[form.keys[0]])}")  # noqa: S608


async def newest_row(store: SqlStore, form: authentic.Form) -> dict[str, Any]:
    """The newest row of a table, as its columns hold it."""
    newest = sa.select(*form.raw).order_by(*(column.desc() for column in form.table.primary_key)).limit(1)
    row = await store._database.read(lambda connection: connection.execute(newest).one())
    return dict(zip(form.names, row, strict=True))


async def test_a_notification_that_is_not_ours(store: SqlStore, intruder: Intruder) -> None:
    """It is removed, and the others go out."""
    await fill(store)
    row = await newest_row(store, authentic.SEALED["notification"])
    intruder.insert("notification", row | {"id": 77})
    assert [found.id for found in await store.rounds.take_notifications(10)] == [row["id"]]
    assert store.tampered()["notification"] == 1


def announced() -> Any:
    """A state that waits for an approval."""
    from tang_attest.protocol.reference_state import Life, ReferenceState
    from tests.store.samples import values

    return ReferenceState(
        "next", values("n"), "announced", Life.PROPOSED, created_at=NOW, created_by="device:pi-b"
    )


async def test_a_policy_with_a_state_that_is_not_ours_is_left_out_whole(
    store: SqlStore, intruder: Intruder
) -> None:
    """Without the state, another one could permit what it forbids; the policy's own reader is refused."""
    await fill(store)
    from tests.store.samples import policy

    await store.policies.add_policy(policy("other"), entry())
    intruder.do("UPDATE reference_state SET life = 'active' WHERE label = 'new'")
    assert [found.name for found in await store.policies.list_policies()] == ["other"]
    with pytest.raises(Unavailable, match="Row 'new' of table reference_state"):
        await store.policies.get_policy("policy")


async def test_no_requirement_is_forgotten_while_a_policy_is_not_ours(
    store: SqlStore, intruder: Intruder
) -> None:
    """Nobody knows if the policy needs it, once its row is restored."""
    await fill(store)
    from tests.store.samples import policy
    from tests.store.tampering import IMA

    await store.policies.add_policy(policy("other"), entry())
    intruder.do("UPDATE policy SET cap_pcr = 3 WHERE name = 'policy'")
    await store.policies.require_ima("other", None, entry())
    assert await store.rounds.find_ima_requirement(IMA.digest) is not None


async def test_the_log_has_a_row_once_a_minute(
    store: SqlStore, intruder: Intruder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep reads it each second; each read is counted."""
    await fill(store)
    intruder.do("UPDATE policy SET cap_pcr = 3 WHERE name = 'policy'")
    now = 1000.0
    monkeypatch.setattr("tang_attest.store.database.authentic.time.monotonic", lambda: now)
    for _ in range(5):
        await store.rounds.list_watched()
    now += 59
    await store.rounds.list_watched()
    assert (store.tampered()["policy"], caplog.text.count("Row 'policy' of table policy")) == (6, 1)
    now += 2
    await store.rounds.list_watched()
    assert (store.tampered()["policy"], caplog.text.count("Row 'policy' of table policy")) == (7, 2)


# --- tables without seals ----------------------------------------------------------------------------------------

#: Contents that no program of ours writes into an entry; those of SQLite go past its types.
DAMAGED = [
    "details = 'x'",
    "details = '[]'",
    "details = '7'",
    "details = 'null'",
    f"details = '{'[' * 100_000}'",
]
DAMAGED_IN_SQLITE = [
    "at = 'never'",
    f"at = {1 << 62}",
    "code = X'00'",
    "device = X'FF'",
    "device = CAST(X'FF' AS TEXT)",
    "details = CAST(X'7B22FF223A317D' AS TEXT)",
]


async def test_entries_of_the_audit_record_that_cannot_be_read(
    store: SqlStore, intruder: Intruder, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Those before and after one are listed and make messages; it is logged and counted."""
    for number in range(5):
        await store.audit.append(entry(f"event {number}"))
    numbers = [number for number, _ in await store.audit.list_audit()]
    expected = numbers[:2] + numbers[3:]
    form = authentic.PlainForm(tables.audit)
    for damage in [*DAMAGED, *(DAMAGED_IN_SQLITE if url.startswith("sqlite") else ())]:
        whole = await store._database.read(
            lambda connection: connection.execute(
                sa.select(*form.raw).where(tables.audit.c.id == numbers[2])
            ).one()
        )
        counted = store.tampered()["audit"]
        intruder.do(f"UPDATE audit SET {damage} WHERE id = {numbers[2]}")  # noqa: S608 - that is the point
        assert [number for number, _ in await store.audit.list_audit()] == expected, damage
        assert [number for number, _ in await store.audit.list_audit(limit=4)] == expected, "a page is full"
        if not damage.startswith("at"):
            found = await store.notices.list_notable(0, numbers[0], NOW - HOUR, 4)
            assert [number for number, _ in found] == expected[::-1], damage
        assert store.tampered()["audit"] >= counted + 2
        intruder.update("audit", ("id",), {"id": numbers[2]}, dict(zip(form.names, whole, strict=True)))
    assert f"Row '{numbers[2]}' of table audit was not written by this server." in caplog.text
    assert len(await store.audit.list_audit()) == 5


async def test_many_entries_that_cannot_be_read(store: SqlStore, intruder: Intruder) -> None:
    """A page has as many entries as it may, however many are left out on its way."""
    for number in range(400):
        await store.audit.append(entry(f"event {number}"))
    numbers = [number for number, _ in await store.audit.list_audit(limit=1000)]
    intruder.do(
        f"UPDATE audit SET details = 'x' WHERE id NOT IN ({numbers[0]}, {numbers[-2]}, {numbers[-1]})"  # noqa: S608
    )
    assert [number for number, _ in await store.audit.list_audit(limit=2)] == [numbers[0], numbers[-2]]
    assert [number for number, _ in await store.audit.list_audit(limit=9)] == [numbers[0], *numbers[-2:]]


async def test_a_round_of_the_past_that_cannot_be_read(store: SqlStore, intruder: Intruder) -> None:
    """A machine's history has its other rounds."""
    await fill(store)
    await store.rounds.record_round(ended(1, "capped"))
    for damage in ("outcome = 'x'", "details = 'x'", "details = '[]'"):
        intruder.do(f"UPDATE verification SET {damage} WHERE code = 'pcr-mismatch'")  # noqa: S608 - that is the point
        assert [past.code for past in await store.rounds.list_rounds("pi-b")] == ["capped"]
    assert store.tampered()["verification"] == 3


def group(key: str) -> NoticeGroup:
    return NoticeGroup(
        key,
        NoticeKind.RECORD,
        "It is.",
        "Act.",
        NOW,
        known_until=NOW + HOUR,
        due_at=NOW,
        members={"a": ("a", NOW.isoformat())},
    )


async def keep(store: SqlStore, *keys: str) -> None:
    def work(book: NoticeBook) -> None:
        book.move_cursor(1)
        for key in keys:
            book.keep(group(key))

    await store.notices.update_notices(work)


DAMAGED_GROUPS = (
    "body = 'x'",
    "body = '{}'",
    "kind = 'x'",
    """body = replace(body, '"sentence":"It is."', '"sentence":7')""",
    """body = replace(body, '"step":0', '"step":"x"')""",
    """body = replace(body, '"step":0', '"step":-1')""",
    """body = replace(body, '["a",', '[7,')""",
    """body = replace(body, '+00:00', '')""",
)


async def test_a_group_of_events_that_cannot_be_read(store: SqlStore, intruder: Intruder) -> None:
    """It is removed, once logged and counted; the other groups have their messages, and its key can be used again."""
    for damage in DAMAGED_GROUPS:
        await keep(store, "one", "two")
        counted = store.tampered()["notice_group"]
        intruder.do(f"UPDATE notice_group SET {damage} WHERE key = 'one'")  # noqa: S608 - that is the point
        assert await store.notices.update_notices(lambda book: book.group("one")) is None, damage
        due = await store.notices.update_notices(lambda book: [found.key for found in book.due(NOW)])
        assert due == ["two"], damage
        assert store.tampered()["notice_group"] == counted + 2
    await keep(store, "one")
    assert await store.notices.update_notices(lambda book: book.group("one")) == group("one")


async def test_messages_that_cannot_be_read(store: SqlStore, intruder: Intruder) -> None:
    """They are removed, and the next one goes to the receiver."""
    await keep(store)
    await store.notices.update_notices(
        lambda book: [book.send("hub", {"id": n}, NOW, 9) for n in range(1, 5)]
    )
    for number, damage in enumerate(("'x'", "'[]'", "'null'"), start=1):
        intruder.do(f"UPDATE delivery SET message = {damage} WHERE id = {number}")  # noqa: S608 - that is the point
    claimed = await store.notices.claim_delivery("hub", NOW, NOW + HOUR)
    assert claimed is not None
    assert claimed.message == {"id": 4}
    assert store.tampered()["delivery"] == 3


async def test_a_cursor_that_cannot_be_read(store: SqlStore, intruder: Intruder, url: str) -> None:
    """Notifications begin anew with the entries from now on."""
    await keep(store)
    assert await store.notices.notice_cursor() == 1
    damage = "audit_id = 'x'" if url.startswith("sqlite") else f"checked_at = {(1 << 63) - 1}"
    intruder.do(f"UPDATE notice_cursor SET {damage}")  # noqa: S608 - that is the point
    assert await store.notices.notice_cursor() is None
    assert await store.notices.update_notices(lambda book: (book.cursor(), book.checked_at())) == (None, None)
    await keep(store)
    intruder.do("UPDATE notice_cursor SET checked_at = NULL")
    assert await store.notices.notice_cursor() == 1
    assert store.tampered()["notice_cursor"] == 3


async def test_every_table_is_counted_from_the_start(store: SqlStore) -> None:
    """A series that begins at 0 is one that can be seen to grow."""
    assert store.tampered() == dict.fromkeys(tables.metadata.tables, 0)


async def test_one_of_many_reads() -> None:
    """Only a row that is not ours is left out: a database that is away is an error."""

    async def read(code: str) -> int:
        raise Unavailable(code, "x")

    assert await if_ours(read("registry-tampered")) is None
    with pytest.raises(TangAttestError):
        await if_ours(read("unavailable"))


def test_pages_are_full() -> None:
    """As long as there are rows; none is read twice."""
    rows = list(range(1, 1000))
    asked: list[int] = []

    def read(last: int | None, count: int) -> list[int]:
        asked.append(count)
        begin = 0 if last is None else rows.index(last) + 1
        return rows[begin : begin + count]

    assert full_page(read, lambda found: [n for n in found if n % 50 == 0], 5) == [50, 100, 150, 200, 250]
    assert full_page(read, lambda found: [n for n in found if n % 500 == 0], 5) == [500]
    assert full_page(read, list, 3) == [1, 2, 3]
    assert asked[-1] == 3
    assert full_page(read, lambda found: [], 3) == []
