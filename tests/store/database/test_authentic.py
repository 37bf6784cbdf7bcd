"""A writer of the database decides nothing: every column of every row that a decision reads is sealed."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tang_attest.errors import Conflict, TangAttestError
from tang_attest.ports.machines import Suspension
from tang_attest.protocol.reference_state import Life
from tang_attest.store import SqlStore, check_rows
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.engine import AuthenticDatabase
from tang_attest.store.maintenance import row_check
from tests.fakes import ROW_KEY
from tests.store.conftest import Opener, Stall
from tests.store.samples import NOW, decision, digest, entry
from tests.store.tampering import IMA, KID, OPEN_KID, Intruder, admin_token, ended, fill

STORE = Path(authentic.__file__).parents[1]


@pytest.fixture
def intruder(url: str, request: pytest.FixtureRequest) -> Intruder:
    """Somebody who has the database."""
    postgres = request.getfixturevalue("postgres") if url.startswith("postgresql") else None
    return Intruder(url, postgres)


async def bound(store: SqlStore) -> object:
    return await store.decisions.find_key(KID)


async def recorded(store: SqlStore) -> object:
    """The state that the machine was enrolled with."""
    found = await store.decisions.find_key(KID)
    assert found is not None
    assert found.policy is not None
    return [state for state in found.policy.states if state.label.startswith("recorded")]


async def device_outcomes(store: SqlStore) -> object:
    """Having passed once under a rollout lets a machine pass after it was stopped."""
    found = await store.decisions.find_key(KID)
    return found and found.outcome


async def listed(store: SqlStore) -> object:
    """The machine among all."""
    return [found for found in await store.devices.list_devices() if found.name == "pi-b"]


async def keys_of_it(store: SqlStore) -> object:
    """The machine's key among all."""
    return [key for key, _ in await store.keys.list_keys() if key.kid == KID]


async def archived_versions(store: SqlStore) -> object:
    """The versions below which no row counts."""
    return await store._database.read(row_check.checked_archived)


#: table -> what reads its rows to decide something; nothing, or registry-tampered, is the answer to a changed row.
READERS: dict[str, list[Callable[[SqlStore], Awaitable[object]]]] = {
    "policy": [
        bound,
        lambda store: store.decisions.find_pcrs(KID),
        lambda store: store.policies.get_policy("policy"),
        lambda store: store.rounds.list_watched(),
    ],
    "reference_state": [recorded],
    "device": [bound, listed],
    "sealed_key": [bound, lambda store: store.keys.get_key(KID), keys_of_it],
    "token": [
        lambda store: store.enrollment.find_token(digest("token")),
        lambda store: store.enrollment.find_token(b"x" + digest("token")),
        lambda store: store.enrollment.list_tokens(),
    ],
    "admin_token": [
        lambda store: store.admin_tokens.find_admin_token(digest("admin")),
        lambda store: store.admin_tokens.find_admin_token(b"x" + digest("admin")),
        lambda store: store.admin_tokens.list_admin_tokens(),
    ],
    "observation": [lambda store: store.policies.list_observations()],
    "evidence": [
        lambda store: store.policies.get_evidence("pi-b", permitted=True),
        lambda s: s.policies.list_evidence("policy"),
    ],
    "rollout": [lambda store: store.policies.get_rollout("policy")],
    "rollout_device": [device_outcomes],
    "ima_requirement": [lambda store: store.rounds.find_ima_requirement(IMA.digest)],
    "ima_progress": [lambda store: store.rounds.ima_progress(1)],
    "ek_root": [lambda store: store.enrollment.list_ek_roots()],
    "registered_ek": [
        lambda store: store.enrollment.find_registered_ek(digest("ek pi-x")),
        lambda store: store.enrollment.list_registered_eks(),
    ],
    "notification": [lambda store: store.rounds.take_notifications(10)],
    "operator": [
        lambda store: store.operators.get_operator("alice"),
        lambda store: store.operators.list_operators(),
        lambda store: store.operators.find_session(digest("session")),
    ],
    "operator_link": [lambda store: store.operators.find_link(digest("link"))],
    "passkey": [
        lambda store: store.operators.find_passkey(b"id"),
        lambda store: store.operators.list_passkeys(),
    ],
    "operator_session": [
        lambda store: store.operators.find_session(digest("session")),
        lambda store: store.operators.list_sessions(),
    ],
    "act_request": [lambda store: store.signed_acts.find_request("request")],
    "pending_approval": [
        lambda store: store.signed_acts.find_approval(digest("subject")),
        lambda store: store.signed_acts.list_approvals(),
    ],
    "audit_archive": [lambda store: store.audit.list_archives()],
    "audit_version": [archived_versions],
}


