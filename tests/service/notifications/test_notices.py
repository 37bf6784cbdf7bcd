"""Notifications of a whole server: each event once, grouped for a fleet, and never because of an unauthenticated client."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tang_attest.config import Settings
from tang_attest.errors import Unavailable
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.notices import NoticeKind, Occurrence
from tang_attest.ports.rounds import RoundRecord
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.server.notify.receivers import receivers
from tang_attest.service.notifications import follow
from tang_attest.service.notifications.deliver import TRIES, Deliveries, Receiver
from tang_attest.service.notifications.events import event_of
from tang_attest.service.notifications.follow import NoticeFollower
from tang_attest.service.notifications.grouping import GROUPS, PAUSE, WAITING
from tang_attest.service.notifications.message import compose
from tests.attester import Attester
from tests.server import Server
from tests.service.notifications.receiving import WebInbox, web_inbox

SECRET = b"sixteen bytes or more"
EVERY_KIND = tuple(NoticeKind)


class Office:
    """A server, a web server that is notified, and the periodic work, which tests do themselves."""

    def __init__(self, server: Server, inbox: WebInbox, known: Mapping[str, Receiver]) -> None:
        self.server, self.inbox, self.known = server, inbox, known
        self.follower = self.another_follower()
        self.deliveries = Deliveries(server.store, server.clock, known)

    def another_follower(self) -> NoticeFollower:
        """As another worker, or this one after a restart, has it."""
        composed = partial(compose, server="tang-1", url="https://console.example/")
        wanted = dict.fromkeys(self.known, EVERY_KIND)
        return NoticeFollower(self.server.store, self.server.clock, wanted, composed)

    async def work(self, *, seconds: float = 6) -> list[dict[str, Any]]:
        """Let time pass and the periodic work be done; return the messages that came."""
        before = len(self.inbox.bodies)
        await self.follower.round()
        self.server.clock.advance(seconds=seconds)
        await self.follower.round()
        await self.deliveries.round()
        await self.deliveries.settle()
        return self.inbox.bodies[before:]

    async def refused(self, name: str, what: bytes = b"another kernel", **terms: Any) -> tuple[Attester, str]:
        """A machine whose boot is refused, and its kid."""
        attester = Attester()
        kid = await self.server.enroll(attester, name, **terms)
        attester.extend(4, what)
        await self.server.unlock(attester, kid)
        return attester, kid

    async def audited(self) -> list[tuple[str, str, Any]]:
        """Outcomes of deliveries, oldest first."""
        rows = [entry for _, entry in await self.server.store.audit.list_audit() if entry.event == "notify"]
        return [(row.verdict, row.code, row.details["receiver"]) for row in reversed(rows)]


@pytest_asyncio.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """The receiver ``hub`` is a web server."""
    (tmp_path / "secret").write_bytes(SECRET)
    async with AsyncExitStack() as stack:
        inbox = await stack.enter_async_context(web_inbox())
        server = await stack.enter_async_context(Server(tmp_path / "state"))
        settings = Settings(
            state=tmp_path,
            webhook_secret=tmp_path / "secret",
            notify={"hub": {"kind": "webhook", "url": inbox.url}},
        )
        office = Office(server, inbox, receivers(settings))
        await office.follower.begin()
        yield office
        await office.deliveries.close()


async def test_a_refused_boot_is_told_once(office: Office) -> None:
    """With the machine, the code and the page, without values; the machine goes on trying, and nothing more comes."""
    attester, kid = await office.refused("pi-b")
    (message,) = await office.work()
    assert (message["event"], message["names"], message["count"]) == ("boot", ["pi-b"], 1)
    assert message["sentence"] == "The boot was refused in PCR 4 (pcr-mismatch), and waits at its prompt."
    assert "'tang-attest approve pi-b'" in message["action"]
    assert (message["url"], message["server"]) == (
        "https://console.example/machines/pi-b/refusal",
        "tang-1",
    )
    assert re.search(r"[0-9a-f]{64}", str(message)) is None
    for _ in range(12):
        await office.server.unlock(attester, kid)
        assert await office.work(seconds=30) == []
    assert await office.audited() == [("done", "ok", "hub")]


async def test_a_machine_that_comes_again_is_told_again(office: Office) -> None:
    """After it was quiet for long, the same difference is a new event."""
    attester, kid = await office.refused("pi-b")
    assert len(await office.work()) == 1
    assert await office.work(seconds=3600) == []
    await office.server.unlock(attester, kid)
    (message,) = await office.work()
    assert message["names"] == ["pi-b"]


async def test_a_fleet_is_one_message_and_a_later_count(office: Office) -> None:
    """Machines with the same difference; those that come later are counted after a pause, once."""
    for number in range(5):
        await office.refused(f"pi-{number}")
    (message,) = await office.work()
    assert (message["count"], message["update"], len(message["names"])) == (5, False, 5)
    assert message["title"] == "5 machines: a refused boot waits"
    for number in range(5, 9):
        await office.refused(f"pi-{number}")
    assert await office.work() == []
    (later,) = await office.work(seconds=PAUSE.total_seconds())
    assert (later["count"], later["update"]) == (9, True)
    assert later["id"] != message["id"]
    assert await office.work(seconds=PAUSE.total_seconds()) == []


async def test_another_difference_is_another_message(office: Office) -> None:
    """An attacker's machine does not hide behind an update of the fleet."""
    await office.refused("pi-1")
    await office.refused("pi-2")
    await office.refused("pi-3", b"an evil kernel")
    assert sorted(message["count"] for message in await office.work()) == [1, 2]


