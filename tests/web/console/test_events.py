"""Live events: a page hears of what concerns it, the number of streams is bounded, and a stop waits for none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient

from tang_attest.web.console import events as module
from tests.server import Server
from tests.store.samples import entry
from tests.web.console.conftest import Enter, console_of
from tests.web.console.visitor import Visitor

#: Seconds in which an event comes, on a busy machine too.
_PATIENCE_S = 120


@pytest_asyncio.fixture
async def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TestClient[Any, Any]]:
    """A console that looks for changes, and pings, at once."""
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module, "PING_S", 0.05)
    async with console_of(server) as client:
        yield client


async def listen(visitor: Visitor, path: str = "/events") -> ClientResponse:
    """A stream, after the event with which each begins."""
    answer = await visitor.client.get(path, headers={"Cookie": f"__Host-tang-attest={visitor.cookie}"})
    assert answer.content_type == "text/event-stream"
    await heard(answer)
    return answer


async def heard(answer: ClientResponse) -> None:
    """Read on to the next event."""
    async with asyncio.timeout(_PATIENCE_S):
        while (line := await answer.content.readline()) != b"event: changed\n":
            assert line, "the stream ended"


async def test_a_page_hears_of_a_change(server: Server, enter: Enter) -> None:
    """Of any on the list, and of that machine on a machine's page."""
    visitor = await enter("viewer")
    every, own, other = [
        await listen(visitor, path) for path in ("/events", "/events?machine=pi-b", "/events?machine=pi-c")
    ]
    waiting = asyncio.create_task(heard(other))
    await asyncio.sleep(0)
    await server.store.audit.append(entry("unlock", device="pi-b"))
    await heard(every)
    await heard(own)
    assert not waiting.done()
    await server.store.audit.append(entry("unlock", device="pi-c"))
    await waiting
    for stream in (every, own, other):
        stream.close()


async def test_a_stream_ends_with_its_session(server: Server, enter: Enter) -> None:
    """At the next ping: a stolen cookie hears nothing more after the sign-out."""
    visitor = await enter("viewer")
    stream = await listen(visitor)
    await server.operators.sign_out("viewer")
    async with asyncio.timeout(_PATIENCE_S):
        assert b"event" not in await stream.content.read()


async def test_streams_are_bounded(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more gets a sentence, and a place when another is gone."""
    monkeypatch.setattr(module, "MAX_STREAMS", 1)
    visitor = await enter("viewer")
    stream = await listen(visitor)
    refused = await visitor.get("/events")
    assert (refused.status, "Too many pages listen" in refused.text) == (503, True)
    stream.close()
    async with asyncio.timeout(_PATIENCE_S):
        while (
            answer := await visitor.client.get(
                "/events", headers={"Cookie": f"__Host-tang-attest={visitor.cookie}"}
            )
        ).status != 200:
            answer.close()
            await asyncio.sleep(0.05)
    answer.close()


async def test_a_stop_waits_for_no_stream(server: Server, enter: Enter, client: TestClient[Any, Any]) -> None:
    """aiohttp would wait for twice its time limit."""
    visitor = await enter("viewer")
    stream = await listen(visitor)
    application: web.Application = client.server.app  # type: ignore[attr-defined]
    await application.shutdown()
    async with asyncio.timeout(_PATIENCE_S):
        await stream.content.read()
    assert (await visitor.get("/events")).status == 503
