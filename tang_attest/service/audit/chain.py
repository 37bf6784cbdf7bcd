"""Sealing of the audit record: final rows that are not sealed yet get a seal, about once a second, in a
chain.

Every server and worker may seal.  The first one wins, which the number of a seal decides.

Decisions do not wait for seals: in one transaction with them they would queue, since each seal needs the one
before.
"""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta
from typing import Final

from tang_attest.errors import Conflict
from tang_attest.ports.audit import AuditStore
from tang_attest.ports.world import Clock
from tang_attest.protocol.audit_chain import Seal, make_seal

#: Rows of one seal, and seals of one round: a backlog costs this process some milliseconds at a time.  The last
#: round of a process has no such bound.
ROWS: Final = 1000
SEALS: Final = 5
#: A seal that is younger was made by another process, which goes on.
FRESH: Final = timedelta(seconds=0.9)
_TELL_AGAIN: Final = timedelta(minutes=1)


class AuditSealer:
    """Seals the audit record; call :meth:`round` about once a second.  *key* is derived with
    ``KEY_LABEL``.
    """

    def __init__(self, store: AuditStore, key: bytes, clock: Clock) -> None:
        self._store, self._key, self._clock = store, key, clock
        #: The newest seal that this process saw.  An attacker who writes to the database could otherwise
        #: remove seals, change the rows under them, and have us seal them again.
        self._head: Seal | None = None
        self._told_at: datetime | None = None

    async def round(self, *, last: bool = False) -> Seal | None:
        """Seal the rows since the last round; return the newest seal that this made.

        With *last*, seal every row that is final now, also if another sealer has just sealed, or does so
        meanwhile.  Raises errors of the store, and ``audit-cut`` while the head that this process saw is not in the chain (once a minute;
        nothing is sealed then).
        """
        now = self._clock.now()
        newest = await self._store.newest_seal()
        if not await self._goes_on(newest):
            self._tell(now)
            return None
        self._head, self._told_at = newest, None
        if newest is not None and not last and timedelta(0) <= now - newest.sealed_at < FRESH:
            return None
        final = await self._store.final_audit_id(self._last_id)
        if final is None:
            return None
        made = None
        for _ in itertools.count() if last else range(SEALS):
            if not (rows := await self._store.list_audit_rows(self._last_id, final, ROWS)):
                break
            seal = make_seal(self._key, self._head, rows, now)
            if await self._store.add_seal(seal):
                self._head = made = seal
            elif not last or not await self._follow():
                break
        return made

    @property
    def _last_id(self) -> int | None:
        """Id of the newest row under the head; ``None`` without one."""
        return self._head.last_id if self._head else None

    async def _follow(self) -> bool:
        """Continue after the seal of another sealer, or of this one's interrupted round; false if there is
        none.

        The last round has no successor to leave its rows to.
        """
        newest = await self._store.newest_seal()
        if newest == self._head or not await self._goes_on(newest):
            return False
        self._head = newest
        return True

    async def _goes_on(self, newest: Seal | None) -> bool:
        """Return True when the chain has the head that this process saw."""
        if self._head is None or newest == self._head:
            return True
        if newest is None or newest.seq <= self._head.seq:
            return False
        archives = await self._store.list_archives()
        if (
            archives and self._head.seq <= archives[-1].head.seq
        ):  # it was archived meanwhile, after it was checked
            return True
        return list(await self._store.list_seals(self._head.seq - 1, 1)) == [self._head]

    def _tell(self, now: datetime) -> None:
        told = self._told_at is not None and timedelta(0) <= now - self._told_at < _TELL_AGAIN
        if self._head is None or told:
            return
        self._told_at = now
        raise Conflict(
            "audit-cut",
            f"Seal {self._head.head} of the audit record is gone; nothing is sealed until this process restarts.",
        )
