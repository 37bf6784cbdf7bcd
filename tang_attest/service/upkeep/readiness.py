"""Readiness of the server to open a disk: the database answers and has the right schema, and the keys
open.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from tang_attest.errors import TangAttestError, Unavailable
from tang_attest.service.tang.plain import KeySet

#: Seconds for which an answer is good: any client may ask, and that must not keep the database busy.
_GOOD_FOR_S: Final = 1.0


class Checked(Protocol):
    """A store that can be checked."""

    async def check(self) -> None:
        """Raise ``unavailable``, ``schema-old``, ``schema-new`` when it cannot be used."""


class Readiness:
    """Checks *store*, and the keys by calling *open_keys*."""

    def __init__(
        self,
        store: Checked,
        open_keys: Callable[[], Awaitable[KeySet]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._open_keys, self._clock = store, open_keys, clock
        self._looking = asyncio.Lock()
        self._until = float("-inf")
        self._error: TangAttestError | None = None

    async def check(self) -> None:
        """Raise the error that keeps the server from opening a disk.

        Raises ``unavailable``, ``schema-old``, ``schema-new``, ``state-missing``.
        """
        async with self._looking:
            if self._clock() >= self._until:
                self._error = await self._look()
                self._until = self._clock() + _GOOD_FOR_S
        if self._error is not None:
            raise self._error

    async def _look(self) -> TangAttestError | None:
        try:
            await self._store.check()
            if not any(key.signer is not None for key in (await self._open_keys()).keys):
                return Unavailable("state-missing", "There is no signing key.")
        except TangAttestError as error:
            return error
        return None
