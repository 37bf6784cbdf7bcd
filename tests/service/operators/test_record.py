"""The record proves who signed what: a forged, altered or repeated act shows, whoever changed the row."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tang_attest.ports.notices import Occurrence
from tang_attest.ports.operators import OperatorRole, Passkey
from tang_attest.protocol.audit_chain import KEY_LABEL
from tang_attest.protocol.passkeys.record import SignatureCheck
from tang_attest.protocol.passkeys.registered import Registrations, SignerKey
from tang_attest.protocol.passkeys.text import read_text
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.server.audit.archiving import archive
from tang_attest.server.checkup import check_record
from tang_attest.server.compose import World as Outside
from tang_attest.server.notify.watch import RecordCheck
from tang_attest.service.audit.actors import Author
from tang_attest.service.audit.chain import AuditSealer
from tang_attest.service.operators.acts import (
    AllowUnlock,
    ApproveBoots,
    IssueToken,
    RemoveDevice,
    ResumeDevice,
)
from tang_attest.store.database import authentic, tables
from tang_attest.store.records.operators import passkeys
from tests.fakes import RealRandomness
from tests.server import Server
from tests.service.operators.conftest import Console, code_of
from tests.service.operators.test_signed_acts import Signer, require
from tests.service.policies.test_approve import World


async def codes(server: Server) -> list[str]:
    """Codes of the findings of ``audit verify``; rows that nobody sealed yet are of now."""
    check = await check_record(server.installation, lambda _done, _all: None, None)
    return [reason.code for reason in check.reasons if reason.code != "audit-unsealed"]


def alter(server: Server, event: str, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Change the newest row of *event*, as somebody with the database can before it is sealed; return it as it was."""
    with closing(sqlite3.connect(server.directory / "tang-attest.db")) as connection, connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM audit WHERE event = ? ORDER BY id DESC LIMIT 1"
        row = dict(connection.execute(query, (event,)).fetchone())
        kept = dict(row)
        row["details"] = json.loads(row["details"])
        change(row)
        row["details"] = json.dumps(row["details"], separators=(",", ":"))
        sets = ", ".join(f"{name} = :{name}" for name in row)
        connection.execute(f"UPDATE audit SET {sets} WHERE id = :id", row)  # noqa: S608 - names of columns
        return kept


def put_back(server: Server, row: dict[str, Any]) -> None:
    """Give a row its old contents."""
    sets = ", ".join(f"{name} = :{name}" for name in row)
    with closing(sqlite3.connect(server.directory / "tang-attest.db")) as connection, connection:
        connection.execute(f"UPDATE audit SET {sets} WHERE id = :id", row)  # noqa: S608 - names of columns


def copy(server: Server, event: str, /, **changes: Any) -> None:
    """Add a copy of the newest row of *event*."""
    with closing(sqlite3.connect(server.directory / "tang-attest.db")) as connection, connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT * FROM audit WHERE event = ? ORDER BY id DESC LIMIT 1"
        row = dict(connection.execute(query, (event,)).fetchone()) | changes
        del row["id"]
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        connection.execute(f"INSERT INTO audit ({names}) VALUES ({values})", row)  # noqa: S608 - likewise


async def all_acts(world: World, console: Console) -> Signer:
    """Each kind of act once, signed by *alice*."""
    alice = await Signer.enter(console, "alice")
    await alice.sign(ApproveBoots(boots=(("pi-b", 1),), once=True, minutes=30, only_this_device=True))
    await world.server.devices.suspend("pi-b", "lost")
    await alice.sign(ResumeDevice("pi-b"))
    await alice.sign(AllowUnlock("pi-b", 30))
    await alice.sign(IssueToken(name="pi-c", policy="pi-b", labels=("b", "a"), machines=1))
    return alice


async def test_acts_are_verified(world: World, console: Console) -> None:
    """After they were done, and after the operator was removed; sign-ins need no signature."""
    alice = await all_acts(world, console)
    await alice.sign(RemoveDevice("pi-b"))
    await console.sign_in.sign_out(alice.session)
    assert await codes(world.server) == []
    await world.server.operators.remove("alice")
    check = await check_record(world.server.installation, lambda _done, _all: None, None)
    assert (check.signed, [r.code for r in check.reasons if r.code != "audit-unsealed"]) == (5, [])


