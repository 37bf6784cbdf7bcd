"""A server for each test, and a witness of every exchange."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.points import Point
from tests.attester import Attester
from tests.server import Server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server without plain Tang."""
    async with Server(tmp_path / "state") as started:
        yield started


@pytest.fixture
def attester() -> Attester:
    """A machine with a P-256 AK."""
    return Attester()


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Every X that was multiplied by a private key."""
    seen: list[Point] = []
    original = ExchangeKey.multiply

    def witness(key: ExchangeKey, x: Point) -> Point:
        seen.append(x)
        return original(key, x)

    monkeypatch.setattr(ExchangeKey, "multiply", witness)
    return seen