async def numbered(store: SqlStore, number: int) -> object:
    """The observation of that number among all."""
    return [found for found in await store.policies.list_observations() if found.id == number]


async def outcome(call: Awaitable[object]) -> object:
    """Its result, or the code of its error; nothing is ``None``."""
    try:
        return await call or None
    except TangAttestError as error:
        return error.code


def test_every_table_decides_or_says_why_not() -> None:
    """A new table is sealed, unless somebody wrote down why it need not be; so is a new column."""
    every = set(tables.metadata.tables)
    assert set(authentic.SEALED) == every - set(authentic.NOT_SEALED)
    assert set(authentic.NOT_SEALED) <= every
    for name, form in authentic.SEALED.items():
        outside = {authentic.SEAL, *authentic.OUTSIDE.get(name, ())}
        assert set(form.sealed) == {column.name for column in form.table.c} - outside, name
        assert authentic.MOVING.get(name, frozenset()) <= set(form.sealed), name
    assert set(READERS) == set(authentic.SEALED), "a sealed table needs a reader in this test"


def test_sealed_tables_are_written_in_one_place() -> None:
    """A write past authentic.py would leave a row that is not ours: it would be noticed where it is needed."""
    sealed = {name for name in tables.metadata.tables if name not in authentic.NOT_SEALED}
    for path in sorted({*STORE.rglob("*.py")} - {*(STORE / "migrations").rglob("*.py")}):
        if path.name in ("authentic.py", "resealing.py", "archive.py"):
            continue
        text = path.read_text()
        names = {m[1]: m[2] for m in re.finditer(r"^(_\w+)(?:: Final)? = tables\.(\w+)$", text, re.MULTILINE)}
        for used in re.finditer(r"\b(?:tables\.(\w+)|(_\w+))\.(?:insert|update|delete)\(", text):
            table = used[1] or names.get(used[2])
            allowed = {("decisions.py", "device"), ("verifications.py", "device"), ("evidence.py", "device")}
            assert table not in sealed or (path.name, table) in allowed, f"{path.name}: {used[0]}"
        assert "insert_new(" not in text or path.name in ("sql.py", "audit_chain.py"), path.name


@pytest.mark.parametrize("table", sorted(READERS))
async def test_a_changed_column_decides_nothing(store: SqlStore, intruder: Intruder, table: str) -> None:
    """Whichever column of whichever row somebody changes: refused, or as if the row were not there."""
    form = authentic.SEALED[table]
    await fill(store)
    for read in READERS[table]:
        if table not in ("notification", "token", "admin_token"):
            assert await outcome(read(store)) not in (None, "registry-tampered"), "the reader finds the row"
    for column in (*form.sealed, authentic.SEAL):
        if table == "notification":
            await store.rounds.take_notifications(10)
            await store.rounds.record_round(ended(1, code=f"not-{column}"))
        raw = await newest_row(store, form)
        changed = intruder.another(raw[column], form.table.c[column].type)
        intruder.update(table, form.keys, raw, {column: changed})
        async with forgetful(store) as other:
            found = [await outcome(read(reader)) for reader in (store, other) for read in READERS[table]]
        assert all(each in ("registry-tampered", "not-found", None) for each in found), (column, found)
        if table in ("device", "policy") and column != "id":
            assert "registry-tampered" in found, (column, found)
        intruder.update(table, form.keys, raw | {column: changed}, {column: raw[column]})


