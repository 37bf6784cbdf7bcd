"""A cache of Tang keys for a moment, so that not every request reads the directory and the database."""

from __future__ import annotations

import time
from typing import Final

from tang_attest.service.tang.plain import KeySet, KeySetProvider, current_keys

#: Seconds for which a removed key may still answer, and a new one may not be known.
LIFE_S: Final = 1.0


class RecentKeys:
    """The keys of *provider*, fetched at most once in *life_s* seconds (and by requests meanwhile).

    Raises the errors of *provider*, each time: a failure is not kept.
    """

    def __init__(self, provider: KeySetProvider, life_s: float = LIFE_S) -> None:
        self._provider, self._life_s = provider, life_s
        self._keys, self._until = KeySet(()), float("-inf")

    async def current(self) -> KeySet:
        """Return the keys, which may be ``life_s`` seconds old."""
        begin = time.monotonic()
        if begin >= self._until:
            self._keys = await current_keys(self._provider)
            # From the question, not the answer: a change in between may be missing.
            self._until = begin + self._life_s
        return self._keys
