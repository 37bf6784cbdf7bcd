"""Deliver messages: each receiver by itself, so that one that hangs or is away delays no other.

A message that a receiver did not take is tried again, later and later, and given up after :data:`TRIES`.  Outcomes go to
the audit record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Final, Protocol

import structlog

from tang_attest.errors import TangAttestError, Unavailable
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.notices import Delivery
from tang_attest.ports.store import HasAudit, HasNotices
from tang_attest.ports.world import Clock

#: Tries of one message: over about four hours.
TRIES: Final = 12
_PAUSE: Final = timedelta(seconds=10)
_LONGEST: Final = timedelta(hours=1)
#: Time for which a message is this process's; longer than any receiver may take.
LEASE: Final = timedelta(minutes=2)
#: The longest time for one delivery, in seconds.
LIMIT_S: Final = 60.0

_log = structlog.get_logger("notify")


class Receiver(Protocol):
    """One receiver of messages."""

    async def send(self, message: Mapping[str, object]) -> None:
        """Deliver *message*.  Raises :class:`Unavailable` ``notify-failed`` with the reason."""


class DeliveringStore(HasAudit, HasNotices, Protocol):
    """The roles of the store that deliveries need."""


class Deliveries:
    """Delivers to *receivers*, by name; call :meth:`round` about once a second, and :meth:`close` at the end."""

    def __init__(self, store: DeliveringStore, clock: Clock, receivers: Mapping[str, Receiver]) -> None:
        self._store, self._clock, self._receivers = store, clock, receivers
        self._busy: dict[str, asyncio.Task[None]] = {}

    async def round(self) -> None:
        """Begin to deliver to each receiver that has messages waiting, and to which none is being delivered."""
        for name in await self._store.notices.list_due_receivers(self._clock.now()):
            if name in self._receivers and name not in self._busy:
                task = asyncio.create_task(self._deliver_all(name, self._receivers[name]))
                self._busy[name] = task
                task.add_done_callback(lambda _, name=name: self._busy.pop(name, None))  # type: ignore[misc]

    async def settle(self) -> None:
        """Wait until nothing is being delivered."""
        while self._busy:
            await asyncio.gather(*self._busy.values(), return_exceptions=True)

    async def close(self) -> None:
        """End deliveries; what was not delivered is tried again by another process, or after a restart."""
        for task in list(self._busy.values()):
            task.cancel()
        await self.settle()

    async def _deliver_all(self, name: str, receiver: Receiver) -> None:
        try:
            while await self._deliver_one(name, receiver):
                pass
        except TangAttestError as error:
            _log.warning("deliveries", receiver=name, code=error.code, sentence=error.sentence)
        except Exception:  # noqa: BLE001 - a defect must not end other deliveries; the next line says what it was
            _log.exception("defect", receiver=name)

    async def _deliver_one(self, name: str, receiver: Receiver) -> bool:
        """Deliver the oldest message; return False when there is none, or the receiver did not take it."""
        now = self._clock.now()
        delivery = await self._store.notices.claim_delivery(name, now, now + LEASE)
        if delivery is None:
            return False
        problem = await attempt(receiver, delivery.message)
        if problem is None:
            await self._store.notices.finish_delivery(delivery.id, self._entry(delivery, None))
            return True
        tries = delivery.tries + 1
        _log.warning("not-delivered", receiver=name, tries=tries, sentence=problem.sentence)
        if tries >= TRIES:
            await self._store.notices.finish_delivery(delivery.id, self._entry(delivery, problem))
            return True
        until = self._clock.now() + min(_PAUSE * 2 ** (tries - 1), _LONGEST)
        await self._store.notices.postpone_delivery(delivery.id, tries, until)
        return False

    def _entry(self, delivery: Delivery, problem: Unavailable | None) -> AuditEntry:
        details: dict[str, object] = {
            "receiver": delivery.receiver,
            "event": delivery.message.get("event"),
            "count": delivery.message.get("count"),
            "message": delivery.message.get("id"),
        }
        if problem is not None:
            details["problem"] = problem.sentence
        return AuditEntry(
            self._clock.now(),
            "notify",
            "server",
            "done" if problem is None else "refused",
            "ok" if problem is None else problem.code,
            details=details,
        )


async def attempt(receiver: Receiver, message: Mapping[str, object]) -> Unavailable | None:
    """Deliver *message* within :data:`LIMIT_S`; return the problem, or ``None`` when it was delivered."""
    try:
        await asyncio.wait_for(receiver.send(message), LIMIT_S)
    except Unavailable as problem:
        return problem
    except TimeoutError:
        return Unavailable("notify-failed", f"It did not take the message within {LIMIT_S:.0f} seconds.")
    except Exception as error:  # noqa: BLE001 - a library's defect is one receiver's problem
        return Unavailable("notify-failed", f"It failed with {type(error).__name__}.")
    return None