@contextlib.asynccontextmanager
async def forgetful(store: SqlStore) -> AsyncIterator[SqlStore]:
    """A store without memory of earlier versions, as another process has, over the connections of *store*."""
    assert isinstance(store._database, AuthenticDatabase)
    authenticity = authentic.Authenticity(ROW_KEY)
    other = SqlStore(AuthenticDatabase(store._database._database, authenticity), authenticity)
    yield other
    for queue in (other.decisions.finds, other.keys.loads, other._writes, other.rounds.ends):
        await queue.close()


async def newest_row(store: SqlStore, form: authentic.Form) -> dict[str, Any]:
    """The row that the readers ask for."""

    def look(connection: sa.Connection) -> dict[str, Any]:
        query = sa.select(*form.raw)
        if form.name == "sealed_key":
            query = query.where(form.table.c.kid == KID)
        if form.name == "device":
            query = query.where(form.table.c.name == "pi-b")
        rows = connection.execute(query.order_by(*form.table.primary_key.columns)).all()
        return dict(zip(form.names, rows[0], strict=True))

    return await store._database.read(look)


@pytest.mark.parametrize("table", sorted(set(READERS) - {"evidence", "rollout_device", "ima_progress"}))
async def test_an_inserted_row_decides_nothing(store: SqlStore, intruder: Intruder, table: str) -> None:
    """A copy of a row of ours, with its seal, under another key, is not a row of ours; it is counted."""
    await fill(store)
    form = authentic.SEALED[table]
    raw = await newest_row(store, form)
    fresh = {"name": "x", "label": "x", "ak_spki": b"x", "ek_spki": b"x", "under_way": 77, "ek_sha256": b"x"}
    fresh |= {"digest": b"x" if table != "ima_requirement" else "x", "fingerprint": "x", "kid": "x", "id": 77}
    fresh |= {
        "number": "x",
        "seq": 77,
        "handle": b"x",
        "credential_id": b"x",
        "challenge": b"x",
        "subject": b"x",
    }
    await store.rounds.take_notifications(10)
    intruder.insert(table, raw | {name: value for name, value in fresh.items() if name in raw})
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        "policy": lambda: store.policies.get_policy("x"),
        "reference_state": lambda: store.decisions.find_key(KID),
        "device": lambda: store.devices.get_device("x"),
        "sealed_key": lambda: store.decisions.find_key("x"),
        "token": lambda: store.enrollment.find_token(b"x"),
        "admin_token": lambda: store.admin_tokens.find_admin_token(b"x"),
        "observation": lambda: numbered(store, 77),
        "rollout": lambda: store.policies.get_rollout("policy"),
        "ima_requirement": lambda: store.rounds.find_ima_requirement("x"),
        "ek_root": lambda: store.enrollment.find_ek_roots(b"subject", "x"),
        "registered_ek": lambda: store.enrollment.find_registered_ek(b"x"),
        "notification": lambda: store.rounds.take_notifications(10),
        "operator": lambda: store.operators.get_operator("x"),
        "operator_link": lambda: store.operators.find_link(b"x"),
        "passkey": lambda: store.operators.find_passkey(b"x"),
        "operator_session": lambda: store.operators.find_session(b"x"),
        "act_request": lambda: store.signed_acts.find_request("x"),
        "pending_approval": lambda: store.signed_acts.find_approval(b"x"),
        "audit_archive": store.audit.list_archives,
        "audit_version": lambda: archived_versions(store),
    }
    expected = None if table in ("notification", "observation") else "registry-tampered"
    assert await outcome(asked[table]()) == expected
    assert store.tampered()[table] >= 1


