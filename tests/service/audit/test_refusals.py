"""Strangers do not fill the audit record, and do not hide in it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tang_attest.errors import Unavailable
from tang_attest.ports.audit import AuditEntry
from tang_attest.protocol.values.base64url import b64u
from tang_attest.service.audit.refusals import FULL_OF_ENROLLMENTS, FULL_OF_KEY, KEYS, Refusals
from tang_attest.web.gate.limits import RequestLimits
from tests.attester import Attester, members
from tests.cli.serving import program, request, serving
from tests.fakes import FakeClock
from tests.server import Server, evidence, new_x

NO_RATES = RequestLimits(address_rate=0, device_rate=0)


class Record:
    """A store that keeps audit entries, or is away."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []
        self.away = False

    async def append(self, entry: AuditEntry) -> None:
        if self.away:
            raise Unavailable("unavailable", "The database could not be used.")
        self.entries.append(entry)


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def refusals(record: Record, clock: FakeClock) -> Refusals:
    port: Any = record  # it has the one method that is used
    return Refusals(port, clock)


def refused(clock: FakeClock, kid: str | None = "kid", **fields: Any) -> AuditEntry:
    entry = AuditEntry(
        clock.now(),
        "unlock",
        "device:pi-b",
        "refused",
        "nonce-invalid",
        device="pi-b",
        kid=kid,
        address="192.0.2.1",
    )
    return replace(entry, **fields)


async def test_the_rest_becomes_a_number(refusals: Refusals, record: Record, clock: FakeClock) -> None:
    """The first are written in full; then one entry says how many more, when, from where and why."""
    for number in range(1000):
        clock.advance(milliseconds=10)
        address = f"192.0.2.{number % 40}"
        await refusals.note(
            refused(clock, address=address, code="signature-invalid" if number % 2 else "nonce-used")
        )
    assert [entry.code for entry in record.entries] == ["nonce-used", "signature-invalid"] * (
        FULL_OF_KEY // 2
    )
    await refusals.flush()
    assert len(record.entries) == FULL_OF_KEY
    clock.advance(minutes=1)
    await refusals.flush()
    summary = record.entries[-1]
    assert (summary.event, summary.actor, summary.verdict) == ("unlock", "server", "refused")
    assert (summary.code, summary.device, summary.kid) == ("too-many-requests", "pi-b", "kid")
    addresses: Any = summary.details["addresses"]
    assert summary.details["left_out"] == refusals.left_out == sum(addresses.values()) == 990
    assert summary.details["codes"] == {"nonce-used": 495, "signature-invalid": 495}
    assert (summary.details["since"], summary.details["until"]) == (
        "2026-01-01T12:00:00+00:00",
        "2026-01-01T12:00:10+00:00",
    )
    assert (len(addresses), addresses["192.0.2.10"]) == (17, 25)  # 16 of them, and the others
    await refusals.flush()
    assert record.entries[-1] is summary


async def test_a_new_minute_begins_with_full_entries(
    refusals: Refusals, record: Record, clock: FakeClock
) -> None:
    """Also when nobody flushed, and when the clock was set back."""
    for step in ({"seconds": 61}, {"hours": -2}):
        record.entries.clear()
        for _ in range(FULL_OF_KEY + 1):
            await refusals.note(refused(clock))
        clock.advance(**step)
        await refusals.note(refused(clock, code="signature-invalid"))
        assert [entry.code for entry in record.entries[-2:]] == ["too-many-requests", "signature-invalid"]
        clock.advance(minutes=2)
        await refusals.flush()


