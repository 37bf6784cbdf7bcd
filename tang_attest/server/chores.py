"""What ``serve`` does again and again beside answering."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from tang_attest.errors import TangAttestError

_log = structlog.get_logger("chores")


async def again_and_again(name: str, every_s: float, work: Callable[[], Awaitable[object]]) -> None:
    """*work* every *every_s* seconds, for ever; a failure is logged under *name* and tried again."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await work()
        except TangAttestError as error:
            _log.warning(name, code=error.code, sentence=error.sentence)
        except Exception:  # noqa: BLE001 - a defect must not end the chore; the next line says what it was
            _log.exception("defect", chore=name)
