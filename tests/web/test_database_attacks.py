"""Somebody writes to the database of a running server: whatever they write, it gives them no Y and no other say."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tang_attest.config import Settings
from tang_attest.errors import TangAttestError
from tang_attest.ports.machines import Suspension
from tang_attest.protocol.conditions import Conditions
from tang_attest.store import KEY_LABEL, check_rows
from tests.attester import Attester, members
from tests.server import Answer, Server, new_x

#: A text and its digest: an admin token and of an enrollment token that the attacker chose.
TEXT = "c" * 43
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()


@dataclass
class World:
    """A server, the machine that is attacked, and the attacker's own machine, enrolled like others."""

    server: Server
    victim: Attester
    eve: Attester
    kid: str

    def write(self, *statements: str) -> None:
        """Act of the attacker, past this program."""
        with closing(sqlite3.connect(self.server.directory / "tang-attest.db")) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    async def ask(self, attester: Attester) -> Answer:
        """A stock clevis' request with the victim's kid, and, when a challenge comes, *attester*'s evidence."""
        answer = await self.server.post(f"/rec/{self.kid}", dict(members(new_x())))
        return answer if answer.status != 401 else await self.server.unlock(attester, self.kid)

    async def found(self) -> set[str]:
        """Tables with rows that doctor and audit verify name."""
        key = self.server.secret.derive(KEY_LABEL)
        check = await check_rows(Settings(state=self.server.directory).database_url, key)
        return {each.table for each in check.findings}


@pytest_asyncio.fixture
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """As it is before."""
    plain = getattr(request, "param", False)
    async with Server(tmp_path / "state", plain_tang=plain) as server:
        victim, eve = Attester(), Attester()
        world = World(server, victim, eve, await server.enroll(victim))
        await server.enroll(eve, "eve")
        assert (await world.ask(victim)).status == 200
        assert (await world.ask(eve)).code == "signature-invalid"
        assert await world.found() == set()
        yield world


def is_refused(answer: Answer) -> bool:
    """No Y, and the code says why."""
    return (answer.status, answer.code) == (503, "registry-tampered") and "x" not in answer.body


_AK = ("ak_public", "ak_name", "ak_spki", "ak_scheme", "ak_hash")


def eves(*columns: str) -> tuple[str, ...]:
    """Give the victim's row *columns* of the attacker's; unique ones can only be there once."""
    took = [f"CREATE TEMP TABLE took AS SELECT {', '.join(columns)} FROM device WHERE name = 'eve'"]  # noqa: S608
    took += ["UPDATE device SET ak_spki = X'00' WHERE name = 'eve'"] if "ak_spki" in columns else []
    sets = ", ".join(f"{name} = (SELECT {name} FROM took)" for name in columns)  # noqa: S608
    return (*took, f"UPDATE device SET {sets} WHERE name = 'pi-b'")  # noqa: S608 - that is the point


@pytest.mark.parametrize("world", [False, True], indirect=True, ids=["attested", "plain-tang"])
@pytest.mark.parametrize(
    "statements",
    [
        ("UPDATE sealed_key SET device_id = (SELECT id FROM device WHERE name = 'eve') WHERE device_id = 1",),
        ("UPDATE sealed_key SET device_id = NULL WHERE device_id = 1",),
        ("UPDATE sealed_key SET device_id = NULL, use = 'exchange', seal = NULL WHERE device_id = 1",),
        eves("ak_spki"),
        eves("ak_public", "ak_name"),
        eves(*_AK),
        eves(*_AK, "seal"),
        ("UPDATE device SET policy_id = (SELECT policy_id FROM device WHERE name = 'eve') WHERE id = 1",),
        (
            "UPDATE device SET id = 77 WHERE name = 'pi-b'",
            "UPDATE device SET id = 1 WHERE name = 'eve'",
            "UPDATE device SET id = 2 WHERE id = 77",
        ),
        ("UPDATE reference_state SET pcr_values = '{}'",),
        ("UPDATE policy SET selection = 'sha256:23'",),
    ],
    ids=lambda statements: statements[-1][:48],
)
async def test_no_row_makes_a_key_answer_somebody_else(world: World, statements: tuple[str, ...]) -> None:
    """Each of the attacks that gave Y, and their kind: neither machine gets it, and the row is named."""
    world.write(*statements)
    for attester in (world.eve, world.victim):
        answer = await world.ask(attester)
        assert is_refused(answer), answer
    assert await world.found() & {"sealed_key", "device", "policy", "reference_state"}
    assert any(world.server.store.tampered().values())


async def test_others_are_served(world: World) -> None:
    """A row that is not ours is no denial of service for the machines beside it."""
    world.write("UPDATE device SET labels = '[\"x\"]' WHERE name = 'pi-b'")
    assert is_refused(await world.ask(world.victim))
    other = World(
        world.server, world.eve, world.victim, (await world.server.store.devices.get_device("eve")).kids[0]
    )
    assert (await other.ask(world.eve)).status == 200