def _signature(row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = row["details"]["signed"][-1]
    return found


def _flip(member: str) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        data = bytearray(unb64u(_signature(row)[member]))
        data[-1] ^= 1
        _signature(row)[member] = b64u(bytes(data))

    return change


def _text(**members: Any) -> Callable[[dict[str, Any]], None]:
    def change(row: dict[str, Any]) -> None:
        text = read_text(_signature(row)["text"])
        _signature(row)["text"] = replace(text, **members).dump()

    return change


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "values": ("policy state add", lambda row: row["details"]["values"].update({"4": "00" * 32})),
    "policy": ("policy state add", lambda row: row["details"].update(policy="other")),
    "device": ("policy state add", lambda row: row.update(device="pi-x")),
    "no limit": ("policy state add", lambda row: row["details"].update(uses=None)),
    "for everybody": ("policy state add", lambda row: row["details"].update(device=None)),
    "for ever": ("policy state add", lambda row: row["details"].update(expires_at=None)),
    "longer": ("device allow", lambda row: row["details"].update(until="2030-01-01T00:00:00+00:00")),
    "another time": ("device allow", lambda row: row.update(at=row["at"] + 3_600_000_000)),
    "another event": ("device allow", lambda row: row.update(event="device remove")),
    "another operator": ("device allow", lambda row: row.update(actor="console:bob")),
    "another machine": ("device resume", lambda row: row.update(device="pi-x")),
    "no signature": ("device resume", lambda row: row["details"].pop("signed")),
    "empty signatures": ("device resume", lambda row: row["details"].update(signed=[])),
    "no list": ("device resume", lambda row: row["details"].update(signed="x")),
    "no object": ("device resume", lambda row: row["details"].update(signed=[7])),
    "no details": ("device resume", lambda row: row.update(details=[])),
    "twice the same": ("device resume", lambda row: row["details"]["signed"].append(_signature(row))),
    "labels": ("token create", lambda row: row["details"].update(labels=["c"])),
    "machines": ("token create", lambda row: row["details"].update(machines=100)),
    "unverified": ("token create", lambda row: row["details"].update(allow_unverified_ek=True)),
    "signature": ("device resume", _flip("signature")),
    "client data": ("device resume", _flip("client_data")),
    "authenticator data": ("device resume", _flip("authenticator_data")),
    "credential": ("device resume", _flip("credential")),
    "text": ("device resume", _text(subject={"act": "resume", "device": "pi-x"})),
    "text's operator": ("device resume", _text(operator="bob")),
    "text's nonce": ("device resume", _text(nonce="AAAA")),
    "text's console": ("device resume", _text(console="https://evil.example")),
}


async def test_an_altered_act_shows(world: World, console: Console) -> None:
    """One finding each, about the entry."""
    await all_acts(world, console)
    found = {}
    for name, (event, change) in CHANGES.items():
        kept = alter(world.server, event, change)
        found[name] = await codes(world.server)
        put_back(world.server, kept)
    assert found == {name: ["act-forged"] for name in CHANGES}
    assert await codes(world.server) == []


async def test_an_act_that_nobody_signed_shows(world: World, console: Console) -> None:
    """In a console operator's name; and with the signature of another act."""
    await all_acts(world, console)
    copy(world.server, "device resume", event="device remove")
    copy(world.server, "device resume", details="{}")
    copy(world.server, "device resume", details="no json")
    assert await codes(world.server) == ["act-forged"] * 3


async def test_a_repeated_act_shows(world: World, console: Console) -> None:
    """The same entry again, a moment later."""
    await all_acts(world, console)
    copy(world.server, "device allow")
    assert await codes(world.server) == ["act-reused"]


async def test_a_sealed_forgery_shows(world: World, console: Console) -> None:
    """The chain's seals are made with the kek; an attacker with it cannot make an operator's signature."""
    await all_acts(world, console)
    copy(world.server, "device resume", event="device remove")
    key = world.server.secret.derive(KEY_LABEL)
    assert await AuditSealer(world.server.store.audit, key, world.server.clock).round(last=True)
    assert await codes(world.server) == ["act-forged"]


