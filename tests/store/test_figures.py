"""Figures of the store for monitoring: health, age of evidence, queues."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from tang_attest.errors import Unavailable
from tang_attest.store import SqlStore
from tests.store.samples import NOW, decision, enrollment, entry, token


async def enroll(store: SqlStore, name: str) -> int:
    await store.enrollment.add_token(token(name), entry("token create"))
    return (await store.enrollment.enroll(enrollment(name, name))).id


async def test_devices_by_their_last_evidence(store: SqlStore) -> None:
    """Every word is there, and a device is counted under one."""
    assert await store.devices.seen(NOW) == {"hour": 0, "day": 0, "week": 0, "before": 0, "never": 0}
    first = await enroll(store, "pi-a")
    await enroll(store, "pi-b")
    made = decision(first, "nonce", 1)
    await store.decisions.decide(made)
    for age, word in (
        (timedelta(minutes=59), "hour"),
        (timedelta(hours=1), "day"),
        (timedelta(days=1), "week"),
        (timedelta(days=7), "before"),
    ):
        found = await store.devices.seen(made.audit.at + age)
        assert found == {"hour": 0, "day": 0, "week": 0, "before": 0, "never": 1} | {word: 1}


async def test_queues_count(store: SqlStore) -> None:
    """Callers that come together share a transaction; what failed is counted as such."""
    await asyncio.gather(*(store.audit.append(entry(str(number))) for number in range(10)))
    figures = store.queues()["write"]
    assert (figures.items, figures.failures, figures.waiting) == (10, 0, 0)
    assert 1 <= figures.batches < 10
    await store.decisions.find_key("nobody's")
    assert store.queues()["find"].items == 1
    store._writes._queue_limit = 0
    with pytest.raises(Unavailable):
        await store.audit.append(entry("one too many"))
    assert store.queues()["write"].failures == 1


async def test_check(store: SqlStore) -> None:
    """Well; with a schema that somebody else upgraded or that is gone; and closed."""
    await store.check()

    def become(version: str) -> Callable[[sa.Connection], None]:
        def work(connection: sa.Connection) -> None:
            connection.execute(
                sa.text("UPDATE alembic_version SET version_num = :version"), {"version": version}
            )

        return work

    for version, code in (("9999", "schema-new"), ("0001", "schema-old")):
        await store._database.write(become(version))
        with pytest.raises(Unavailable) as refused:
            await store.check()
        assert refused.value.code == code
    await store.close()
    with pytest.raises(Unavailable) as refused:
        await store.check()
    assert refused.value.code == "unavailable"
