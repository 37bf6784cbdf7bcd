"""Speed of the request path.  ``pytest -m bench -s tests/store`` prints the table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from statistics import median

import pytest

from tang_attest.protocol.passkeys.record import SignatureCheck
from tang_attest.server.compose import SystemClock
from tang_attest.service.audit.chain import AuditSealer
from tang_attest.service.audit.check import check_audit
from tang_attest.store import SqlStore, open_store
from tests.fakes import ROW_KEY
from tests.store.samples import clock, decision, device, entry, key, policy

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


async def _registry(url: str) -> tuple[SqlStore, Callable[[int], Awaitable[None]]]:
    """A registry of :data:`DEVICES` devices, and a call that writes the next decision about one of them."""
    store = await open_store(url, ROW_KEY, create=True)
    await store.policies.add_policy(policy(), entry())
    ids = [
        (await store.devices.add_device(device(f"d{number}"), "policy", key(f"k{number}"), entry())).id
        for number in range(DEVICES)
    ]
    ticks = iter(range(1, 1_000_000))

    async def decide(_: int) -> None:
        tick = next(ticks)
        await store.decisions.decide(decision(ids[tick % DEVICES], f"n{tick}", tick, clock=clock(tick)))

    return store, decide


#: Targets of each database: find_key alone and among 16, decide among 32 (durable); calls for each second.
FLOORS = {"sqlite": (1000, 4000, 1500), "postgresql": (200, 1500, 500)}


@pytest.mark.bench
async def test_request_path(url: str) -> None:
    """The store's part of a request is small beside the exchange."""
    store, decide = await _registry(url)

    async def both(number: int) -> None:
        assert await store.decisions.find_key(f"k{number % DEVICES}") is not None
        await decide(number)

    print(url.partition(":")[0])
    table = {}
    for name, call in (
        ("find_key", lambda number: store.decisions.find_key(f"k{number % DEVICES}")),
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


#: Milliseconds of processor time for 1,000 rows.
SEALING_LIMIT_MS = 100


@pytest.mark.bench
async def test_sealing(url: str) -> None:
    """Cost of the chain over the audit record, for the server and for writers."""
    store, decide = await _registry(url)

    sealer = AuditSealer(store.audit, bytes(32), SystemClock())

    async def seal() -> None:
        while True:
            await asyncio.sleep(1)
            await sealer.round()

    table: dict[bool, list[float]] = {False: [], True: []}
    for number in (0, 1, 1, 0, 0, 1, 1, 0, 0, 1):
        task = asyncio.create_task(seal()) if number % 2 else None
        table[bool(number % 2)].append(await _rate(32, 4000, decide))
        if task is not None:
            task.cancel()
    await sealer.round(last=True)
    for _ in range(10):
        await asyncio.gather(
            *(store.audit.append(entry("unlock", details={"pcrs": [4, 7]})) for _ in range(1000))
        )
    begin, cpu = time.perf_counter(), time.process_time()
    while await sealer.round(last=True) is not None:
        pass
    spent = (time.process_time() - cpu) * 100
    print(url.partition(":")[0])
    print(
        f"sealing 1,000 rows: {spent:.1f} ms of processor time, {(time.perf_counter() - begin) * 100:.1f} ms"
    )
    begin = time.perf_counter()
    found = await check_audit(
        store.audit,
        bytes(32),
        SystemClock(),
        lambda _done, _total: None,
        signatures=lambda: SignatureCheck({}),
    )
    print(f"checking: {found.rows / (time.perf_counter() - begin):.0f} rows/s")
    without, beside = median(table[False]), median(table[True])
    print(f"decide: {without:.0f}/s, beside a sealer {beside:.0f}/s ({(beside / without - 1):+.1%})")
    await store.close()
    assert found.bad == 0
    assert spent <= SEALING_LIMIT_MS