async def test_a_decision_that_is_taken_back(world: World) -> None:
    """A suspension that is lifted, a condition that is dropped, a state that counts again: by an UPDATE, nothing is."""
    server = world.server
    audit = (await server.store.audit.list_audit(limit=1))[0][1]
    await server.store.policies.set_conditions("pi-b", Conditions(approval=True), audit)
    assert (await world.ask(world.victim)).code == "approval-required"
    world.write("UPDATE policy SET conditions = NULL WHERE name = 'pi-b'")
    assert is_refused(await world.ask(world.victim))
    world.write("UPDATE policy SET conditions = '{\"approval\": false}' WHERE name = 'pi-b'")
    assert is_refused(await world.ask(world.victim))
    eve = World(server, world.eve, world.victim, (await server.store.devices.get_device("eve")).kids[0])
    await server.store.devices.suspend_device(
        "eve", Suspension(server.clock.now(), "operator:x", "stolen"), audit
    )
    assert (await eve.ask(world.eve)).code == "device-suspended"
    world.write("UPDATE device SET suspended_at = NULL, suspended_by = NULL, suspended_reason = NULL")
    assert is_refused(await eve.ask(world.eve))


async def test_an_admin_token_that_nobody_made(world: World) -> None:
    """It has no scope, whatever its row says; changing one that somebody made is no better."""
    world.write(
        "INSERT INTO admin_token (digest, name, scopes, created_at, created_by, expires_at)"  # noqa: S608
        f" VALUES (X'{DIGEST}', 'eve', '[\"read\",\"approve\"]', 1, 'operator:eve', 99999999999999999)"
    )
    headers = {"Authorization": f"Bearer {TEXT}"}
    answer = await world.server.request("GET", "/admin/v1/devices", headers=headers)
    assert is_refused(answer), answer
    assert await world.found() == {"admin_token"}


async def test_an_enrollment_token_that_nobody_made(world: World) -> None:
    """It enrolls nobody; nor does one that was used, once somebody marks it as unused."""
    world.write(
        "INSERT INTO token (digest, created_at, created_by, expires_at, record, selection, cap_pcr,"  # noqa: S608
        ' allow_unverified_ek, "force", learn_for_s) VALUES'
        f" (X'{DIGEST}', 1, 'operator:eve', 99999999999999999, 1, 'sha256:7', 15, 1, 1, 1)"
    )
    assert is_refused(await world.server.begin(Attester(), "new", TEXT))
    text = await world.server.token()
    assert (await world.server.begin(Attester(), "new", text)).status == 200
    used = hashlib.sha256(text.encode()).hexdigest()
    world.write(
        f"UPDATE token SET allow_unverified_ek = 1, policy = 'pi-b', record = 0 WHERE digest = X'{used}'"  # noqa: S608
    )
    assert is_refused(await world.server.begin(Attester(), "new", text))


async def test_a_root_that_nobody_added(world: World) -> None:
    """A TPM of the attacker's own making is not endorsed by a root of their own."""
    world.write("INSERT INTO ek_root (fingerprint, label, der, added_at) VALUES ('ff', 'Eve', X'00', 1)")
    with pytest.raises(TangAttestError, match="Row 'Eve' of table ek_root is not what this server wrote"):
        await world.server.store.enrollment.find_ek_roots(b"subject", "ff")
    assert await world.found() == {"ek_root"}


async def test_an_observation_that_nobody_showed(world: World) -> None:
    """An operator cannot approve values that no machine quoted."""
    world.write(
        "INSERT INTO observation (device_id, at, selection, pcr_values, code, reset_count, event_log)"
        " VALUES (1, 99999999999999999, 'sha256:0,2,4,7', '{}', 'pcr-mismatch', 1, X'')"
    )
    with pytest.raises(TangAttestError, match="is not what this server wrote") as refused:
        await world.server.reference_values.approve("pi-b", None)
    assert refused.value.code == "registry-tampered"


async def test_an_older_row_is_refused_after_a_restart_too(world: World, tmp_path: Path) -> None:
    """The suspended machine's row of before, put back as it was, seal and all: the record knows better."""
    server = world.server
    audit = (await server.store.audit.list_audit(limit=1))[0][1]
    world.write("CREATE TABLE kept AS SELECT * FROM device")
    await server.store.devices.suspend_device(
        "pi-b", Suspension(server.clock.now(), "operator:x", "stolen"), audit
    )
    assert (await world.ask(world.victim)).code == "device-suspended"
    world.write("DELETE FROM device", "INSERT INTO device SELECT * FROM kept", "DROP TABLE kept")
    assert is_refused(await world.ask(world.victim))
    assert await world.found() == {"device"}
    server.store._authenticity._floors.clear()  # as after a restart: until the record was read, nobody knows
    assert await server.store.remember_versions() > 0
    assert is_refused(await world.ask(world.victim))
