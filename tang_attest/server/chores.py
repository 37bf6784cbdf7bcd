"""Periodic work beside answering."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog

from tang_attest.errors import TangAttestError

_log = structlog.get_logger("chores")


async def again_and_again(name: str, every_s: float, work: Callable[[], Awaitable[object]]) -> None:
    """Run *work* every *every_s* seconds, for ever; log a failure under *name* and try again."""
    while True:
        await asyncio.sleep(every_s)
        try:
            await work()
        except TangAttestError as error:
            _log.warning(name, code=error.code, sentence=error.sentence)
        except Exception:  # noqa: BLE001 - a defect must not end the chore; the next line says what it was
            _log.exception("defect", chore=name)


@contextmanager
def chore(name: str, every_s: float, work: Callable[[], Awaitable[object]]) -> Iterator[None]:
    """Run *work* every *every_s* seconds until the block ends, as :func:`again_and_again` does."""
    task = asyncio.create_task(again_and_again(name, every_s, work))
    try:
        yield
    finally:
        task.cancel()