@pytest.mark.parametrize("every_s", [1, 7, 61, 600, 3600])
@pytest.mark.parametrize("kid", ["kid", None])
async def test_a_day_of_noise_is_a_hundred_entries(
    refusals: Refusals, record: Record, clock: FakeClock, every_s: int, kid: str | None
) -> None:
    """At any pace: the record cannot be shortened, so it does not grow with what strangers send."""
    for _ in range(86_400 // every_s):
        clock.advance(seconds=every_s)
        await refusals.note(refused(clock, kid))
        await refusals.flush()
    await refusals.flush(everything=True)
    assert len(record.entries) < 100
    counted: Any = [entry.details.get("left_out", 1) for entry in record.entries]
    assert sum(counted) == 86_400 // every_s


async def test_after_a_calm_it_begins_anew(refusals: Refusals, record: Record, clock: FakeClock) -> None:
    """The next incident is written in full again."""
    for _ in range(100):
        clock.advance(seconds=60)
        await refusals.note(refused(clock))
    clock.advance(hours=8)
    await refusals.flush()
    record.entries.clear()
    for _ in range(FULL_OF_KEY):
        await refusals.note(refused(clock))
    assert len(record.entries) == FULL_OF_KEY


async def test_keys_do_not_hide_each_other(refusals: Refusals, record: Record, clock: FakeClock) -> None:
    """Noise about one key takes nothing from what is written about another."""
    for _ in range(200):
        await refusals.note(refused(clock, "kid"))
    await refusals.note(refused(clock, "other"))
    assert record.entries[-1].kid == "other"


async def test_memory_is_bounded(refusals: Refusals, record: Record, clock: FakeClock) -> None:
    """The key that was quiet for longest is finished first, and what was counted of it is written."""
    for _ in range(FULL_OF_KEY + 5):
        await refusals.note(refused(clock, "first"))
    for number in range(KEYS):
        await refusals.note(refused(clock, str(number)))
    assert len(refusals._tallies) == KEYS
    [summary] = [entry for entry in record.entries if entry.code == "too-many-requests"]
    assert (summary.kid, summary.details["left_out"]) == ("first", 5)


async def test_what_was_counted_outlives_a_failure(
    refusals: Refusals, record: Record, clock: FakeClock
) -> None:
    """The number is written when the database is back, at the latest when the server stops."""
    for _ in range(FULL_OF_KEY + 7):
        await refusals.note(refused(clock))
    record.away = True
    clock.advance(minutes=1)
    with pytest.raises(Unavailable):
        await refusals.flush()
    record.away = False
    await refusals.flush(everything=True)
    assert record.entries[-1].details["left_out"] == 7


async def audited(server: Server) -> list[tuple[str, str, str]]:
    rows = await server.store.audit.list_audit(limit=1000)
    return [(entry.event, entry.verdict, entry.code) for _, entry in reversed(rows)]


async def test_bogus_evidence_and_replays(tmp_path: Path) -> None:
    """A stranger with a kid, and one with a recording: a bounded number of rows each, and the machine's own stay."""
    async with Server(tmp_path / "state", limits=NO_RATES) as server:
        attester, other = Attester(), Attester()
        kid, kid_other = await server.enroll(attester), await server.enroll(other, "pi-c")
        before = len(await audited(server))
        x = dict(members(new_x()))
        challenge = await server.challenge(kid, x)
        bogus = x | {
            "attest": {
                "nonce": challenge["nonce"],
                **dict.fromkeys(("quote", "signature", "pcrs"), b64u(b"x")),
            }
        }
        for _ in range(60):
            answer = await server.post(f"/rec/{kid}", bogus)
            assert answer.status in (400, 403)
        assert (await server.unlock(attester, kid)).status == 200
        good = await server.unlock(other, kid_other)
        assert good.status == 200
        rows = await audited(server)
        assert len(rows) - before == FULL_OF_KEY + 2
        assert rows[-2:] == [("unlock", "permitted", "ok")] * 2
        await server.refusals.flush(everything=True)
        assert (await audited(server))[-1] == ("unlock", "refused", "too-many-requests")
        assert (await server.store.audit.list_audit(limit=1))[0][1].details["left_out"] == 50


async def test_replays_are_counted_too(tmp_path: Path) -> None:
    """A recorded unlock that is sent again and again: as many rows as of any other refusal."""
    async with Server(tmp_path / "state", limits=NO_RATES) as server:
        attester = Attester()
        kid = await server.enroll(attester)
        x = dict(members(new_x()))
        recorded = x | {"attest": evidence(attester, kid, x, await server.challenge(kid))}
        assert (await server.post(f"/rec/{kid}", recorded)).status == 200
        before = len(await audited(server))
        for _ in range(40):
            answer = await server.post(f"/rec/{kid}", recorded)
            assert (answer.status, answer.code) == (403, "nonce-used")
        assert (await audited(server))[before:] == [("unlock", "refused", "nonce-used")] * FULL_OF_KEY
        await server.refusals.flush(everything=True)
        summary = (await server.store.audit.list_audit(limit=1))[0][1]
        assert summary.details["codes"] == {"nonce-used": 30}


async def test_strangers_who_enroll(tmp_path: Path) -> None:
    """Without a token and under any name: as many rows as for one key, however many names."""
    async with Server(tmp_path / "state", limits=NO_RATES) as server:
        attester = Attester()
        before = len(await audited(server))
        for number in range(FULL_OF_ENROLLMENTS + 20):
            answer = await server.begin(attester, f"pi-{number}", "A" * 43)
            assert (answer.status, answer.code) == (403, "token-invalid")
        assert len(await audited(server)) - before == FULL_OF_ENROLLMENTS
        await server.refusals.flush(everything=True)
        _, summary = (await server.store.audit.list_audit(limit=1))[0]
        assert (summary.device, summary.details["codes"]) == (None, {"token-invalid": 20})


async def test_a_server_that_stops_writes_what_it_counted(tmp_path: Path) -> None:
    """Nothing is forgotten at a regular end."""
    async with Server(tmp_path / "state", limits=NO_RATES) as server:
        kid = await server.enroll(Attester())
    x = dict(members(new_x()))
    bogus = x | {"attest": {"nonce": "A" * 64, **dict.fromkeys(("quote", "signature", "pcrs"), b64u(b"x"))}}
    with serving(tmp_path, "--log-level", "error") as process:
        for _ in range(FULL_OF_KEY + 3):
            assert request(process.port, "POST", f"/rec/{kid}", bogus)[0] in (400, 403)
        assert process.stop() == 0
    listed = json.loads(program("--state", tmp_path / "state", "audit", "--json").stdout)
    [summary] = [entry for entry in listed if entry["code"] == "too-many-requests"]
    assert summary["details"]["left_out"] == 3
    assert summary["details"]["addresses"] == {"127.0.0.1": 3}
