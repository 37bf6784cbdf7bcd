"""The Batcher's rules, one test for each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tang_attest.errors import Conflict, Unavailable
from tang_attest.store.database.batch import Batcher
from tang_attest.store.database.failures import Spoiled


class Echo:
    """Answers each item with itself, an exception item with the exception; can be held."""

    def __init__(self) -> None:
        self.batches: list[list[object]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.fails: Exception | None = None

    async def __call__(self, items: Sequence[object]) -> Sequence[object]:
        self.batches.append(list(items))
        await self.go.wait()
        if self.fails is not None:
            raise self.fails
        return list(items)


def make(echo: Echo, **limits: int) -> Batcher[object, object]:
    return Batcher(echo, **limits)


async def spin() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_that_meet_share_a_batch() -> None:
    """And each gets its own answer, in order."""
    echo = Echo()
    batcher = make(echo)
    assert await asyncio.gather(*map(batcher.submit, range(5))) == [0, 1, 2, 3, 4]
    assert echo.batches == [[0, 1, 2, 3, 4]]


async def test_who_comes_during_a_batch_is_in_the_next() -> None:
    """A read must not be answered by a query that began before it was asked."""
    echo = Echo()
    batcher = make(echo, batch_limit=2)
    echo.go.clear()
    first = asyncio.create_task(batcher.submit("first"))
    await spin()
    others = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
    await spin()
    assert echo.batches == [["first"]]
    echo.go.set()
    await asyncio.gather(first, *others)
    assert echo.batches == [["first"], [0, 1], [2]]


async def test_callers_that_were_answered_join_the_next_batch() -> None:
    """Else two groups of callers take turns, and each flush serves half of them."""
    echo = Echo()
    batcher = make(echo)
    echo.go.clear()

    async def caller(name: str) -> None:
        await batcher.submit(f"{name}1")
        await batcher.submit(f"{name}2")

    callers = [asyncio.create_task(caller(name)) for name in "ab"]
    await spin()
    waiting = asyncio.create_task(batcher.submit("c"))
    await spin()
    echo.go.set()
    await asyncio.gather(*callers, waiting)
    assert echo.batches == [["a1", "b1"], ["c", "a2", "b2"]]


async def test_an_item_fails_alone() -> None:
    """Its neighbors have their results."""
    batcher = make(Echo())
    error = Conflict("nonce-used", "The nonce was used before.")
    results = await asyncio.gather(*map(batcher.submit, [1, error, 3]), return_exceptions=True)
    assert results == [1, error, 3]


@pytest.mark.parametrize("fails", [Unavailable("unavailable", "Away."), ValueError("a bug")])
async def test_a_batch_fails_for_all(fails: Exception) -> None:
    """And the batch after it may succeed."""
    echo = Echo()
    batcher = make(echo)
    echo.fails = fails
    results = await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
    assert results == [fails] * 3
    echo.fails = None
    assert await batcher.submit(4) == 4


async def test_who_waits_hears_that_the_database_is_away() -> None:
    """With the batch that found out, and not one timeout later; an item that was refused says nothing about others."""
    echo = Echo()
    batcher = make(echo, batch_limit=1)
    for fails, batches in ((Unavailable("unavailable", "Away."), 1), (Spoiled("unavailable", "Refused."), 3)):
        echo.batches.clear()
        echo.fails = fails
        echo.go.clear()
        callers = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
        await spin()
        echo.go.set()
        assert await asyncio.gather(*callers, return_exceptions=True) == [fails] * 3
        assert len(echo.batches) == batches


async def test_too_few_results_are_an_error_for_all() -> None:
    """Nobody gets another's answer."""

    async def forgets(items: Sequence[int]) -> Sequence[int]:
        return items[1:]

    batcher: Batcher[int, int] = Batcher(forgets)
    results = await asyncio.gather(*map(batcher.submit, range(3)), return_exceptions=True)
    assert all(isinstance(result, RuntimeError) for result in results)


async def test_a_cancelled_caller_leaves_alone() -> None:
    """Its batch goes on; who was cancelled while waiting has no effect at all."""
    echo = Echo()
    batcher = make(echo)
    echo.go.clear()
    running = [asyncio.create_task(batcher.submit(number)) for number in range(2)]
    await spin()
    waiting = [asyncio.create_task(batcher.submit(number)) for number in range(2, 4)]
    await spin()
    running[0].cancel()
    waiting[0].cancel()
    await spin()
    echo.go.set()
    assert await running[1] == 1
    assert await waiting[1] == 3
    assert running[0].cancelled()
    assert waiting[0].cancelled()
    assert echo.batches == [[0, 1], [3]]


async def test_a_batch_of_cancelled_callers_is_not_run() -> None:
    """There is nothing to do."""
    echo = Echo()
    batcher = make(echo)
    caller = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0)
    caller.cancel()
    await spin()
    assert echo.batches == []
    assert await batcher.submit(2) == 2


async def test_the_queue_is_bounded() -> None:
    """A caller without room is refused at once, and there is room again later."""
    echo = Echo()
    batcher = make(echo, queue_limit=2)
    echo.go.clear()
    running = asyncio.create_task(batcher.submit("running"))
    await spin()
    waiting = [asyncio.create_task(batcher.submit(number)) for number in range(2)]
    await spin()
    with pytest.raises(Unavailable, match="Too many"):
        await batcher.submit("no room")
    echo.go.set()
    await asyncio.gather(running, *waiting)
    assert await batcher.submit("room") == "room"


async def test_close_finishes_what_was_taken() -> None:
    """Waiting items are done; later ones are refused; closing twice is no error."""
    echo = Echo()
    batcher = make(echo)
    echo.go.clear()
    callers = [asyncio.create_task(batcher.submit("running"))]
    await spin()
    callers.append(asyncio.create_task(batcher.submit("waiting")))
    await spin()
    closing = asyncio.create_task(batcher.close())
    await spin()
    assert not closing.done()
    with pytest.raises(Unavailable, match="stopping"):
        await batcher.submit("late")
    echo.go.set()
    await closing
    assert await asyncio.gather(*callers) == ["running", "waiting"]
    await batcher.close()


async def test_a_cancelled_worker_leaves_nobody_waiting() -> None:
    """When the loop is torn down, every caller ends."""
    echo = Echo()
    batcher = make(echo)
    echo.go.clear()
    callers = [asyncio.create_task(batcher.submit("running"))]
    await spin()
    callers.append(asyncio.create_task(batcher.submit("waiting")))
    await spin()
    assert batcher._worker is not None
    batcher._worker.cancel()
    await asyncio.wait(callers, timeout=120)
    assert all(caller.cancelled() for caller in callers)
