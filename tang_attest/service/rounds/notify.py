"""Notification of hooks and webhooks about changes of a device's verification.

The store keeps a notification in the transaction of the change, so a change by one process may be delivered
by another, and by one only.  It is taken out before delivery: it is delivered once or, when the server dies
then, never.  The device's history has the change in any case.
"""

from __future__ import annotations

import asyncio
import json
from typing import Final, Protocol

from tang_attest.errors import Unavailable
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.rounds import Notification
from tang_attest.ports.store import HasAudit, HasRounds
from tang_attest.ports.world import Clock, Courier
from tang_attest.service.rounds.verify import SERVER

#: Notifications that are delivered at the same time.
BATCH: Final = 16
TRIES: Final = 3
#: Seconds before the second try; twice that before the third.
PAUSE_S: Final = 2.0


class NotifyingStore(HasAudit, HasRounds, Protocol):
    """The roles of the store that notifications needs."""


class Notify:
    """Delivers notifications; call :meth:`deliver` about once a second."""

    def __init__(
        self, store: NotifyingStore, courier: Courier, clock: Clock, pause_s: float = PAUSE_S
    ) -> None:
        self._store, self._courier, self._clock, self._pause_s = store, courier, clock, pause_s

    async def deliver(self) -> int:
        """Deliver the waiting notifications, at most :data:`BATCH`; return their number.  Outcomes go to the
        audit record.
        """
        waiting = await self._store.rounds.take_notifications(BATCH)
        await asyncio.gather(*(self._tell(notification) for notification in waiting))
        return len(waiting)

    async def _tell(self, notification: Notification) -> None:
        body = json.dumps(notification.body, separators=(",", ":"), sort_keys=True).encode()
        problem: Unavailable | None = None
        for attempt in range(TRIES):
            await asyncio.sleep(self._pause_s * attempt)
            try:
                await self._courier.deliver(notification.action, body)
            except Unavailable as error:
                problem = error
            else:
                problem = None
                break
        await self._store.audit.append(self._entry(notification, problem))

    def _entry(self, notification: Notification, problem: Unavailable | None) -> AuditEntry:
        details: dict[str, object] = {
            "action": notification.action,
            "outcome": notification.body.get("outcome"),
        }
        if problem is not None:
            details["problem"] = problem.sentence
        return AuditEntry(
            self._clock.now(),
            "notify",
            SERVER,
            "done" if problem is None else "refused",
            "ok" if problem is None else problem.code,
            device=str(notification.body.get("device")),
            details=details,
        )
