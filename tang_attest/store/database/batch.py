"""Many callers, one transaction.

A commit costs a disk flush, and a statement has a fixed cost.  A :class:`Batcher` gathers the items that
arrive while the batch before is under way, and submits them at once.

Rules of this module:

* A batch begins after every item in it was submitted: a read sees what was committed before it was asked for.
* One batch at a time, items in the order of their submission.
* A caller that is cancelled leaves; its batch goes on.  An item whose caller left before the batch began is
  dropped, so it has no effect.
* A batch that fails as a whole fails for each of its callers; an item that fails alone is an exception among
  the results.
* When the database is away, every waiting caller gets the error of the batch that found out, instead of one
  timeout after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from tang_attest.errors import Unavailable
from tang_attest.ports.store import QueueFigures
from tang_attest.store.database.failures import is_away

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items of one batch: a flush is then a small part of its cost, and a transaction stays a few milliseconds
#: long.
BATCH_LIMIT: Final = 64
#: Items that may wait.  At the speed of a slow disk that is about a second; a later caller gets an error at
#: once.
QUEUE_LIMIT: Final = 1024


class Batcher(Generic[Item, Result]):
    """Gathers items and passes them to *run*, which returns one result or exception for each, in order."""

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        batch_limit: int = BATCH_LIMIT,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self._run = run
        self._batch_limit = batch_limit
        self._queue_limit = queue_limit
        self._waiting: deque[tuple[Item, asyncio.Future[Result]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False
        self._batches = self._items = self._failures = 0

    def figures(self) -> QueueFigures:
        """Return the figures of this queue since the start."""
        return QueueFigures(self._batches, self._items, self._failures, len(self._waiting))

    async def submit(self, item: Item) -> Result:
        """Return the result for *item*.  Raises its exception, or ``unavailable`` when the queue is full or
        closed.
        """
        if self._closed:
            raise Unavailable("unavailable", "The server is stopping.")
        if len(self._waiting) >= self._queue_limit:
            self._failures += 1
            raise Unavailable("unavailable", "Too many requests wait for the database.")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Take no more items, and finish those that wait."""
        self._closed = True
        if self._worker is not None:
            await asyncio.shield(self._worker)

    async def _work(self) -> None:
        try:
            while self._waiting:
                # Callers that are ready to run now may join, such as those that the last batch answered.
                await asyncio.sleep(0)
                await self._run_batch(self._take())
        finally:
            self._worker = None
            # Only a cancelled worker (the loop is closing) leaves callers here.
            while self._waiting:
                self._waiting.popleft()[1].cancel()

    def _take(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._batch_limit:
            item, future = self._waiting.popleft()
            if not future.done():  # done means: the caller was cancelled
                batch.append((item, future))
        return batch

    async def _run_batch(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        if not batch:
            return
        results: Sequence[Result | Exception]
        self._batches += 1
        self._items += len(batch)
        try:
            results = await self._run([item for item, _ in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(batch)} items had {len(results)} results")  # noqa: TRY301 - a bug
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers
            if is_away(error):
                batch += self._waiting
                self._waiting.clear()
            results = [error] * len(batch)
            self._failures += len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            # A caller that was cancelled meanwhile wants no answer.
            with contextlib.suppress(asyncio.InvalidStateError):
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