async def test_signatures_in_archives_are_verified(world: World, console: Console, tmp_path: Path) -> None:
    """With the database, which has the public keys; an act that was archived is not repeated afterwards."""
    alice = await all_acts(world, console)
    server = world.server
    sealer = AuditSealer(server.store.audit, server.secret.derive(KEY_LABEL), server.clock)
    await sealer.round(last=True)
    with closing(sqlite3.connect(server.directory / "tang-attest.db")) as connection:
        row = connection.execute("SELECT * FROM audit WHERE event = 'device allow'").fetchone()
    console.clock.advance(minutes=1)
    await server.operators.add("bob", OperatorRole.VIEWER)
    await sealer.round(last=True)
    file = tmp_path / "old.gz"
    outside = Outside(clock=server.clock, random=RealRandomness(), operator="tester")
    before = server.clock.now() - timedelta(seconds=30)
    done = await archive(server.settings, file, before, outside, lambda _done, _all: None)
    assert done.archive is not None
    alone = await check_record(server.installation, lambda _done, _all: None, None)
    assert (alone.signed, [r.code for r in alone.reasons if r.code != "audit-unsealed"]) == (0, [])
    whole = await check_record(server.installation, lambda _done, _all: None, None, [file])
    assert (whole.signed, [r.code for r in whole.reasons if r.code != "audit-unsealed"]) == (4, [])
    await alice.sign(AllowUnlock("pi-b", 5))  # the entry that registers the passkey is in the archive
    for files, signed in (((), 1), ((file,), 5)):
        later = await check_record(server.installation, lambda _done, _all: None, None, files)
        found = [r.code for r in later.reasons if r.code != "audit-unsealed"]
        assert (later.signed, found) == (signed, [])
    with closing(sqlite3.connect(server.directory / "tang-attest.db")) as connection, connection:
        marks = ", ".join("?" for _ in row)
        connection.execute(f"INSERT INTO audit VALUES ({marks})", (row[0] + 1000, *row[1:]))  # noqa: S608
    again = await check_record(server.installation, lambda _done, _all: None, None, [file])
    assert [r.code for r in again.reasons if r.code != "audit-unsealed"] == ["act-reused"]


@pytest.mark.parametrize("value", [7, None, [], {}, "x", b"x"])
def test_a_row_of_anything_is_looked_at(value: Any) -> None:
    """A hostile archive or database has any value in any column."""
    row = [1, 1, "device allow", "console:alice", "done", "ok", "pi-b", None, None, None, "{}"]
    for column in range(len(row)):
        SignatureCheck({}).look([*row[:column], value, *row[column + 1 :]])
    assert SignatureCheck({}).look([value]) is None


async def test_a_forged_passkey_verifies_nothing(world: World, console: Console) -> None:
    """A public key that somebody wrote into the database is no operator's; nor does it sign in."""
    alice = await all_acts(world, console)
    mallory = Signer(console, "alice", type(alice.passkey)(), alice.session)
    with closing(sqlite3.connect(world.server.directory / "tang-attest.db")) as connection, connection:
        connection.execute("UPDATE passkey SET public_key = ?", (mallory.passkey.cose,))
    found = await codes(world.server)
    assert found == ["act-forged"] * 4 + ["registry-tampered"]
    mallory.passkey.credential_id, mallory.passkey.handle = alice.passkey.credential_id, None
    credential = mallory.passkey.get(await console.sign_in.assertion_options())
    assert await code_of(console.sign_in.sign_in(credential)) == "registry-tampered"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE operator SET role = 'admin'",
        "UPDATE operator SET removed_at = 1",
        "UPDATE operator_session SET operator = 'bob'",
        "UPDATE operator_session SET created_at = created_at + 1",
        "UPDATE operator_session SET used_at = used_at + 1",
    ],
)
async def test_a_forged_operator_or_session_decides_nothing(
    world: World, console: Console, statement: str
) -> None:
    """More rights, or a longer session, by the database alone."""
    await console.register("bob", "admin")
    passkey = await console.register("alice", "viewer")
    secret, _ = await console.sign_in.sign_in(passkey.get(await console.sign_in.assertion_options()))
    assert await code_of(console.sign_in.session(secret)) == "ok"
    with closing(sqlite3.connect(world.server.directory / "tang-attest.db")) as connection, connection:
        connection.execute(statement)
    assert await code_of(console.sign_in.session(secret)) == "registry-tampered"


