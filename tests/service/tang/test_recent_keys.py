"""Tang keys that are remembered for a moment: asked for once, and never longer than that."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tang_attest.errors import Unavailable
from tang_attest.service.tang.plain import KeySet
from tang_attest.service.tang.recent_keys import RecentKeys
from tang_attest.service.tang.server_keys import ServerKeys
from tests.server import Server, new_x


class Counting:
    """A provider with other keys each time."""

    def __init__(self) -> None:
        self.asked = 0
        self.away = False

    async def current(self) -> KeySet:
        self.asked += 1
        if self.away:
            raise Unavailable("unavailable", "The database does not answer.")
        return KeySet(())


async def test_asked_for_once() -> None:
    """Requests of one moment share what was read."""
    provider = Counting()
    keys = RecentKeys(provider, life_s=3600)
    assert await keys.current() is await keys.current()
    assert provider.asked == 1


async def test_asked_again_after_a_moment() -> None:
    """A key that was removed is gone after it."""
    provider = Counting()
    keys = RecentKeys(provider, life_s=0.05)
    first = await keys.current()
    await asyncio.sleep(0.06)
    assert await keys.current() is not first
    assert provider.asked == 2


async def test_a_failure_is_not_kept() -> None:
    """The database being away is told to each who asks, and forgotten when it is back; old keys are not used."""
    provider = Counting()
    keys = RecentKeys(provider, life_s=0)
    await keys.current()
    provider.away = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            await keys.current()
    provider.away = False
    await keys.current()
    assert provider.asked == 4


async def test_a_retired_key_answers_nobody_once_it_is_retired(tmp_path: Path) -> None:
    """`keys retire` ends when no server can go on with an open key that it read before."""
    async with Server(tmp_path / "state", plain_tang=True) as server:
        first, _ = [await server.keys.import_key(new_x(), "exchange", rotated=False) for _ in range(2)]
        recent = RecentKeys(server.keys, life_s=0.2)
        assert (await recent.current()).find(first) is not None
        operators = ServerKeys(server.store, server.private_keys, server.clock, "operator", lasts_s=0.2)
        await operators.retire(first)
        assert (await recent.current()).find(first) is None
