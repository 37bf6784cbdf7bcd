"""Sealing and checking on each database: several writers, several sealers, and somebody who changes rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
import sqlalchemy as sa

from tang_attest.errors import Conflict, Refused, TangAttestError
from tang_attest.protocol.audit_chain import make_seal
from tang_attest.protocol.passkeys.record import SignatureCheck
from tang_attest.service.audit import chain as sealing
from tang_attest.service.audit import check as audit_check
from tang_attest.service.audit.chain import AuditSealer
from tang_attest.service.audit.check import AuditCheck, check_audit
from tang_attest.store import SqlStore
from tang_attest.store.database.engine import Work
from tang_attest.store.records import audit_chain, audit_log
from tests.fakes import FakeClock
from tests.store.conftest import CHAIN_KEY, Opener, Stall
from tests.store.samples import NOW, entry


@pytest_asyncio.fixture
async def sealed(store: SqlStore, sealer: AuditSealer, clock: FakeClock) -> AsyncIterator[SqlStore]:
    """Twelve rows under four seals; the key may not be used for anything else."""
    for number in range(4):
        await write(store, 3, number)
        assert await sealer.round() is not None
        clock.advance(seconds=1)
    yield store


async def write(store: SqlStore, count: int, number: int = 0) -> None:
    for row in range(count):
        await store.audit.append(
            entry(f"event {number} {row}", at=NOW, details={"ä": [1.5, None]}, device="pi-b")
        )


async def check(store: SqlStore, clock: FakeClock, expected: tuple[int, bytes] | None = None) -> AuditCheck:
    return await check_audit(
        store.audit,
        CHAIN_KEY,
        clock,
        lambda _done, _total: None,
        expected,
        signatures=lambda: SignatureCheck({}),
    )


async def sql(store: SqlStore, *statements: str) -> None:
    def work(connection: sa.Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    await store._database.write(work)


def codes(found: AuditCheck) -> list[str]:
    return [reason.code for reason in found.reasons]


async def test_an_empty_record(store: SqlStore, sealer: AuditSealer, clock: FakeClock) -> None:
    """Nothing to seal, and nothing wrong."""
    assert await sealer.round() is None
    assert await check(store, clock) == AuditCheck()


async def test_rows_are_sealed_once(sealed: SqlStore, sealer: AuditSealer, clock: FakeClock) -> None:
    """Each in the seal of its round; a round without new rows makes none."""
    assert await sealer.round() is None
    found = await check(sealed, clock)
    assert (found.rows, found.seals, found.bad, found.unsealed) == (12, 4, 0, 0)
    assert found.first is not None
    assert found.head == await sealed.audit.newest_seal()
    assert (found.first.first_id, found.first.last_id, found.first.rows) == (1, 3, 3)
    assert found.first.sealed_at == NOW


async def test_a_backlog_is_sealed_bit_by_bit(
    store: SqlStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round does a bounded piece of it, and so does the check with each query."""
    monkeypatch.setattr(sealing, "ROWS", 3)
    monkeypatch.setattr(sealing, "SEALS", 2)
    monkeypatch.setattr(audit_check, "_PAGE", 2)
    await write(store, 14)
    sealer = AuditSealer(store.audit, CHAIN_KEY, clock)
    made = []
    for _ in range(4):
        made.append(seal.seq if (seal := await sealer.round()) else None)
        clock.advance(seconds=1)
    assert made == [2, 4, 5, None]
    found = await check(store, clock)
    assert (found.rows, found.seals, found.bad) == (14, 5, 0)
    await sql(store, "UPDATE audit SET actor = 'operator:eve' WHERE id = 8")
    assert codes(await check(store, clock)) == ["audit-changed"]


# --- somebody changes it ----------------------------------------------------------------------------------------

_COPY = (
    "INSERT INTO audit (id, at, event, actor, verdict, code, details)"
    " SELECT {}, at, event, actor, verdict, code, details FROM audit WHERE id = 12"
)