async def test_others_are_served_meanwhile(store: SqlStore, intruder: Intruder) -> None:
    """One machine's row is not ours: the batch that it shares with others is theirs all the same."""
    await fill(store)
    intruder.do("UPDATE device SET labels = '[\"x\"]' WHERE name = 'pi-b'")
    found = await asyncio.gather(
        *(outcome(store.decisions.find_key(kid)) for kid in (KID, "kid-pi-c", OPEN_KID) * 9)
    )
    assert found.count("registry-tampered") == 9
    assert None not in found
    decided = await asyncio.gather(
        outcome(store.decisions.decide(decision(1, "a", 5))),
        outcome(store.decisions.decide(decision(2, "b", 5))),
    )
    assert list(decided) == ["registry-tampered", None]
    rounds = await asyncio.gather(
        *(outcome(store.rounds.record_round(ended(number, "capped"))) for number in (1, 2))
    )
    assert rounds[0] == "registry-tampered"
    assert rounds[1] not in (None, "registry-tampered")


async def test_a_change_does_not_bless_what_somebody_else_changed(
    store: SqlStore, open_another: Opener, intruder: Intruder
) -> None:
    """An operator's command on a row that is not ours is refused, so that it is not sealed along."""
    await fill(store)
    intruder.do("UPDATE device SET policy_id = 7 WHERE name = 'pi-b'")
    for call in (
        store.devices.allow_device("pi-b", NOW, entry()),
        store.devices.label_devices(["pi-b"], ["x"], [], [entry()]),
        store.rounds.request_round("pi-b", NOW),
    ):
        assert await outcome(call) == "registry-tampered"
    other = await open_another()
    assert await outcome(other.decisions.find_key(KID)) == "registry-tampered"


async def test_a_machine_that_was_tampered_with_can_be_removed(store: SqlStore, intruder: Intruder) -> None:
    """That, and enrolling it again, is the way out without a backup."""
    await fill(store)
    intruder.do("UPDATE device SET ak_scheme = 'ECDSA' WHERE name = 'pi-b'")
    await store.devices.remove_device("pi-b", entry())
    assert await outcome(store.decisions.find_key(KID)) is None
    intruder.do("UPDATE ek_root SET label = 'x'")
    await store.enrollment.remove_ek_root("ff" * 32, entry())
    assert await outcome(store.enrollment.list_ek_roots()) is None


async def test_a_row_that_is_not_ours_is_logged_and_counted(
    store: SqlStore, intruder: Intruder, caplog: pytest.LogCaptureFixture
) -> None:
    """By table and name, without what is in it."""
    await fill(store)
    assert not any(store.tampered().values())
    assert set(store.tampered()) == set(tables.metadata.tables)
    intruder.do("UPDATE reference_state SET life = 'active', pcr_values = '{}' WHERE label = 'recorded'")
    with suppress(TangAttestError):
        await store.decisions.find_key(KID)
    assert store.tampered()["reference_state"] == 1
    assert "Row 'recorded' of table reference_state is not what this server wrote." in caplog.text


async def test_an_older_row_of_ours_is_refused_by_who_saw_the_newer(
    store: SqlStore, open_another: Opener, intruder: Intruder
) -> None:
    """A lifted suspension, a state that was retired, a token that was used: what was, is not what is."""
    await fill(store)
    before = {
        name: await newest_row(store, authentic.SEALED[name])
        for name in ("device", "reference_state", "admin_token")
    }
    other = await open_another()
    await store.devices.suspend_device("pi-b", Suspension(NOW, "operator:test", "stolen"), entry())
    await store.policies.move_state("policy", "recorded", [Life.ACTIVE], Life.RETIRED, entry())
    await store.admin_tokens.revoke_admin_token(admin_token().name, entry())
    assert (await other.devices.get_device("pi-b")).suspension is not None  # the other one has seen it, too
    for name, row in before.items():
        form = authentic.SEALED[name]
        intruder.update(name, form.keys, row, row)
    assert await outcome(store.admin_tokens.find_admin_token(digest("admin"))) == "registry-tampered"
    assert await outcome(store.policies.get_policy("policy")) == "registry-tampered"
    for process in (store, other):
        assert await outcome(process.devices.get_device("pi-b")) == "registry-tampered"
        assert await outcome(process.decisions.find_key(KID)) == "registry-tampered"