async def test_any_number_of_differences_is_bounded(office: Office) -> None:
    """One machine can show as many as it likes."""
    attester, kid = await office.refused("pi-1")
    for number in range(GROUPS + 5):
        attester.extend(4, f"{number}".encode())
        await office.server.unlock(attester, kid)
    messages = await office.work()
    assert len(messages) == GROUPS + 1
    assert any("each different" in message["sentence"] for message in messages)


async def test_an_unauthenticated_client_sends_nobody_a_message(office: Office) -> None:
    """Evidence of another TPM under a machine's kid is refused, recorded, and no event."""
    attester = Attester()
    kid = await office.server.enroll(attester, "pi-b")
    assert (await office.server.unlock(Attester(), kid)).code == "signature-invalid"
    assert await office.work() == []


async def test_workers_and_restarts_tell_once(office: Office) -> None:
    """Two followers look at the same entries, and a third one begins later."""
    other = office.another_follower()
    await office.refused("pi-b")
    for _ in range(3):
        await asyncio.gather(office.follower.round(), other.round())
    office.server.clock.advance(seconds=6)
    await asyncio.gather(office.follower.round(), other.round(), office.another_follower().round())
    both = Deliveries(office.server.store, office.server.clock, office.known)
    await asyncio.gather(office.deliveries.round(), both.round())
    await asyncio.gather(office.deliveries.settle(), both.settle())
    assert len(office.inbox.bodies) == 1
    restarted = office.another_follower()
    await restarted.begin()
    await restarted.round()
    assert await office.work() == []


async def test_what_happened_before_is_no_news(tmp_path: Path) -> None:
    """The first start with a receiver does not tell the past."""
    async with Server(tmp_path / "state") as server, web_inbox() as inbox:
        office = Office(server, inbox, {})
        await office.refused("pi-b")
        await office.follower.begin()
        await office.work()
        assert await server.store.notices.list_due_receivers(server.clock.now()) == []


async def test_an_unlock_that_waits_for_a_person(office: Office) -> None:
    """One message, although the machine asks again and again."""
    attester = Attester()
    kid = await office.server.enroll(attester, "pi-b")
    device = await office.server.devices._store.get_device("pi-b")
    from tang_attest.protocol.conditions import Conditions

    await office.server.conditions.set(device.policy, Conditions(approval=True))
    for _ in range(3):
        assert (await office.server.unlock(attester, kid)).code == "approval-required"
    (message,) = await office.work()
    assert (message["event"], message["names"]) == ("unlock", ["pi-b"])
    assert "device allow pi-b" in message["action"]


async def test_each_suspension_is_an_event(office: Office) -> None:
    """Suspended, resumed, and suspended again: twice, and without the operator's words."""
    await office.server.enroll(Attester(), "pi-b")
    await office.server.devices.suspend("pi-b", "a secret reason")
    (message,) = await office.work()
    assert (message["event"], message["names"]) == ("suspension", ["pi-b"])
    assert "secret" not in str(message)
    await office.server.devices.resume("pi-b")
    await office.server.devices.suspend("pi-b", "again")
    (again,) = await office.work(seconds=PAUSE.total_seconds())
    assert (again["update"], again["count"]) == (True, 1)


async def test_a_silent_machine(office: Office) -> None:
    """Once, when it falls silent."""
    await office.server.enroll(Attester(), "pi-b")
    device = await office.server.store.devices.get_device("pi-b")
    for _ in range(3):
        await office.server.store.rounds.record_round(
            RoundRecord(
                device_id=device.id,
                at=office.server.clock.now(),
                outcome=RoundOutcome.UNREACHABLE,
                code="device-unreachable",
                details={},
                silent_since=office.server.clock.now() + timedelta(seconds=1),
            )
        )
    (message,) = await office.work()
    assert (message["event"], message["names"]) == ("silence", ["pi-b"])


