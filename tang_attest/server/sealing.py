"""Sealing of the audit record beside answering; the head of the chain goes to the log, and so off the
machine.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import structlog

from tang_attest.errors import TangAttestError
from tang_attest.protocol.audit_chain import KEY_LABEL, Seal
from tang_attest.server.chores import again_and_again
from tang_attest.server.compose import Installation
from tang_attest.server.notify.watch import BROKEN, broken
from tang_attest.server.notify.work import Report
from tang_attest.service.audit.chain import AuditSealer
from tang_attest.web.tasks import running

_EVERY_S: Final = 1.0
#: Seconds between two heads in this process's log.  Nobody on this machine can change a log that is kept
#: elsewhere.
_LOG_EVERY_S: Final = 60.0

_log = structlog.get_logger("audit")


class HeadLog:
    """Logs heads: the first at once, then the newest of each minute."""

    def __init__(self) -> None:
        self._waiting: Seal | None = None
        self._logged_at: float | None = None

    def note(self, seal: Seal | None, now: float) -> None:
        """Take a newer head, if there is one; *now* is in monotonic seconds."""
        self._waiting = seal or self._waiting
        if self._logged_at is None or now - self._logged_at >= _LOG_EVERY_S:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Log the waiting head."""
        if self._waiting is not None:
            _log.info("audit-head", head=self._waiting.head, last=self._waiting.last_id)
            self._waiting, self._logged_at = None, now


@asynccontextmanager
async def sealing(installation: Installation, report: Report) -> AsyncIterator[None]:
    """Seal new rows while the block runs, and the remaining ones at its end; *report* a chain that was changed."""
    sealer = AuditSealer(
        installation.store.audit, installation.secret.derive(KEY_LABEL), installation.world.clock
    )
    heads = HeadLog()

    async def work() -> None:
        try:
            heads.note(await sealer.round(), time.monotonic())
        except TangAttestError as error:
            if error.code in BROKEN:
                await report([broken(error.code, error.sentence, installation.world.clock.now())])
            raise

    try:
        async with running(again_and_again("audit-chain", _EVERY_S, work)):
            yield
    finally:
        with suppress(TangAttestError):  # the log has it
            heads.note(await sealer.round(last=True), time.monotonic())
        heads.flush(time.monotonic())
