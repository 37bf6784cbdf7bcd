"""The admin API's operations for enrollment and machines: what a program such as Ansible needs, and no more."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tang_attest.ports.admin import Scope
from tang_attest.protocol.endorsement.registered import ek_digest
from tang_attest.protocol.tpm import parse_ek
from tang_attest.protocol.values.base64url import b64u
from tests.attester import Attester, members
from tests.protocol.endorsement import ek_pki as pki
from tests.server import Server, new_x
from tests.web.admin.client import Admin, holder

HASH = "ab" * 32


def ek(attester: Attester) -> str:
    """The hash of its EK."""
    return ek_digest(parse_ek(attester.ek_public).spki).hex()


# --- tokens ---------------------------------------------------------------------------------------------------------


async def test_a_token_for_machines_is_created_used_and_listed(server: Server, admin: Admin) -> None:
    """The text is in the first answer only, and the audit record names who asked."""
    body = {
        "policy": "web",
        "machines": 2,
        "name": "web-*",
        "labels": ["rack-1"],
        "allow_unverified_ek": True,
    }
    made = await admin.post("/tokens", body)
    assert made.status == 201
    text, machine = made.body.pop("token"), Attester()
    done = await server.finish(machine, "web-1", await server.begin(machine, "web-1", text))
    assert done.status == 201
    (listed,) = (await admin.get("/tokens")).body["tokens"]
    assert listed == made.body | {"uses": 1}
    assert text not in str((await admin.get("/tokens")).body)
    entry = next(e for _, e in await server.store.audit.list_audit() if e.event == "token create")
    assert (entry.actor, entry.details["machines"]) == ("token:ci", 2)


async def test_a_token_is_revoked_and_stays_so(server: Server, admin: Admin) -> None:
    """The second request changes nothing; the token enrolls nothing any more."""
    made = await admin.post("/tokens", {"policy": "web", "allow_unverified_ek": True})
    first = await admin.post("/tokens/revoke", {"id": made.body["id"][:8]})
    server.clock.advance(seconds=9)
    second = await admin.post("/tokens/revoke", {"id": made.body["id"].upper()})
    assert first.status == second.status == 200
    assert first.body == second.body
    assert first.body["revoked_at"] is not None
    assert (await server.begin(Attester(), "web-1", made.body["token"])).code == "token-revoked"


async def test_a_used_token_is_not_revoked(server: Server, admin: Admin) -> None:
    """There is nothing to revoke."""
    made = await admin.post("/tokens", {"policy": "web", "allow_unverified_ek": True})
    machine = Attester()
    await server.finish(machine, "web-1", await server.begin(machine, "web-1", made.body["token"]))
    answer = await admin.post("/tokens/revoke", {"id": made.body["id"]})
    assert (answer.status, answer.code) == (403, "token-used")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "setting-invalid"),
        ({"policy": "web", "record": True}, 400, "setting-invalid"),
        ({"record": True, "machines": 2}, 400, "setting-invalid"),
        ({"policy": "none"}, 404, "not-found"),
        ({"policy": "web", "machines": 0}, 400, "request-malformed"),
        ({"policy": "web", "machines": 100_001}, 400, "request-malformed"),
        ({"policy": "web", "machines": "2"}, 400, "request-malformed"),
        ({"policy": "web", "expires_in": 0}, 400, "request-malformed"),
        ({"policy": "web", "name": "web *"}, 400, "request-malformed"),
        ({"policy": "web", "name": "[a]"}, 400, "request-malformed"),
        ({"policy": "web", "labels": ["!"]}, 400, "request-malformed"),
        ({"policy": "web", "labels": [f"l{n}" for n in range(33)]}, 400, "request-malformed"),
        ({"policy": "web", "force": True}, 400, "request-malformed"),
        ({"record": True, "selection": "sha256:16"}, 400, "selection-invalid"),
        ({"record": True, "selection": "x"}, 400, "selection-invalid"),
    ],
)
async def test_tokens_that_are_not_made(
    server: Server, admin: Admin, body: dict[str, Any], status: int, code: str
) -> None:
    """Each with a code, and nothing is kept."""
    answer = await admin.post("/tokens", body)
    assert (answer.status, answer.code) == (status, code)
    assert await server.store.enrollment.list_tokens() == []


async def test_a_grant_for_a_policy_makes_tokens_for_it_alone(admin: Admin, limited: Admin) -> None:
    """Neither for another one nor for a new one; and it sees and revokes no others."""
    for body in ({"policy": "db"}, {"record": True}, {"policy": "nothing"}):
        answer = await limited.post("/tokens", body)
        assert (answer.status, answer.code) == (403, "policy-not-granted")
    mine = (await limited.post("/tokens", {"policy": "web"})).body
    others = [(await admin.post("/tokens", body)).body for body in ({"policy": "db"}, {"record": True})]
    assert [each["id"] for each in (await limited.get("/tokens")).body["tokens"]] == [mine["id"]]
    for other in others:
        assert (await limited.post("/tokens/revoke", {"id": other["id"]})).code == "not-found"
    assert (await admin.get("/tokens?limit=2")).body["more"] is True


# --- registered EKs -------------------------------------------------------------------------------------------------


async def test_an_ek_is_registered_once(server: Server, admin: Admin) -> None:
    """PUT again changes nothing; the machine enrolls without a token; DELETE takes it back."""
    machine = Attester()
    body = {"ek_sha256": ek(machine), "policy": "web", "labels": ["a"], "without_token": True}
    first = await admin.request("PUT", "/registered-eks/web-1", json=body)
    again = await admin.request(
        "PUT", "/registered-eks/web-1", json=body | {"ek_sha256": ek(machine).upper()}
    )
    assert (first.status, again.status) == (201, 200)
    assert first.body == again.body
    done = await server.finish(machine, "web-1", await server.begin(machine, "web-1", None))
    assert done.status == 201
    (listed,) = (await admin.get("/registered-eks")).body["registered"]
    assert listed["used_at"] is not None
    assert (await admin.get("/devices/web-1")).body["ek_sha256"] == ek(machine)
    assert (await admin.request("DELETE", "/registered-eks/web-1")).status == 200
    assert (await admin.request("DELETE", "/registered-eks/web-1")).code == "not-found"
    assert (await admin.get("/devices/web-1")).status == 200


async def test_a_list_is_registered_or_nothing_of_it(admin: Admin) -> None:
    """A fault names the number of its machine."""
    certificate = pki.ek(pki.ca("Root"))
    machines = [
        {"name": "web-1", "ek_sha256": HASH, "policy": "web"},
        {"name": "web-2", "ek_certificate": b64u(certificate.der), "policy": "web"},
    ]
    wrong = await admin.post("/registered-eks", {"machines": [*machines, machines[0] | {"name": "web-3"}]})
    assert (wrong.status, wrong.code) == (400, "ek-list-invalid")
    assert wrong.body["detail"] == "Line 3: line 1 has the same EK."
    assert (await admin.get("/registered-eks")).body["registered"] == []
    done = await admin.post("/registered-eks", {"machines": machines})
    assert (done.status, done.body["new"], len(done.body["registered"])) == (200, 2, 2)
    again = await admin.post("/registered-eks", {"machines": machines})
    assert (again.status, again.body["new"]) == (200, 0)
    page = await admin.get("/registered-eks?limit=1")
    assert (page.body["registered"][0]["name"], page.body["next"]) == ("web-1", "web-1")
    page = await admin.get("/registered-eks?limit=1&after=web-1")
    assert (page.body["registered"][0]["name"], page.body["next"]) == ("web-2", None)


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("web-1", {"policy": "web"}, "request-malformed"),
        ("web-1", {"policy": "web", "ek_sha256": HASH, "ek_certificate": "AAAA"}, "request-malformed"),
        ("web-1", {"policy": "web", "ek_sha256": "ab"}, "request-malformed"),
        ("web-1", {"policy": "web", "ek_certificate": "AAAA"}, "ek-malformed"),
        ("web-1", {"policy": "web", "ek_certificate": "A" * 11_000}, "request-malformed"),
        ("web-1", {"policy": "none", "ek_sha256": HASH}, "ek-list-invalid"),
        ("web-1", {"ek_sha256": HASH}, "request-malformed"),
        ("web%201", {"policy": "web", "ek_sha256": HASH}, "request-malformed"),
        ("web-1", {"policy": "web", "ek_sha256": HASH, "labels": ["a b"]}, "request-malformed"),
    ],
)
async def test_eks_that_are_not_registered(admin: Admin, name: str, body: dict[str, Any], code: str) -> None:
    """Each with a code, and nothing is kept."""
    answer = await admin.request("PUT", f"/registered-eks/{name}", json=body)
    assert (answer.status, answer.code) == (400, code)
    assert (await admin.get("/registered-eks")).body["registered"] == []


async def test_a_grant_for_a_policy_registers_for_it_alone(admin: Admin, limited: Admin) -> None:
    """The others neither exist for it nor change."""
    body = {"ek_sha256": HASH, "policy": "db"}
    assert (await limited.request("PUT", "/registered-eks/db-1", json=body)).code == "policy-not-granted"
    listed = [
        {"name": "web-1", "ek_sha256": HASH, "policy": "web"},
        {"name": "db-1", "ek_sha256": "cd" * 32, "policy": "db"},
    ]
    assert (await limited.post("/registered-eks", {"machines": listed})).code == "policy-not-granted"
    await admin.request("PUT", "/registered-eks/db-1", json=body)
    assert (await limited.get("/registered-eks")).body["registered"] == []
    assert (await limited.request("DELETE", "/registered-eks/db-1")).code == "not-found"


# --- devices --------------------------------------------------------------------------------------------------------


async def test_a_device_is_suspended_and_resumed(server: Server, admin: Admin) -> None:
    """Each may be repeated; the first reason stays, and each change is audited once."""
    machine = Attester()
    kid = await server.enroll(machine, "pi-b")
    first = await admin.post("/devices/pi-b/suspend", {"reason": "stolen"})
    again = await admin.post("/devices/pi-b/suspend", {"reason": "another"})
    assert first.body == again.body
    assert (first.body["suspended_reason"], first.body["suspended_by"]) == ("stolen", "token:ci")
    assert (await server.unlock(machine, kid)).code == "device-suspended"
    for _ in range(2):
        assert (await admin.post("/devices/pi-b/resume")).body["suspended_at"] is None
    assert (await server.unlock(machine, kid)).status == 200
    events = [e.event for _, e in await server.store.audit.list_audit() if e.actor == "token:ci"]
    assert sorted(events) == ["device resume", "device suspend"]


@pytest.mark.parametrize("reason", ["", "a\nb", "x" * 201, "\x1b[2J"])
async def test_a_reason_that_is_none(server: Server, admin: Admin, reason: str) -> None:
    """It is shown on terminals."""
    await server.enroll(Attester(), "pi-b")
    answer = await admin.post("/devices/pi-b/suspend", {"reason": reason})
    assert (answer.status, answer.code) == (400, "request-malformed")
    assert (await admin.get("/devices/pi-b")).body["suspended_at"] is None


async def test_labels_are_set_exactly(server: Server, admin: Admin) -> None:
    """PUT again changes nothing, and writes nothing."""
    await server.enroll(Attester(), "pi-b", labels=("old", "kept"))
    for _ in range(2):
        answer = await admin.request("PUT", "/devices/pi-b/labels", json={"labels": ["new", "kept"]})
        assert (answer.status, answer.body["labels"]) == (200, ["kept", "new"])
    assert [e.event for _, e in await server.store.audit.list_audit()].count("device label") == 1
    assert (await admin.request("PUT", "/devices/pi-b/labels", json={"labels": ["a b"]})).status == 400


async def test_a_device_is_allowed_to_unlock_for_a_while(server: Server, admin: Admin) -> None:
    """As 'device allow' does."""
    await server.enroll(Attester(), "pi-b")
    answer = await admin.post("/devices/pi-b/allow", {"for_seconds": 1800})
    assert answer.status == 200
    until = datetime.fromisoformat(answer.body["allowed_until"])
    assert until == server.clock.now() + timedelta(minutes=30)


async def test_a_device_is_removed(server: Server, admin: Admin) -> None:
    """Its keys answer nobody; the second request finds nothing."""
    machine = Attester()
    kid = await server.enroll(machine, "pi-b")
    assert (await admin.post("/devices/pi-b/remove")).body["name"] == "pi-b"
    assert (await server.post(f"/rec/{kid}", dict(members(new_x())))).status == 404
    assert (await admin.post("/devices/pi-b/remove")).code == "not-found"
    assert await server.store.devices.list_devices() == []


ACTS = [
    ("PUT", "/labels", {"labels": []}),
    ("POST", "/suspend", {"reason": "x"}),
    ("POST", "/resume", None),
    ("POST", "/allow", {"for_seconds": 1}),
    ("POST", "/remove", None),
]


@pytest.mark.parametrize(("method", "act", "body"), ACTS)
async def test_a_device_of_another_policy_is_not_there(
    server: Server, limited: Admin, method: str, act: str, body: Any
) -> None:
    """Neither its name nor its state is told, and nothing changes."""
    await server.enroll(Attester(), "db-1", policy="db")
    before = await server.store.devices.get_device("db-1")
    options = {} if body is None else {"json": body}
    there = await limited.request(method, f"/devices/db-1{act}", **options)
    nowhere = await limited.request(method, f"/devices/db-2{act}", **options)
    assert (there.status, there.code) == (nowhere.status, nowhere.code) == (404, "not-found")
    assert await server.store.devices.get_device("db-1") == before


async def test_a_scope_that_may_not_remove(server: Server, admin: Admin) -> None:
    """The old scopes gained nothing: none of them enrolls, suspends or removes."""
    await server.enroll(Attester(), "pi-b")
    old = await holder(server, Scope.READ, Scope.STAGE, Scope.APPROVE, name="old")
    attempts = [
        await old.post("/tokens", {"policy": "web"}),
        await old.request("PUT", "/registered-eks/x", json={"ek_sha256": HASH, "policy": "web"}),
        await old.post("/devices/pi-b/suspend", {"reason": "x"}),
        await old.post("/devices/pi-b/remove"),
    ]
    assert {(answer.status, answer.code) for answer in attempts} == {(403, "scope-missing")}


# --- policies and the status ----------------------------------------------------------------------------------------


async def test_a_policy_is_made_once(admin: Admin) -> None:
    """PUT again is 200; over other PCRs it is refused and changes nothing."""
    body = {"selection": "sha256:0,7,15"}
    assert (await admin.request("PUT", "/policies/new", json=body)).status == 201
    assert (await admin.request("PUT", "/policies/new", json=body)).status == 200
    for other in ({"selection": "sha256:0,7"}, body | {"cap_pcr": 7}):
        answer = await admin.request("PUT", "/policies/new", json=other)
        assert (answer.status, answer.code) == (409, "name-taken")
    assert (await admin.get("/policies/new")).body["selection"] == "sha256:0,7,15"
    for wrong in ({"selection": "sha256:16"}, {"selection": "nonsense"}):
        assert (await admin.request("PUT", "/policies/newer", json=wrong)).code == "selection-invalid"


async def test_a_grant_for_a_policy_makes_no_other(limited: Admin) -> None:
    """The one that is there may be asked for again."""
    body = {"selection": "sha256:0,2,4,7"}
    assert (await limited.request("PUT", "/policies/new", json=body)).code == "policy-not-granted"
    assert (await limited.request("PUT", "/policies/web", json=body)).status == 200


async def test_the_status_is_that_of_the_command(server: Server, admin: Admin, limited: Admin) -> None:
    """It is about every policy, so a limited token does not get it."""
    await server.enroll(Attester(), "pi-b")
    assert (await admin.get("/status")).body["attention"] is False
    await admin.post("/devices/pi-b/suspend", {"reason": "stolen"})
    status = (await admin.get("/status")).body
    assert (status["attention"], status["machines"]) == (True, 1)
    assert ("suspended", "pi-b") in [(each["topic"], each["name"]) for each in status["notices"]]
    assert (await limited.get("/status")).code == "policy-not-granted"


async def test_a_device_is_renamed_and_moved(server: Server, admin: Admin, limited: Admin) -> None:
    """Both policies of a move have to be granted; moving again changes nothing."""
    await server.enroll(Attester(), "web-1", policy="web")
    renamed = await limited.post("/devices/web-1/rename", {"name": "web-2"})
    assert (renamed.status, renamed.body["name"]) == (200, "web-2")
    assert (await limited.post("/devices/web-1/rename", {"name": "web-3"})).code == "not-found"
    assert (await limited.post("/devices/web-2/move", {"policy": "db"})).code == "policy-not-granted"
    for _ in range(2):
        moved = await admin.post("/devices/web-2/move", {"policy": "db"})
        assert (moved.status, moved.body["policy"]) == (200, "db")
    assert (await limited.post("/devices/web-2/move", {"policy": "web"})).code == "not-found"


async def test_a_renamed_device_keeps_its_registration(server: Server, admin: Admin) -> None:
    """It enrolls again under the new name; a name that is registered for another TPM is not taken."""
    machine = Attester()
    body = {"ek_sha256": ek(machine), "policy": "web", "without_token": True}
    await admin.request("PUT", "/registered-eks/web-1", json=body)
    await admin.request("PUT", "/registered-eks/web-9", json=body | {"ek_sha256": HASH})
    first = await server.finish(machine, "web-1", await server.begin(machine, "web-1", None))
    assert (await admin.post("/devices/web-1/rename", {"name": "web-9"})).code == "name-taken"
    assert (await admin.post("/devices/web-1/rename", {"name": "web-2"})).status == 200
    again = await server.finish(machine, "web-2", await server.begin(machine, "web-2", None))
    assert (again.status, again.body["kid"]) == (201, first.body["kid"])


async def test_a_policy_is_removed_when_nothing_uses_it(admin: Admin, limited: Admin) -> None:
    """A registered EK that waits uses it."""
    await admin.request("PUT", "/registered-eks/db-1", json={"ek_sha256": HASH, "policy": "db"})
    assert (await limited.post("/policies/db/remove")).code == "policy-not-granted"
    used = await admin.post("/policies/db/remove")
    assert (used.status, used.code) == (409, "policy-in-use")
    assert "registered EK db-1" in used.body["detail"]
    await admin.request("DELETE", "/registered-eks/db-1")
    assert (await admin.post("/policies/db/remove")).body["name"] == "db"
    assert (await admin.post("/policies/db/remove")).code == "not-found"


async def test_an_observation_is_dismissed(server: Server, admin: Admin, limited: Admin) -> None:
    """Once; one of another policy is not there."""
    machine = Attester()
    kid = await server.enroll(machine, "pi-b")
    machine.extend(4, b"another kernel")
    assert (await server.unlock(machine, kid)).code == "pcr-mismatch"
    (seen,) = (await admin.get("/observations")).body["observations"]
    assert (await limited.post(f"/observations/{seen['id']}/dismiss")).code == "observation-missing"
    assert (await admin.post(f"/observations/{seen['id']}/dismiss")).body == seen
    assert (await admin.post(f"/observations/{seen['id']}/dismiss")).code == "observation-missing"