class Faulty:
    """A receiver that hangs, or refuses."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs, self.tried = hangs, 0
        self.release = asyncio.Event()

    async def send(self, message: Mapping[str, object]) -> None:
        """Count a try."""
        self.tried += 1
        if self.hangs:
            await self.release.wait()
        raise Unavailable("notify-failed", "It refused.")


async def test_a_receiver_that_hangs_delays_nobody(office: Office) -> None:
    """The others get every message meanwhile, and the server stops without waiting for it."""
    hanging = Faulty(hangs=True)
    office.known = {**office.known, "stuck": hanging}
    office.follower, office.deliveries = (
        office.another_follower(),
        Deliveries(office.server.store, office.server.clock, office.known),
    )
    for number in range(3):
        await office.refused(f"pi-{number}", f"{number}".encode())
        await office.follower.round()
        office.server.clock.advance(seconds=6)
        await office.follower.round()
        await office.deliveries.round()
        await asyncio.wait_for(office.inbox.has(number + 1), 120)
    assert hanging.tried == 1
    await office.deliveries.close()


async def test_a_message_is_tried_again_and_then_given_up(office: Office) -> None:
    """Later and later, a bounded number of times; the record says so, and then others follow."""
    refusing = Faulty()
    office.known = {"down": refusing}
    office.follower, office.deliveries = (
        office.another_follower(),
        Deliveries(office.server.store, office.server.clock, office.known),
    )
    await office.refused("pi-b")
    await office.work()
    assert refusing.tried == 1
    await office.work(seconds=1)
    assert refusing.tried == 1
    for _ in range(3 * TRIES):
        await office.work(seconds=3600)
    assert refusing.tried == TRIES
    assert await office.audited() == [("refused", "notify-failed", "down")]


async def test_a_backlog_is_bounded(office: Office) -> None:
    """The oldest messages go first."""
    store, now = office.server.store, office.server.clock.now()
    for number in range(WAITING + 7):
        await store.notices.update_notices(
            lambda book, number=number: book.send("hub", {"number": number}, now, WAITING)  # type: ignore[misc]
        )
    first = await store.notices.claim_delivery("hub", now, now + timedelta(minutes=1))
    assert first is not None
    assert first.message == {"number": 7}


async def test_a_server_that_died_leaves_its_message_to_another(office: Office) -> None:
    """Once its time is over; and of two that look at once, one has it."""
    store, now = office.server.store, office.server.clock.now()
    await store.notices.update_notices(lambda book: book.send("hub", {"number": 1}, now, WAITING))
    until = now + timedelta(minutes=2)
    taken = await asyncio.gather(*(store.notices.claim_delivery("hub", now, until) for _ in range(4)))
    assert sum(each is not None for each in taken) == 1
    assert await store.notices.claim_delivery("hub", until - timedelta(seconds=1), until) is None
    assert await store.notices.claim_delivery("hub", until, until + timedelta(minutes=2)) is not None


async def test_events_beside_the_record(office: Office) -> None:
    """An event that is remembered is told once, whatever number of workers report it."""
    now = office.server.clock.now()
    event = Occurrence(
        kind=NoticeKind.CERTIFICATE,
        key="certificate x",
        subject="tls_certificate",
        at=now,
        sentence="The certificate expires.",
        action="Renew it.",
        known_until=now + timedelta(days=90),
    )
    await office.follower.report([event])
    await office.another_follower().report([event])
    (message,) = await office.work()
    assert message["title"] == "tls_certificate: a certificate ends"
    for _ in range(3):
        later = office.server.clock.now()
        await office.follower.report(
            [Occurrence(**{name: getattr(event, name) for name in event.__slots__} | {"at": later})]
        )
        assert await office.work(seconds=3600) == []


async def test_a_damaged_entry_ends_no_later_message(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    """It is skipped, said once and counted, and no turn is made again because of it."""
    await office.refused("pi-1")
    await office.server.store.audit.append(
        AuditEntry(office.server.clock.now(), "unlock", "x", "refused", "pcr-mismatch")
    )
    with closing(sqlite3.connect(office.server.directory / "tang-attest.db")) as connection, connection:
        connection.execute("UPDATE audit SET details = 'not JSON' WHERE actor = 'x'")
    await office.refused("pi-2", b"a second kernel")
    assert sorted(message["names"] for message in await office.work()) == [["pi-1"], ["pi-2"]]
    await office.refused("pi-3", b"a third kernel")
    assert [message["names"] for message in await office.work()] == [["pi-3"]]
    assert caplog.text.count("of table audit was not written by this server.") == 1
    assert office.server.store.tampered()["audit"] == 1
    assert office.server.site.metrics is not None
    assert (
        'tang_attest_registry_tampered_total{table="audit"} 1.0'
        in (await office.server.site.metrics.text()).decode()
    )


async def test_an_entry_that_makes_no_sense_ends_no_later_message(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in reading one entry is logged, and the entries after it make messages."""
    read = event_of

    def failing(number: int, entry: AuditEntry) -> Occurrence | None:
        if entry.device == "pi-1":
            raise RecursionError
        return read(number, entry)

    monkeypatch.setattr(follow, "event_of", failing)
    await office.refused("pi-1")
    await office.refused("pi-2", b"another kernel")
    assert [message["names"] for message in await office.work()] == [["pi-2"]]