@pytest.mark.parametrize(
    ("statements", "seals"),
    [
        (["UPDATE audit SET actor = 'operator:eve' WHERE id = 5"], [2]),
        (["UPDATE audit SET at = at + 1 WHERE id = 1"], [1]),
        (["UPDATE audit SET device = NULL WHERE id = 12"], [4]),
        (["UPDATE audit SET kid = '' WHERE id = 7"], [3]),
        (["UPDATE audit SET details = details || ' ' WHERE id = 7"], [3]),
        (["UPDATE audit SET id = 100 WHERE id = 5", "UPDATE audit SET id = 5 WHERE id = 6"], [2]),
        (["DELETE FROM audit WHERE id = 1"], [1]),
        (["DELETE FROM audit WHERE id = 5"], [2]),
        (["DELETE FROM audit WHERE id = 12"], [4]),
        (["DELETE FROM audit WHERE id BETWEEN 3 AND 7"], [1, 2, 3]),
        (["DELETE FROM audit"], [1, 2, 3, 4]),
        ([_COPY.format(0)], [1]),
        ([_COPY.format(-5)], [1]),
        (["DELETE FROM audit WHERE id = 4", _COPY.format(4)], [2]),
        (["UPDATE audit_seal SET hash = (SELECT hash FROM audit_seal WHERE seq = 1) WHERE seq = 3"], [3, 4]),
        (["UPDATE audit_seal SET sealed_at = sealed_at - 1 WHERE seq = 2"], [2]),
        (["UPDATE audit_seal SET last_id = 8 WHERE seq = 2"], [2, 3]),
        (["UPDATE audit_seal SET rows = 2 WHERE seq = 2", "DELETE FROM audit WHERE id = 5"], [2]),
        (["DELETE FROM audit_seal WHERE seq = 1"], [1]),
        (["DELETE FROM audit_seal WHERE seq = 3"], [3]),
        (["DELETE FROM audit_seal WHERE seq IN (2, 3)", "DELETE FROM audit WHERE id BETWEEN 4 AND 9"], [2]),
        (["UPDATE audit_seal SET seq = 5 WHERE seq = 4"], [4]),
    ],
)
async def test_a_change_is_found(
    sealed: SqlStore, clock: FakeClock, statements: list[str], seals: list[int]
) -> None:
    """And the seals are named, so that a person knows where to look."""
    await sql(sealed, *statements)
    found = await check(sealed, clock)
    assert set(codes(found)) == {"audit-changed"}
    assert [dict(reason.data)["seal"] for reason in found.reasons] == seals
    assert found.bad == len(seals)