async def test_two_signatures_are_verified(world: World, console: Console) -> None:
    """Both are needed: the entry without one of them, or with another's, shows."""
    await require(world, 2)
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob")
    act = ApproveBoots(boots=(("pi-b", 1),))
    await alice.sign(act)
    console.clock.advance(hours=20)
    bob.session = await console.enter(bob.passkey)
    await bob.sign(act)
    check = await check_record(world.server.installation, lambda _done, _all: None, None)
    assert (check.signed, [r.code for r in check.reasons if r.code != "audit-unsealed"]) == (2, [])
    alter(world.server, "policy state add", lambda row: row["details"]["signed"].reverse())
    assert await codes(world.server) == ["act-forged"]


async def forge(server: Server, work: Callable[[sa.Connection], object], event: str = "tool") -> None:
    """Do *work* with the kek, so that its rows have valid seals; the record has another reason for it."""
    await server.store.operators._change(
        work, Author.operator("root").entry(server.clock.now(), event, None, {})
    )


async def named(server: Server) -> list[tuple[str, str]]:
    """Codes and sentences of the findings of ``audit verify``."""
    check = await check_record(server.installation, lambda _done, _all: None, None)
    return [(each.code, each.sentence) for each in check.reasons if each.code != "audit-unsealed"]


async def test_a_passkey_that_no_entry_registers_signs_nothing(world: World, console: Console) -> None:
    """Somebody with the kek adds a passkey to an operator; the row and each act that it signs are named."""
    alice = await all_acts(world, console)
    assert await named(world.server) == []
    mallory = Signer(console, "alice", type(alice.passkey)(), alice.session)
    row = Passkey(
        credential_id=mallory.passkey.credential_id,
        operator="alice",
        public_key=mallory.passkey.cose,
        sign_count=0,
        created_at=console.clock.now(),
    )
    await forge(world.server, lambda connection: passkeys.add(connection, row))
    await mallory.sign(AllowUnlock("pi-b", 30))
    (first, of_row), (second, of_act) = await named(world.server)
    assert (first, second) == ("registry-tampered", "act-forged")
    assert "of 'alice' is not the one that an entry registers" in of_row
    assert "'device allow' by console:alice: no entry registers the passkey" in of_act


async def test_a_passkey_whose_key_was_exchanged_shows(world: World, console: Console) -> None:
    """With a valid seal: the record has the public key that was registered."""
    alice = await Signer.enter(console, "alice")
    mallory = Signer(console, "alice", type(alice.passkey)(), alice.session)
    mallory.passkey.credential_id = alice.passkey.credential_id
    changes = {"public_key": mallory.passkey.cose}
    where = tables.passkey.c.operator == "alice"
    await forge(world.server, lambda connection: authentic.update(connection, tables.passkey, where, changes))
    await mallory.sign(AllowUnlock("pi-b", 30))
    assert [code for code, _ in await named(world.server)] == ["registry-tampered", "act-forged"]


async def test_a_registration_without_a_link_shows(world: World, console: Console) -> None:
    """An entry that registers a passkey takes a link, which an entry of `operator add` or `reset` makes."""
    alice = await Signer.enter(console, "alice")
    mallory = type(alice.passkey)()
    row = Passkey(
        credential_id=mallory.credential_id,
        operator="alice",
        public_key=mallory.cose,
        sign_count=0,
        created_at=console.clock.now(),
    )
    details = {"credential": b64u(mallory.credential_id), "public_key": b64u(mallory.cose)}
    entry = Author.at_console("alice", None).entry(console.clock.now(), "operator register", None, details)
    await world.server.store.operators._change(lambda connection: passkeys.add(connection, row), entry)
    ((code, sentence),) = await named(world.server)
    assert code == "act-forged"
    assert "'operator register' by console:alice: no link was made for it" in sentence


async def test_a_passkey_that_was_revoked_signs_nothing(world: World, console: Console) -> None:
    """Also if its row says otherwise: the record has the entry that revoked it.  A new passkey signs."""
    alice = await all_acts(world, console)
    link = await world.server.operators.reset("alice")
    again = type(alice.passkey)()
    await console.sign_in.register(
        link.token, again.create(await console.sign_in.registration_options(link.token))
    )
    renewed = Signer(console, "alice", again, await console.enter(again))
    await renewed.sign(AllowUnlock("pi-b", 5))
    assert await named(world.server) == []
    where = tables.passkey.c.credential_id == alice.passkey.credential_id
    changes = {"revoked_at": None}
    await forge(world.server, lambda connection: authentic.update(connection, tables.passkey, where, changes))
    alice.session = renewed.session
    await alice.sign(AllowUnlock("pi-b", 30))
    (first, of_row), (second, of_act) = await named(world.server)
    assert (first, second) == ("registry-tampered", "act-forged")
    assert "was revoked, and its row is not" in of_row
    assert "the passkey that signed it was revoked before" in of_act


