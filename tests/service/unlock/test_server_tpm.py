"""A server whose exchange keys live in its own TPM: a real software TPM behind real HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tang_attest.errors import Unavailable
from tang_attest.keys import server_tpm as queueing
from tang_attest.keys.server_tpm import ServerTpm
from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.values.points import parse_point
from tests.attester import Attester, members
from tests.server import Answer, Server, evidence, new_x
from tests.swtpm import Swtpm


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[Swtpm]:
    with Swtpm(tmp_path / "tpm") as started:
        yield started


@pytest.fixture
async def server(tmp_path: Path, swtpm: Swtpm, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """A server that uses *swtpm*, and asks it anew each time whether it is well."""
    monkeypatch.setattr(queueing, "_WELL_FOR_S", 0)
    async with Server(tmp_path / "state", plain_tang=True, server_tpm=swtpm.tcti) as started:
        yield started


async def audit(server: Server, event: str) -> list[tuple[str, str]]:
    """Verdict and code of what was decided, oldest first."""
    entries = [entry for _, entry in await server.store.audit.list_audit(limit=100)]
    return [(entry.verdict, entry.code) for entry in reversed(entries) if entry.event == event]


async def is_right(server: Server, kid: str, x: Any, answer: Answer) -> bool:
    """Return True if the answer is Y = s·X, as x·S says."""
    bound = await server.store.decisions.find_key(kid)
    assert bound is not None
    return answer.status == 200 and parse_point(answer.body) == ExchangeKey(x).multiply(
        parse_point(bound.key.public)
    )


async def unlock(server: Server, attester: Attester, kid: str) -> bool:
    """A whole unlock; whether Y is right."""
    x = new_x()
    return await is_right(server, kid, x, await server.unlock(attester, kid, x=dict(members(x))))


async def test_an_unlock(server: Server, attester: Attester) -> None:
    """A machine enrolls and unlocks as ever; its key is in the TPM, and says so."""
    kid = await server.enroll(attester)
    bound = await server.store.decisions.find_key(kid)
    assert bound is not None
    assert server.private_keys.is_in_tpm(bound.key)
    assert await unlock(server, attester, kid)
    assert await audit(server, "unlock") == [("permitted", "ok")]


async def test_a_machine_without_a_good_state_gets_nothing(server: Server, attester: Attester) -> None:
    """The quote counts as ever: a changed machine is refused."""
    kid = await server.enroll(attester)
    attester.extend(4, b"another boot loader")
    answer = await server.unlock(attester, kid)
    assert (answer.status, answer.code) == (403, "pcr-mismatch")


async def test_many_clients(server: Server) -> None:
    """16 machines at once, each with a key of its own."""
    attesters = [Attester() for _ in range(16)]
    kids = [await server.enroll(attester, f"m{n}") for n, attester in enumerate(attesters)]
    pairs = zip(attesters, kids, strict=True)
    assert all(await asyncio.gather(*(unlock(server, attester, kid) for attester, kid in pairs)))
    assert await audit(server, "unlock") == [("permitted", "ok")] * 16


async def test_a_tpm_that_is_away(server: Server, swtpm: Swtpm, attester: Attester) -> None:
    """503 with a code of its own; nothing is used up, so that the same request succeeds when the TPM is back."""
    kid, port, x = await server.enroll(attester), swtpm.port, new_x()
    point = dict(members(x))
    body = point | {"attest": evidence(attester, kid, point, await server.challenge(kid))}
    swtpm.stop()
    answer = await server.post(f"/rec/{kid}", body)
    assert (answer.status, answer.code) == (503, "server-tpm-unavailable")
    assert "doctor" in answer.body["action"]
    assert await audit(server, "unlock") == [("refused", "server-tpm-unavailable")]
    ready = await server.request("GET", "/readyz")
    assert (ready.status, ready.code) == (503, "server-tpm-unavailable")
    assert (await server.request("GET", "/healthz")).status == 200
    swtpm.start(port)
    assert await is_right(server, kid, x, await server.post(f"/rec/{kid}", body))
    await asyncio.sleep(1.1)  # readiness is looked at once a second
    assert (await server.request("GET", "/readyz")).status == 200


async def test_a_tpm_that_stops_after_the_decision(
    server: Server, swtpm: Swtpm, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says that it was permitted, and then that nothing was released."""
    kid, port, decide = await server.enroll(attester), swtpm.port, server.store.decisions.decide

    async def decide_then_stop(decision: Any) -> None:
        await decide(decision)
        swtpm.stop()

    monkeypatch.setattr(server.store.decisions, "decide", decide_then_stop)
    answer = await server.unlock(attester, kid)
    assert (answer.status, answer.code) == (503, "server-tpm-unavailable")
    assert await audit(server, "unlock") == [("permitted", "ok"), ("refused", "server-tpm-unavailable")]
    [(_, last), *_] = await server.store.audit.list_audit(limit=1)
    assert last.details["released"] is False
    assert (last.kid, last.device) == (kid, "pi-b")
    monkeypatch.undo()
    swtpm.start(port)
    assert await unlock(server, attester, kid)


