"""How fast the request path is.  ``pytest -m bench -s tests/store`` prints the table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tang_attest.store import open_store
from tests.store.records import clock, decision, device, entry, key, policy

DEVICES = 32


async def _rate(concurrency: int, count: int, call: Callable[[int], Awaitable[object]]) -> float:
    """Calls for each second, *concurrency* callers at a time."""
    numbers: Iterator[int] = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return count / (time.perf_counter() - begin)


#: What each database has to reach: find_key alone and among 16, decide among 32 (durable); calls for each second.
FLOORS = {"sqlite": (1000, 4000, 1500), "postgresql": (200, 1500, 500)}


@pytest.mark.bench
async def test_request_path(url: str) -> None:
    """What the request path asks of the registry is a small part of what an exchange costs."""
    store = await open_store(url, create=True)
    await store.add_policy(policy(), entry())
    ids = [
        (await store.add_device(device(f"d{number}"), "policy", key(f"k{number}"), entry())).id
        for number in range(DEVICES)
    ]
    ticks = iter(range(1, 1_000_000))

    async def decide(_: int) -> None:
        tick = next(ticks)
        await store.decide(decision(ids[tick % DEVICES], f"n{tick}", tick, clock=clock(tick)))

    async def both(number: int) -> None:
        assert await store.find_key(f"k{number % DEVICES}") is not None
        await decide(number)

    print(url.partition(":")[0])
    table = {}
    for name, call in (
        ("find_key", lambda number: store.find_key(f"k{number % DEVICES}")),
        ("decide", decide),
        ("find_key, then decide", both),
    ):
        for concurrency in (1, 16, 32):
            await _rate(concurrency, 50 * concurrency, call)
            table[name, concurrency] = rate = await _rate(concurrency, 100 * concurrency, call)
            print(f"{name:24}{concurrency:4}{rate:10.0f}/s {1000 / rate:8.3f} ms each")
    await store.close()
    alone, among_16, among_32 = FLOORS[url.partition(":")[0]]
    assert table["find_key", 1] >= alone
    assert table["find_key", 16] >= among_16
    assert table["decide", 32] >= among_32
