"""Events that no request causes: certificates that end, and an audit record that does not hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from tang_attest.errors import ACTIONS, TangAttestError
from tang_attest.ports.notices import NoticeBook, NoticeKind, Occurrence
from tang_attest.protocol.audit_chain import KEY_LABEL
from tang_attest.server.audit.signatures import signature_check
from tang_attest.server.certificates import certificate_ends
from tang_attest.server.compose import Installation
from tang_attest.service.audit.check import check_audit
from tang_attest.service.machines.overview import Notice, root_ends
from tang_attest.service.notifications import places
from tang_attest.service.notifications.events import group_key

#: Time between two checks of the whole record by all servers together.
_CHECK_EVERY: Final = timedelta(hours=6)
#: A certificate that ends is told once in each of these times before its end, and once after it.
_STAGES: Final = (timedelta(0), timedelta(days=1), timedelta(days=3))
_REMEMBERED: Final = timedelta(days=90)
#: A record that does not hold is told again after so long.
_TOLD_AGAIN: Final = timedelta(days=1)
#: Codes of errors that say that the record was changed.
BROKEN: Final = frozenset({"audit-cut", "audit-changed", "audit-archived", "registry-tampered"})


async def ends_soon(installation: Installation) -> list[Occurrence]:
    """Return the certificates of the server, of client CAs and of EK roots that end soon or have ended."""
    now = installation.world.clock.now()
    notices = [
        *certificate_ends(installation.settings, now),
        *root_ends(await installation.store.enrollment.list_ek_roots(), now),
    ]
    return [_certificate(notice, now) for notice in notices if notice.attention]


def _certificate(notice: Notice, now: datetime) -> Occurrence:
    stage = sum(notice.at is not None and notice.at - now > left for left in _STAGES)
    when = "" if notice.at is None else f" on {notice.at:%Y-%m-%d %H:%M} UTC"
    return Occurrence(
        kind=NoticeKind.CERTIFICATE,
        key=group_key(NoticeKind.CERTIFICATE, notice.name, notice.sentence, when, str(stage)),
        subject=notice.name,
        at=now,
        sentence=f"The {notice.sentence}{when}.",
        action=f"{notice.action[:1].upper()}{notice.action[1:]}.",
        known_until=now + _REMEMBERED,
    )


def broken(code: str, sentence: str, now: datetime) -> Occurrence:
    """Return the event of an audit record that does not hold."""
    return Occurrence(
        kind=NoticeKind.RECORD,
        key=group_key(NoticeKind.RECORD, code, sentence),
        subject="audit record",
        at=now,
        sentence=f"{sentence} ({code})",
        action=f"Run 'tang-attest audit verify' on the server. {ACTIONS[code]}",
        page=places.RECORD,
        known_until=now + _TOLD_AGAIN,
    )


class RecordCheck:
    """Checks the whole record now and then; of all workers and servers, one does it."""

    def __init__(
        self, installation: Installation, report: Callable[[Sequence[Occurrence]], Awaitable[None]]
    ) -> None:
        self._installation, self._report = installation, report

    async def round(self) -> None:
        """Check the record, if it was not checked for :data:`_CHECK_EVERY`, and report the findings."""
        store, clock = self._installation.store, self._installation.world.clock
        now = clock.now()
        if not await store.notices.update_notices(lambda book: _take_turn(book, now)):
            return
        try:
            check = await check_audit(
                store.audit,
                self._installation.secret.derive(KEY_LABEL),
                clock,
                lambda _done, _all: None,
                signatures=await signature_check(store),
            )
            found = [(reason.code, reason.sentence) for reason in check.reasons]
        except TangAttestError as error:
            if error.code not in BROKEN:
                raise
            found = [(error.code, error.sentence)]
        await self._report([broken(code, sentence, now) for code, sentence in found[:1]])


def _take_turn(book: NoticeBook, now: datetime) -> bool:
    last = book.checked_at()
    if last is not None and timedelta(0) <= now - last < _CHECK_EVERY:
        return False
    book.mark_checked(now)
    return True
