"""Metrics for Prometheus, and health for a load balancer."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.attester import Attester
from tests.cli.serving import PATIENCE_S, initialize, program, request, serving
from tests.server import Server
from tests.service.rounds.test_verify import enroll, prove
from tests.web.gate.test_limits import connected, listening

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> Samples:
    """Every sample of an exposition."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of *name* that have *labels*."""
    found = [
        value for (given, having), value in samples.items() if given == name and labels.items() <= {*having}
    ]
    return sum(found)


async def exposition(server: Server) -> str:
    """Metrics as Prometheus would read them."""
    assert server.site.metrics is not None
    return (await server.site.metrics.text()).decode()


async def test_what_happened_is_counted(server: Server, attester: Attester) -> None:
    """Requests by route and code, verdicts, latencies, batches, devices."""
    kid = await server.enroll(attester)
    assert (await server.unlock(attester, kid)).status == 200
    assert (await server.unlock(attester, kid, binding=b"\0" * 32)).code == "qualifying-data-mismatch"
    assert (await server.request("GET", "/adv")).status == 200
    assert (await server.request("GET", "/nothing")).status == 404
    await server.enroll(Attester(), "pi-c")
    samples = parse(await exposition(server))
    requests = "tang_attest_requests_total"
    assert total(samples, requests, route="challenge", status="401", code="evidence-required") == 2
    assert total(samples, requests, route="unlock", status="200", code="ok") == 1
    assert total(samples, requests, route="unlock", status="403", code="qualifying-data-mismatch") == 1
    assert total(samples, requests, route="adv", status="200") == 1
    assert total(samples, requests, route="none", status="404") == 1
    verdicts = "tang_attest_verdicts_total"
    assert total(samples, verdicts, purpose="unlock", code="ok") == 1
    assert total(samples, verdicts, purpose="unlock") == 2
    assert total(samples, verdicts, purpose="enroll", code="ok") == 4  # begun and finished, twice
    assert total(samples, "tang_attest_request_seconds_count", route="unlock") == 2
    assert 0 < total(samples, "tang_attest_request_seconds_sum", route="unlock") < 60
    assert total(samples, "tang_attest_store_items_total", queue="write") == 2
    assert 1 <= total(samples, "tang_attest_store_batches_total", queue="write") <= 2
    assert total(samples, "tang_attest_devices", seen="hour") == 1
    assert total(samples, "tang_attest_devices", seen="never") == 1
    assert total(samples, "tang_attest_ready") == 1
    assert total(samples, "process_open_fds") > 3


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "400", "request-malformed"),
        (b"GET /adv HTTP/1.1\r\n\r\n", "400", "request-malformed"),
        (b"GET /adv HTTP/1.1\r\nHost: t\r\n" + b"A: %b\r\n" % (b"x" * 9000) * 4, "431", "request-too-large"),
    ],
    ids=["another protocol", "no host", "long head"],
)
async def test_an_answer_that_no_handler_gave_is_counted(
    server: Server, sent: bytes, status: str, code: str
) -> None:
    """Once, however often it is scraped."""
    async with listening(server) as port, connected(port) as (reader, writer):
        writer.write(sent)
        assert (await reader.read()).startswith(f"HTTP/1.1 {status} ".encode())
    for _ in range(2):
        samples = parse(await exposition(server))
        answers = "tang_attest_requests_total"
        assert total(samples, answers, route="none", status=status, code=code) == total(samples, answers) == 1


async def test_rounds_of_running_machines_are_counted(server: Server, attester: Attester) -> None:
    """By how they ended, though each is answered 200."""
    kid = await enroll(server, attester)
    for code in ("ok", "pcr-mismatch"):
        assert (await prove(server, attester, kid)).body["code"] == code
        samples = parse(await exposition(server))
        assert total(samples, "tang_attest_verdicts_total", purpose="verify", code=code) == 1
        attester.extend(4, b"another kernel")


async def test_devices_grow_old(server: Server, attester: Attester) -> None:
    """The last evidence of a device moves from word to word."""
    kid = await server.enroll(attester)
    assert (await server.unlock(attester, kid)).status == 200
    for step, word in (({}, "hour"), ({"hours": 2}, "day"), ({"days": 2}, "week"), ({"days": 9}, "before")):
        server.clock.advance(**step)
        samples = parse(await exposition(server))
        assert total(samples, "tang_attest_devices", seen=word) == total(samples, "tang_attest_devices") == 1


async def test_metrics_name_nobody(server: Server, attester: Attester) -> None:
    """No device, no key, no address; and what a stranger makes up is not repeated."""
    kid = await server.enroll(attester)
    await server.unlock(attester, kid)
    for target in ("/made-up", "/rec/made-up", "/attest/made-up", "/admin/v1/made-up"):
        await server.request("BREW", target)
        await server.post(target, {"made-up": 1})
    text = await exposition(server)
    assert "tang_attest_requests_total" in text
    for word in ("pi-b", kid, "127.0.0.1", "made-up", "BREW"):
        assert word not in text