async def test_an_enrollment_while_it_is_away(server: Server, swtpm: Swtpm, attester: Attester) -> None:
    """No key is made beside the TPM, and the token is good afterwards."""
    port, token = swtpm.port, await server.token()
    begun = await server.begin(attester, "pi-b", token)
    swtpm.stop()
    answer = await server.finish(attester, "pi-b", begun)
    assert (answer.status, answer.code) == (503, "server-tpm-unavailable")
    assert await audit(server, "enroll") == [("refused", "server-tpm-unavailable")]
    assert await server.store.devices.list_devices() == []
    swtpm.start(port)
    assert (await server.finish(attester, "pi-b", begun)).status == 201


async def test_another_tpm(server: Server, swtpm: Swtpm, attester: Attester, tmp_path: Path) -> None:
    """The TPM was replaced or cleared: a code of its own, and nothing is written as permitted."""
    kid, port = await server.enroll(attester), swtpm.port
    swtpm.stop()
    other = Swtpm(tmp_path / "other")
    other.start(port)
    try:
        answer = await server.unlock(attester, kid)
        assert (answer.status, answer.code) == (503, "server-tpm-foreign")
        assert await audit(server, "unlock") == [("refused", "server-tpm-foreign")]
        second = Attester()
        assert await unlock(server, second, await server.enroll(second, "pi-c"))
    finally:
        other.stop()


async def test_keys_from_before(server: Server, swtpm: Swtpm, attester: Attester) -> None:
    """A key that was made before goes on in this process, whether the TPM is there or not, until it is rotated."""
    tpm, server.private_keys.tpm = server.private_keys.tpm, ServerTpm()
    kid = await server.enroll(attester)
    server.private_keys.tpm = tpm
    assert await unlock(server, attester, kid)
    server.clock.advance(seconds=1)
    new, old = await server.keys.rotate_device("pi-b")
    assert old == [kid]
    assert await unlock(server, attester, new)
    swtpm.stop()
    assert await unlock(server, attester, kid)
    with pytest.raises(Unavailable) as refused:
        await server.keys.rotate_device("pi-b")
    assert refused.value.code == "server-tpm-unavailable"
    # A command that was not told about the TPM does not make a key beside it either.
    server.private_keys.tpm = ServerTpm()
    with pytest.raises(Unavailable, match="the new one would not") as refused:
        await server.keys.rotate_device("pi-b")
    assert refused.value.code == "server-tpm-unavailable"
    assert (await server.store.devices.get_device("pi-b")).kids[0] == new


async def test_open_keys(server: Server, swtpm: Swtpm) -> None:
    """Plain Tang answers with open keys in the TPM too; the old one, in this process, does not need it."""
    old = await server.keys.import_key(new_x(), "exchange", rotated=False)
    await server.keys.rotate()
    [new] = [key.kid for key in await server.store.keys.server_keys() if server.private_keys.is_in_tpm(key)]
    for kid, status in ((old, 200), (new, 200), (old, 200), (new, 503)):
        if status == 503:
            swtpm.stop()
        x = new_x()
        answer = await server.post(f"/rec/{kid}", dict(members(x)))
        if status == 200:
            assert await is_right(server, kid, x, answer)
        else:
            assert (answer.status, answer.code) == (503, "server-tpm-unavailable")
    assert (await server.post(f"/rec/{old}", dict(members(new_x())))).status == 200
    assert (await server.request("GET", "/adv")).status == 200


async def test_a_full_queue(server: Server, attester: Attester) -> None:
    """A request beyond the TPM's queue is refused at once, and nothing is written as permitted."""
    kid, begun, go = await server.enroll(attester), threading.Event(), threading.Event()
    tpm = server.private_keys.tpm
    tpm._queue.maxsize = 1

    def hold() -> bool:
        begun.set()
        return go.wait(120)

    tpm.submit(hold)
    assert await asyncio.to_thread(begun.wait, 120)
    second = tpm.submit(bool)
    answer = await server.unlock(attester, kid)
    go.set()
    assert (answer.status, answer.code) == (503, "server-tpm-unavailable")
    assert await audit(server, "unlock") == [("refused", "server-tpm-unavailable")]
    await asyncio.wrap_future(second)
    assert await unlock(server, attester, kid)
