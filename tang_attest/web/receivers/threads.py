"""Blocking libraries, beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from tang_attest.errors import Unavailable


class Aside:
    """Runs one blocking call at a time, in a thread that the end of the process does not wait for.

    A caller that gives up leaves its thread alone: nothing can end it.  While it lasts, the next call is refused.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    async def run(self, call: Callable[[], None]) -> None:
        """Run *call* and raise its error.  Raises ``notify-failed`` while an earlier call has not ended."""
        if self._thread is not None and self._thread.is_alive():
            raise Unavailable("notify-failed", "It still holds the connection of an earlier message.")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[BaseException | None] = loop.create_future()

        def settle(error: BaseException | None) -> None:
            if not done.done():
                done.set_result(error)

        def work() -> None:
            error: BaseException | None = None
            try:
                call()
            except BaseException as raised:  # noqa: BLE001 - the caller raises it again
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, error)

        self._thread = threading.Thread(target=work, name="receiver", daemon=True)
        self._thread.start()
        if (error := await done) is not None:
            raise error