async def test_a_store_that_fails_is_counted(server: Server, attester: Attester) -> None:
    """Writes that failed, and that the server is not ready; the number of devices is gone rather than old."""
    kid = await server.enroll(attester)
    challenge = await server.challenge(kid)
    await exposition(server)
    server.store._writes._queue_limit = 0
    assert (await server.unlock(attester, kid, challenge=challenge)).status == 503
    await server.store.close()
    assert (await server.unlock(attester, kid, challenge=challenge)).status == 503
    await asyncio.sleep(1.1)  # an answer is good for a second
    samples = parse(await exposition(server))
    assert total(samples, "tang_attest_ready") == 0
    assert not [name for name, _ in samples if name == "tang_attest_devices"]
    assert total(samples, "tang_attest_store_failures_total", queue="write") == 1
    assert total(samples, "tang_attest_requests_total", code="unavailable", route="unlock") == 2


async def test_healthy_and_ready(server: Server) -> None:
    """Anybody may ask; the answer is a word."""
    for target in ("/healthz", "/readyz"):
        answer = await server.request("GET", target)
        assert (answer.status, answer.body) == (200, {"code": "ok"})
        assert answer.headers["Cache-Control"] == "no-store"
    assert (await server.request("GET", "/metrics")).status == 404


@pytest.mark.parametrize("what", ["away", "schema-old", "keys"])
async def test_not_ready(server: Server, what: str) -> None:
    """503 and the code of what is missing; the process is alive all the same."""
    database = server.directory / "tang-attest.db"
    if what == "away":
        await server.store.close()
    else:
        with closing(sqlite3.connect(database)) as connection, connection:
            if what == "schema-old":
                connection.execute("UPDATE alembic_version SET version_num = '0001'")
            else:
                connection.execute("DELETE FROM sealed_key")
        connection.close()
    answer = await server.request("GET", "/readyz")
    expected = {"away": "unavailable", "schema-old": "schema-old", "keys": "state-missing"}[what]
    assert (answer.status, answer.body) == (503, {"code": expected})
    assert (await server.request("GET", "/healthz")).status == 200


async def test_an_answer_is_good_for_a_second(server: Server) -> None:
    """A client that asks all the time does not keep the database busy."""
    looked = 0
    check = server.store.check

    async def counted() -> None:
        nonlocal looked
        looked += 1
        await check()

    server.store.check = counted  # type: ignore[method-assign]
    begun = time.monotonic()
    for _ in range(20):
        assert (await server.request("GET", "/readyz")).status == 200
    assert looked <= 1 + int(time.monotonic() - begun)


def test_metrics_of_several_workers(tmp_path: Path) -> None:
    """Each worker has a port; together they have every request; a worker that dies is followed by one on its port."""
    initialize(tmp_path / "state")
    flags = ("--workers", "2", "--metrics-listen", "127.0.0.1:0", "--log-format", "json")
    with serving(tmp_path, *flags) as server:
        ports = server.listening()["metrics"]
        assert len(set(ports)) == 2
        for _ in range(20):
            assert request(server.port, "GET", "/adv")[0] == 200

        def counted() -> float:
            texts = [request(port, "GET", "/metrics")[1].decode() for port in ports]
            return sum(total(parse(text), "tang_attest_requests_total", route="adv") for text in texts)

        assert counted() == 20
        for port in ports:
            assert request(port, "GET", "/readyz") == (200, {"code": "ok"})
            assert request(port, "GET", "/adv")[0] == 404
        assert request(server.port, "GET", "/metrics")[0] == 404
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        before = set(children.read_text().split())
        os.kill(int(min(before)), signal.SIGKILL)
        deadline = time.monotonic() + PATIENCE_S
        while len(set(children.read_text().split()) - before) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert counted() <= 20  # its own numbers begin again
        server.process.send_signal(signal.SIGHUP)
        assert request(ports[0], "GET", "/healthz") == (200, {"code": "ok"})
        assert server.stop() == 0


def test_metrics_of_a_mere_tangd(tmp_path: Path) -> None:
    """Requests are counted where there is no state of ours too."""
    keys = tmp_path / "keys"
    keys.mkdir()
    flags = ("--plain-tang", "--tang-dir", keys, "--metrics-listen", "127.0.0.1:0", "--log-format", "json")
    with serving(tmp_path, *flags) as server:
        request(server.port, "GET", "/adv")
        [port] = server.listening()["metrics"]
        samples = parse(request(port, "GET", "/metrics")[1].decode())
        assert total(samples, "tang_attest_requests_total", route="adv") == 1


@pytest.mark.parametrize(
    "value", ["9750", "127.0.0.1:", "127.0.0.1:no", "127.0.0.1:99999", "nowhere.invalid:1"]
)
def test_a_wrong_address(tmp_path: Path, value: str) -> None:
    """The setting is named."""
    initialize(tmp_path / "state")
    ended = program(
        "--state", tmp_path / "state", "serve", "--port", "0", "--workers", "1", "--metrics-listen", value
    )
    assert ended.returncode == 1
    assert "metrics_listen" in ended.stderr
    assert "setting-invalid" in ended.stderr