async def test_signed_acts_raise_no_alarm(world: World, console: Console) -> None:
    """The server's own check of the record knows the operators' passkeys, and tells of a forged act."""
    await all_acts(world, console)
    sealer = AuditSealer(world.server.store.audit, world.server.secret.derive(KEY_LABEL), world.server.clock)
    await sealer.round(last=True)
    told: list[Occurrence] = []

    async def report(events: Sequence[Occurrence]) -> None:
        told.extend(events)

    watch = RecordCheck(world.server.installation, report)
    await watch.round()
    assert told == []
    copy(world.server, "device resume", event="device remove")
    await sealer.round(last=True)
    console.clock.advance(hours=7)
    await watch.round()
    assert [event.sentence.endswith("(act-forged)") for event in told] == [True]


def test_a_passkey_of_an_archive_is_revoked_after_it() -> None:
    """Without the file, its row says when it was made; an entry that revokes it counts all the same."""
    made, unread = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    keys = {b"old": SignerKey("alice", b"key", made, None)}
    found = Registrations()
    act = {"event": "device allow", "actor": "console:alice"}
    found.use({"id": 10, **act}, b"old", "a nonce")
    assert list(found.findings(keys, unread)) == []
    assert [each.code for each in found.findings(keys, None)] == ["registry-tampered", "act-forged"]
    found.note({"id": 11, "event": "operator reset", "actor": "operator:root"}, unread, {"name": "alice"})
    found.use({"id": 12, **act}, b"old", "another nonce")
    found.use({"id": 13, **act}, b"old", "a nonce")
    named = [(each.code, dict(each.data).get("entry")) for each in found.findings(keys, unread)]
    assert named == [("registry-tampered", None), ("act-forged", 12)]


def test_an_archive_that_is_missing_between_two_others() -> None:
    """Entries before and after it were read: they neither revoke what it registers nor lack the link that it has."""
    day, unread = timedelta(days=1), datetime(2026, 2, 1, tzinfo=UTC)
    keys = {
        b"second": SignerKey("alice", b"key", unread - day, None),
        b"third": SignerKey("alice", b"other", unread + timedelta(minutes=10), None),
    }
    act = {"event": "device allow", "actor": "console:alice"}

    def registered(number: int, credential: bytes, key: bytes, at: datetime) -> None:
        details = {"credential": b64u(credential), "public_key": b64u(key)}
        found.note({"id": number, "event": "operator register", "actor": "console:alice"}, at, details)

    found = Registrations()
    # The first file: a link, a passkey, and their end.
    found.note(
        {"id": 1, "event": "operator add", "actor": "operator:root"}, unread - 9 * day, {"name": "alice"}
    )
    registered(2, b"first", b"gone", unread - 9 * day)
    found.note(
        {"id": 3, "event": "operator reset", "actor": "operator:root"}, unread - 8 * day, {"name": "alice"}
    )
    registered(4, b"next", b"gone too", unread - 8 * day)
    # The second is missing: it has the passkey "second", and the link of "third". Then the third.
    found.use({"id": 30, **act}, b"second", "a nonce")
    registered(31, b"third", b"other", unread + timedelta(minutes=10))
    found.use({"id": 32, **act}, b"third", "another nonce")
    assert list(found.findings(keys, unread)) == []
    # With every file read, each of these is a fault; and so is what comes later than the missing one.
    assert {each.code for each in found.findings(keys, None)} == {"registry-tampered", "act-forged"}
    found.note(
        {"id": 40, "event": "operator reset", "actor": "operator:root"}, unread + day, {"name": "alice"}
    )
    found.use({"id": 41, **act}, b"second", "a late nonce")
    named = [(each.code, dict(each.data).get("entry")) for each in found.findings(keys, unread)]
    assert ("act-forged", 41) in named
    assert ("act-forged", 30) not in named
    registered(50, b"fourth", b"x", unread + 9 * day)
    registered(51, b"fifth", b"y", unread + 9 * day)
    assert ("act-forged", 51) in [(e.code, dict(e.data).get("entry")) for e in found.findings(keys, unread)]