@pytest.mark.parametrize("ends", ["committed", "rolled back"])
async def test_a_change_that_is_not_committed_makes_no_row_older(
    store: SqlStore, stall: Stall, ends: str
) -> None:
    """A writer reads its own change: until it is committed, everybody else's row is the newest there is."""
    await fill(store)
    state = tables.reference_state.c.label == "recorded"
    held = stall.around(lambda: None)

    def work(connection: sa.Connection) -> None:
        authentic.update(connection, tables.reference_state, state, {"life": Life.RETIRED.value})
        assert authentic.one(connection, tables.reference_state, state)
        held()
        if ends == "rolled back":
            raise Conflict("name-taken", "somebody else was faster")

    writing = asyncio.create_task(store._database.write(work))
    await stall.entered()
    assert await outcome(store.policies.get_policy("policy")) != "registry-tampered"
    stall.go()
    with suppress(Conflict):
        await writing
    assert await outcome(store.policies.get_policy("policy")) != "registry-tampered"
    assert store.tampered()["reference_state"] == 0


async def test_what_was_removed_stays_removed(
    url: str, store: SqlStore, open_another: Opener, intruder: Intruder
) -> None:
    """A machine, with its key, that is put back as it was: this process knows, and the record tells others."""
    await fill(store)
    form = authentic.SEALED["device"]
    row = await newest_row(store, form)
    kept = await newest_row(store, authentic.SEALED["sealed_key"])
    await store.devices.remove_device("pi-b", entry("device remove"))
    assert (await check_rows(url, ROW_KEY)).findings == ()
    intruder.insert("device", row)
    intruder.insert("sealed_key", kept)
    assert await outcome(store.decisions.find_key(KID)) == "registry-tampered"
    found = (await check_rows(url, ROW_KEY)).findings
    assert sorted((each.table, each.key) for each in found) == [("device", "pi-b"), ("sealed_key", KID)]
    assert all(each.sentence.endswith("was removed, and is there again.") for each in found)
    other = await open_another()
    assert await outcome(other.decisions.find_key(KID)) not in (None, "registry-tampered")
    assert await other.remember_versions() > 0
    assert await outcome(other.decisions.find_key(KID)) == "registry-tampered"


async def test_rows_that_are_gone_are_found(url: str, store: SqlStore, intruder: Intruder) -> None:
    """Taken away past this program, a retired state, or a token that was used, is missed."""
    await fill(store)
    check = await check_rows(url, ROW_KEY)
    assert check.findings == ()
    assert check.rows > 10
    intruder.do("DELETE FROM token", "DELETE FROM reference_state WHERE label = 'recorded'")
    found = {(each.table, each.key) for each in (await check_rows(url, ROW_KEY)).findings}
    assert {table for table, _ in found} == {"token", "reference_state"}
    assert ("reference_state", "recorded") in found


async def test_a_row_is_not_checked_again_by_the_process_that_sealed_it(
    store: SqlStore, open_another: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision seals its device's row; the next reader of the same contents has it as another process reads it."""
    await fill(store)
    moved = await store.devices.get_device("pi-b")
    await store.devices.get_device("pi-c")
    await store.decisions.decide(decision(moved.id, "n2", 2))
    other = await open_another()
    checked: list[str] = []
    verify = authentic._verify

    def noting(connection, shape, values):
        checked.append(shape.name)
        return verify(connection, shape, values)

    monkeypatch.setattr(authentic, "_verify", noting)
    mine = await store._database.read(lambda connection: authentic.load(connection, tables.device))
    assert "device" not in checked
    theirs = await other._database.read(lambda connection: authentic.load(connection, tables.device))
    assert "device" in checked
    assert mine == theirs
    assert [(row.raw, row.serial, row.version) for row in mine] == [
        (row.raw, row.serial, row.version) for row in theirs
    ]
