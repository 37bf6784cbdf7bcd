"""Check of the audit record against its seals, from its first row to its last.

It is read some rows at a time, in many short transactions: sealed rows do not change any more.  Each seal is
checked with the one before it as found, so one change spoils one seal, and the others still vouch for their
rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from typing import Final

from tang_attest.errors import Reason
from tang_attest.ports.audit import Archive, AuditStore
from tang_attest.ports.world import Clock
from tang_attest.protocol.audit_chain import Row, Seal, SealCheck
from tang_attest.protocol.passkeys.record import SignatureCheck

#: Seals, and rows, of one query.
_PAGE: Final = 1000
#: An id above every row's.
_LAST: Final = 2**63 - 1
#: Findings that are named one by one.
NAMED: Final = 10
#: The age at which an unsealed row is a finding.
GRACE: Final = timedelta(minutes=1)


@dataclass(slots=True)
class AuditCheck:
    """Result of a check: ``rows`` under ``seals`` seals, ``bad`` findings about them; ``unsealed`` rows came
    later.

    ``signed`` entries have signatures of console operators that hold.  ``reasons`` are the first findings, ``first`` and ``head`` the ends of the chain, ``oldest`` the time of
    the oldest row that is not sealed, ``archives`` the stretches before the chain, which are in files.
    """

    seals: int = 0
    rows: int = 0
    bad: int = 0
    first: Seal | None = None
    head: Seal | None = None
    _: KW_ONLY
    unsealed: int = 0
    oldest: datetime | None = None
    signed: int = 0
    reasons: tuple[Reason, ...] = ()
    archives: tuple[Archive, ...] = ()

    @property
    def archived(self) -> Seal | None:
        """The seal after which the chain goes on."""
        return self.archives[-1].head if self.archives else None

    @property
    def end(self) -> Seal | None:
        """The newest seal that was met, archived or not."""
        return self.head or self.archived

    def add(self, reason: Reason) -> None:
        """Add a finding."""
        self.bad += 1
        if self.bad <= NAMED:
            self.reasons += (reason,)


async def check_audit(
    store: AuditStore,
    key: bytes,
    clock: Clock,
    progress: Callable[[int, int], None],
    expected: tuple[int, bytes] | None = None,
    *,
    signatures: Callable[[], SignatureCheck],
) -> AuditCheck:
    """Check the whole chain, and that it has the seal *expected*: a number and a hash that were noted.

    *signatures* makes the check of what operators signed, whose findings are ``act-forged``, ``act-reused`` and
    ``registry-tampered`` (a passkey that no entry registers); rows that are not sealed yet are looked at as well.
    *progress* is called with the number of rows done.  Findings are ``audit-changed``, ``audit-cut``,
    ``audit-archived`` and ``audit-unsealed``.  Raises errors of the store; ``audit-changed`` for a row that cannot be
    a seal.  The part in files is not read here.
    """
    while True:
        check = await _check_audit(store, key, clock, progress, expected, signed=signatures())
        if not check.bad or tuple(await store.list_archives()) == check.archives:
            return check
        # A part of it was archived meanwhile, and seemed to be missing.


async def _check_audit(
    store: AuditStore,
    key: bytes,
    clock: Clock,
    progress: Callable[[int, int], None],
    expected: tuple[int, bytes] | None,
    *,
    signed: SignatureCheck,
) -> AuditCheck:
    check = AuditCheck(archives=tuple(await store.list_archives()))
    noted = next((each.head for each in check.archives if expected and each.head.seq == expected[0]), None)
    if check.archived is not None:
        await _check_nothing_before(check, store, check.archived)
    while seals := await store.list_seals(check.end.seq if check.end else 0, _PAGE):
        done = check.end.last_id if check.end else None
        rows = _Rows(store, done, max(seal.last_id for seal in seals))
        for seal in seals:
            if expected is not None and seal.seq == expected[0]:
                noted = seal
            await _check_seal(check, key, rows, seal, signed)
            progress(check.rows, 0)
    await _check_unsealed(check, store, signed)
    unread = [each.head.sealed_at for each in check.archives if each.head.head not in signed.read]
    for reason in signed.finish(max(unread, default=None)):
        check.add(reason)
    check.signed = signed.good
    check.unsealed, check.oldest = await store.unsealed_audit(check.end.last_id if check.end else None)
    if check.oldest is not None and clock.now() - check.oldest > GRACE:
        check.add(_unsealed(check.unsealed, check.oldest))
    if expected is not None and (noted is None or noted.hash != expected[1]):
        within = noted is None and check.archived is not None and expected[0] < check.archived.seq
        check.add(_archived(expected[0], check.archives) if within else _cut(expected[0], noted, check.head))
    return check


async def _check_nothing_before(check: AuditCheck, store: AuditStore, archived: Seal) -> None:
    """An archived row is in its file, and nowhere else."""
    if rows := await store.list_audit_rows(None, archived.last_id, 1):
        sentence = f"Rows up to {archived.last_id} are archived, and row {rows[0][0]} is there."
        check.add(Reason("audit-changed", sentence, (("first", rows[0][0]), ("last", archived.last_id))))


async def _check_unsealed(check: AuditCheck, store: AuditStore, signed: SignatureCheck) -> None:
    """Look at the signatures of rows that are not sealed yet."""
    after = check.end.last_id if check.end else None
    while page := await store.list_audit_rows(after, _LAST, _PAGE):
        for row in page:
            _add(check, signed.look(row))
        after = page[-1][0]


def _add(check: AuditCheck, reason: Reason | None) -> None:
    if reason is not None:
        check.add(reason)


async def _check_seal(check: AuditCheck, key: bytes, rows: _Rows, seal: Seal, signed: SignatureCheck) -> None:
    """Check a seal against the rows from the seal before it to its own last row."""
    before = check.end
    check.head = seal
    check.first = check.first or seal
    check.seals += 1
    number = before.seq + 1 if before else 1
    if seal.seq != number:
        check.add(_missing(number, before, seal))
        return
    sealed = SealCheck(key, before, seal)
    async for row in rows.between(before.last_id if before else None, seal.last_id):
        sealed.add(row)
        _add(check, signed.look(row))
    check.rows += sealed.rows
    if not sealed.holds():
        check.add(_changed(seal, sealed.rows))


class _Rows:
    """Rows by id, read ahead up to the id *end*: every row up to there was visible when its seal was made."""

    def __init__(self, store: AuditStore, after: int | None, end: int) -> None:
        self._store, self._end = store, end
        self._given_to = self._read_to = after
        self._page: deque[Row] = deque()

    async def between(self, after: int | None, up_to: int) -> AsyncIterator[Row]:
        """Yield the rows with an id above *after* and not above *up_to*."""
        if after != self._given_to:
            self._read_to = after
            self._page.clear()
        while True:
            while self._page and self._page[0][0] <= up_to:
                yield self._page.popleft()
            if self._page:
                break
            self._page.extend(await self._store.list_audit_rows(self._read_to, self._end, _PAGE))
            if not self._page:
                break
            self._read_to = self._page[-1][0]
        self._given_to = up_to


def _changed(seal: Seal, found: int) -> Reason:
    how = (
        "one was changed, or the seal"
        if found == seal.rows
        else f"{seal.rows} were sealed, {found} are there"
    )
    return Reason(
        "audit-changed",
        f"Rows {seal.first_id} to {seal.last_id} are not what seal {seal.seq} was made over,"
        f" {_when(seal.sealed_at)}: {how}.",
        (
            ("seal", seal.seq),
            ("first", seal.first_id),
            ("last", seal.last_id),
            ("sealed_at", seal.sealed_at.isoformat()),
            ("rows_sealed", seal.rows),
            ("rows_found", found),
        ),
    )


def _missing(number: int, before: Seal | None, seal: Seal) -> Reason:
    which = f"Seal {number} is" if number + 1 == seal.seq else f"Seals {number} to {seal.seq - 1} are"
    first = before.last_id + 1 if before else None
    rows = f"rows {first} to {seal.last_id}" if first is not None else f"rows up to {seal.last_id}"
    return Reason(
        "audit-changed",
        f"{which} missing, made before {_when(seal.sealed_at)}: {rows} cannot be checked.",
        (
            ("seal", number),
            ("first", first),
            ("last", seal.last_id),
            ("sealed_at", seal.sealed_at.isoformat()),
        ),
    )


def _unsealed(count: int, oldest: datetime) -> Reason:
    return Reason(
        "audit-unsealed",
        f"The newest {count} rows are not sealed, the oldest of them since {_when(oldest)}.",
        (("rows", count), ("oldest", oldest.isoformat())),
    )


def _archived(number: int, archives: Sequence[Archive]) -> Reason:
    file = next((each.file for each in archives if number <= each.head.seq), "")
    return Reason(
        "audit-archived", f"Seal {number} is in the archive '{file}'.", (("seal", number), ("file", file))
    )


def _cut(number: int, noted: Seal | None, head: Seal | None) -> Reason:
    if noted is not None:
        sentence = f"Seal {number} has another hash than was noted: the chain was made anew."
    else:
        end = f"ends at seal {head.seq}, made at {_when(head.sealed_at)}" if head else "has no seal"
        sentence = f"Seal {number} was noted and is not there: the chain {end}."
    return Reason("audit-cut", sentence, (("seal", number), ("head", head.head if head else None)))


def _when(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