async def test_many_changes_are_counted(
    store: SqlStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones are named."""
    monkeypatch.setattr(sealing, "ROWS", 1)
    monkeypatch.setattr(sealing, "SEALS", 30)
    await write(store, 30)
    await AuditSealer(store.audit, CHAIN_KEY, clock).round()
    await sql(store, "UPDATE audit SET code = 'x'")
    found = await check(store, clock)
    assert (found.bad, len(found.reasons)) == (30, audit_check.NAMED)


async def test_a_change_of_what_is_not_sealed_yet_is_not_found(sealed: SqlStore, clock: FakeClock) -> None:
    """docs/threat-model.md says so; until then it is said how many rows that are."""
    await write(sealed, 2)
    await sql(sealed, "UPDATE audit SET code = 'x' WHERE id = 13")
    found = await check(sealed, clock)
    assert (found.bad, found.unsealed, found.oldest) == (0, 2, NOW)


async def test_rows_that_nobody_seals(sealed: SqlStore, clock: FakeClock) -> None:
    """Or seals that somebody took away."""
    await sql(sealed, "DELETE FROM audit_seal")
    clock.advance(minutes=2)
    found = await check(sealed, clock)
    assert (codes(found), found.unsealed) == (["audit-unsealed"], 12)


async def test_a_chain_that_was_cut(sealed: SqlStore, clock: FakeClock) -> None:
    """Whole seals and their rows, from the end: a head that was noted finds it, and nothing else does."""
    head = await sealed.audit.newest_seal()
    assert head is not None
    assert (await check(sealed, clock, (head.seq, head.hash))).bad == 0
    [earlier] = await sealed.audit.list_seals(1, 1)
    assert (await check(sealed, clock, (earlier.seq, earlier.hash))).bad == 0
    await sql(sealed, "DELETE FROM audit_seal WHERE seq >= 3", "DELETE FROM audit WHERE id >= 7")
    assert (await check(sealed, clock)).bad == 0
    assert codes(await check(sealed, clock, (head.seq, head.hash))) == ["audit-cut"]
    assert (await check(sealed, clock, (earlier.seq, earlier.hash))).bad == 0


async def test_a_chain_that_was_made_anew(sealed: SqlStore, clock: FakeClock) -> None:
    """By somebody who has the secret."""
    head = await sealed.audit.newest_seal()
    assert head is not None
    await sql(sealed, "DELETE FROM audit_seal", "UPDATE audit SET actor = 'operator:eve'")
    anew = AuditSealer(sealed.audit, CHAIN_KEY, clock)
    await anew.round()
    assert (await check(sealed, clock)).bad == 0
    assert codes(await check(sealed, clock, (head.seq, head.hash))) == ["audit-cut"]
    assert codes(await check(sealed, clock, (1, head.hash))) == ["audit-cut"]


async def test_another_key(sealed: SqlStore, clock: FakeClock) -> None:
    """Every seal is foreign then; nobody makes one without the key."""
    found = await check_audit(
        sealed.audit, bytes(32), clock, lambda _done, _total: None, signatures=lambda: SignatureCheck({})
    )
    assert found.bad == 4
    newest = await sealed.audit.newest_seal()
    await write(sealed, 1)
    rows = await sealed.audit.list_audit_rows(12, 13, 10)
    assert await sealed.audit.add_seal(make_seal(bytes(32), newest, rows, NOW))
    assert [dict(reason.data)["seal"] for reason in (await check(sealed, clock)).reasons] == [5]


# --- the server runs on meanwhile -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_seal",
        "DELETE FROM audit_seal WHERE seq = 4",
        "UPDATE audit_seal SET sealed_at = 1 WHERE seq = 4",
    ],
)
async def test_a_sealer_does_not_seal_changed_rows_again(
    sealed: SqlStore, sealer: AuditSealer, clock: FakeClock, statement: str
) -> None:
    """It knows the head that it made; it says so once a minute."""
    await sql(sealed, statement, "UPDATE audit SET actor = 'operator:eve' WHERE id = 12")
    before = await sealed.audit.newest_seal()
    told = []
    for _ in range(62):
        try:
            assert await sealer.round() is None
        except Conflict as lost:
            told.append(lost.code)
        clock.advance(seconds=1)
    assert told == ["audit-cut"] * 2
    assert await sealed.audit.newest_seal() == before


async def test_a_head_that_another_sealer_replaced(
    sealed: SqlStore, sealer: AuditSealer, clock: FakeClock
) -> None:
    """A longer chain is no excuse."""
    await sql(sealed, "DELETE FROM audit_seal WHERE seq = 4")
    foreign = AuditSealer(sealed.audit, CHAIN_KEY, clock)
    await foreign.round()
    await write(sealed, 1)
    clock.advance(seconds=1)
    assert (await foreign.round()).seq == 5  # type: ignore[union-attr]
    with pytest.raises(Conflict, match="Seal 4:"):
        await sealer.round()


async def test_two_sealers(store: SqlStore, open_another: Opener, clock: FakeClock) -> None:
    """At the same moment: one of them seals, the other goes on from there; whoever comes a moment later leaves it."""
    stores = [store, await open_another()]
    sealers = [AuditSealer(each.audit, CHAIN_KEY, clock) for each in stores]
    for number in range(8):
        await write(store, 2, number)
        made = await asyncio.gather(*(sealer.round() for sealer in sealers))
        assert sum(seal is not None for seal in made) >= 1
        clock.advance(seconds=1)
    found = await check(store, clock)
    assert (found.rows, found.bad, found.unsealed) == (16, 0, 0)
    await write(store, 1)
    assert await sealers[0].round() is not None
    clock.advance(seconds=0.5)
    await write(store, 1)
    assert await sealers[1].round() is None
    assert (await sealers[1].round(last=True)) is not None


async def test_a_seal_lost_to_another(
    sealed: SqlStore, open_another: Opener, clock: FakeClock, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both read the same rows; the number is given once."""
    await write(sealed, 3)
    monkeypatch.setattr(audit_chain, "rows", stall.around(audit_chain.rows))
    slow = asyncio.create_task(AuditSealer(sealed.audit, CHAIN_KEY, clock).round())
    await stall.entered()
    other = AuditSealer((await open_another()).audit, CHAIN_KEY, clock)
    assert (await other.round()).seq == 5  # type: ignore[union-attr]
    stall.go()
    assert await slow is None
    assert (await check(sealed, clock)).bad == 0


async def test_the_last_round_continues_after_an_interrupted_one(
    store: SqlStore, clock: FakeClock, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops seals every row, even if the seal of a round it canceled is committed meanwhile."""
    monkeypatch.setattr(sealing, "ROWS", 3)
    await write(store, 8)
    sealer = AuditSealer(store.audit, CHAIN_KEY, clock)
    add_seal = audit_chain.add_seal
    with monkeypatch.context() as patch:
        patch.setattr(audit_chain, "add_seal", stall.around(add_seal))
        task = asyncio.create_task(sealer.round())
        await stall.entered()
    task.cancel()
    last = asyncio.create_task(sealer.round(last=True))
    await asyncio.sleep(0.2)  # it reads the chain without the seal that is on its way
    stall.go()
    assert await last is not None
    with pytest.raises(asyncio.CancelledError):
        await task
    found = await check(store, clock)
    assert (found.rows, found.seals, found.bad, found.unsealed) == (8, 3, 0, 0)


async def test_the_last_round_seals_a_backlog_of_any_size(
    store: SqlStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that stops leaves no row unsealed, even if the servers before it never reached a round."""
    monkeypatch.setattr(sealing, "ROWS", 3)
    monkeypatch.setattr(sealing, "SEALS", 2)
    await write(store, 14)
    assert (await AuditSealer(store.audit, CHAIN_KEY, clock).round(last=True)).seq == 5  # type: ignore[union-attr]
    found = await check(store, clock)
    assert (found.rows, found.seals, found.bad, found.unsealed) == (14, 5, 0, 0)


async def test_rows_that_are_committed_out_of_order(
    url: str,
    store: SqlStore,
    open_another: Opener,
    clock: FakeClock,
    stall: Stall,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A writer that drew a low id and commits late: the sealer waits for it, and nobody waits for the sealer."""
    append = audit_log.append
    monkeypatch.setattr(audit_log, "append", stall.around(append))
    slow = asyncio.create_task(store.audit.append(entry("slow", at=NOW)))
    await stall.entered()
    other = await open_another()
    fast = asyncio.create_task(other.audit.append(entry("fast", at=NOW)))
    sealer = AuditSealer((await open_another()).audit, CHAIN_KEY, clock)
    if url.startswith("postgresql"):
        await asyncio.wait_for(fast, 120)  # PostgreSQL's writers do not wait for each other
        assert [row.event for _, row in await other.audit.list_audit()] == ["fast"]
    assert await sealer.round() is None
    assert (await other.audit.unsealed_audit(None))[0] <= 1
    stall.go()
    await asyncio.gather(slow, fast)
    seal = await sealer.round()
    assert seal is not None
    assert (seal.first_id, seal.last_id, seal.rows) == (1, 2, 2)
    assert (await check(other, clock)).bad == 0


async def test_writers_and_sealers_and_a_check_at_once(
    store: SqlStore, open_another: Opener, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes that write and seal as fast as they can: nothing is sealed too early, at no moment."""
    monkeypatch.setattr(sealing, "FRESH", timedelta(0))
    stores = [store, *[await open_another() for _ in range(3)]]
    sealers = [AuditSealer(each.audit, CHAIN_KEY, clock) for each in stores]
    done = asyncio.Event()

    async def note(each: SqlStore, number: int) -> None:
        def one(row: int) -> Work[None]:
            def work(connection: sa.Connection) -> None:
                audit_log.append(connection, *[entry(f"event {row}", at=NOW)] * (row % 3 + 1))
                if connection.dialect.name == "postgresql":
                    # Between drawing an id and showing it.
                    connection.exec_driver_sql(f"SELECT pg_sleep({row % 5 * 0.01})")

            return work

        for begin in range(number, number + 60, 3):
            await asyncio.gather(*(each._database.write(one(begin + row)) for row in range(3)))

    async def seal(each: AuditSealer) -> int:
        seals = 0
        while not done.is_set():
            seals += await each.round() is not None
        return seals

    sealing_tasks = [asyncio.create_task(seal(each)) for each in sealers]
    checking = asyncio.create_task(_check_again_and_again(store, clock, done))
    await asyncio.gather(*(note(each, number) for number, each in enumerate(stores)))
    done.set()
    made = sum(await asyncio.gather(*sealing_tasks))
    await checking
    while await sealers[0].round() is not None:
        pass
    found = await check(store, clock)
    total = len(await store.audit.list_audit(limit=100_000))
    assert (found.bad, found.rows, found.unsealed) == (0, total, 0)
    assert made > 3


async def _check_again_and_again(store: SqlStore, clock: FakeClock, done: asyncio.Event) -> None:
    while not done.is_set():
        assert (await check(store, clock)).reasons == ()


async def test_a_round_that_is_interrupted(
    sealed: SqlStore, clock: FakeClock, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seal is there or it is not; the next process goes on."""
    await write(sealed, 3)
    monkeypatch.setattr(audit_chain, "rows", stall.around(audit_chain.rows))
    task = asyncio.create_task(AuditSealer(sealed.audit, CHAIN_KEY, clock).round())
    await stall.entered()
    task.cancel()
    stall.go()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await check(sealed, clock)).unsealed == 3
    assert (await AuditSealer(sealed.audit, CHAIN_KEY, clock).round()).seq == 5  # type: ignore[union-attr]
    assert (await check(sealed, clock)).bad == 0


async def test_what_cannot_be_a_seal(sealed: SqlStore, sealer: AuditSealer, clock: FakeClock) -> None:
    """A time that no calendar has: refused, by both."""
    await sql(sealed, "UPDATE audit_seal SET sealed_at = 9223372036854775807 WHERE seq = 4")
    for call in (check(sealed, clock), sealer.round()):
        with pytest.raises(Refused, match="Seal 4 of the audit record is not what a seal can be") as error:
            await call
        assert error.value.code == "audit-changed"


async def test_values_of_another_type(url: str, sealed: SqlStore, clock: FakeClock) -> None:
    """SQLite keeps whatever somebody writes; that is a change like others."""
    if url.startswith("postgresql"):
        with pytest.raises(TangAttestError):
            await sql(sealed, "UPDATE audit SET at = 'yesterday' WHERE id = 2")
        return
    await sql(
        sealed,
        "UPDATE audit SET at = 'yesterday' WHERE id = 2",
        "UPDATE audit SET details = x'00ff' WHERE id = 5",
        "UPDATE audit SET at = 1e300 WHERE id = 8",
    )
    found = await check(sealed, clock)
    assert [dict(reason.data)["seal"] for reason in found.reasons] == [1, 2, 3]
    await sql(sealed, "UPDATE audit_seal SET hash = 'text' WHERE seq = 4")
    with pytest.raises(Refused, match="Seal 4"):
        await check(sealed, clock)
