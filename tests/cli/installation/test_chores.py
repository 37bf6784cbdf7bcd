"""Periodic tasks of the server continue after any single failure."""

from __future__ import annotations

import asyncio

import pytest

from tang_attest.errors import Unavailable
from tang_attest.server.chores import again_and_again


async def test_a_chore_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """After an error that is expected, and after a defect; both are logged."""
    done = asyncio.Event()
    outcomes = [Unavailable("unavailable", "The database could not be used."), ValueError("a defect"), None]

    async def work() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome
        done.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(again_and_again("tidy", 0, work))
    await done.wait()
    task.cancel()
    log = capsys.readouterr()
    text = log.out + log.err
    assert "tidy" in text
    assert "a defect" in text
