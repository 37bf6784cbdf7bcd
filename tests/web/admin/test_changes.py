"""Changes of whole policies, dry runs and rollouts by the admin API."""

from __future__ import annotations

from typing import Any

import pytest

from tang_attest.ports.admin import Scope
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.changes import PolicyChanges
from tests.attester import Attester
from tests.server import Server
from tests.web.admin.client import Admin, holder, make_policy, values

PCRS = (0, 2, 4, 7)


@pytest.fixture
async def admin(server: Server) -> Admin:
    """Holds a token with every scope."""
    return await holder(server)


def hexadecimal(chosen: dict[int, bytes]) -> dict[str, str]:
    return {str(pcr): value.hex() for pcr, value in chosen.items()}


def booted(attester: Attester) -> dict[str, str]:
    """Values that *attester* runs now."""
    return hexadecimal({pcr: attester.pcrs["sha256"][pcr] for pcr in PCRS})


async def fleet(server: Server, *names: str) -> dict[str, tuple[Attester, str]]:
    """Machines under the policy of the first, which all boot the same; each has unlocked once."""
    machines: dict[str, tuple[Attester, str]] = {}
    for name in names:
        attester = Attester()
        kid = await server.enroll(attester, name, **({"policy": names[0]} if machines else {}))
        assert (await server.unlock(attester, kid)).status == 200
        machines[name] = (attester, kid)
    return machines


async def actors(server: Server) -> set[tuple[str, str]]:
    """Acts of tokens, and their policies."""
    rows = [entry for _, entry in await server.store.audit.list_audit(limit=1000)]
    return {(row.event, str(row.details["policy"])) for row in rows if row.actor.startswith("token:")}


async def test_a_dry_run_changes_nothing(server: Server) -> None:
    """It says who would be refused; the scope ``stage`` is enough."""
    await fleet(server, "pi-a", "pi-b")
    (state,) = (await server.store.policies.get_policy("pi-a")).states
    client = await holder(server, Scope.STAGE, policies=("pi-a",))
    change = {"add": [{"label": "new", "values": hexadecimal(values("a"))}], "retire": [state.label]}
    result = await client.post("/policies/pi-a/dry-run", change)
    assert (result.status, result.body["devices"], result.body["would_refuse"]) == (200, 2, 2)
    (group,) = result.body["refused"]
    assert (group["code"], group["devices"]) == ("state-retired", ["pi-a", "pi-b"])
    assert (await server.store.policies.get_policy("pi-a")).states == (state,)
    assert await actors(server) == set()


async def test_a_change_for_everybody(server: Server, admin: Admin) -> None:
    """One that would refuse a machine needs a person; one that does not is made, and audited."""
    await fleet(server, "pi-a")
    (state,) = (await server.store.policies.get_policy("pi-a")).states
    refused = await admin.post("/policies/pi-a/apply", {"retire": [state.label]})
    assert (refused.status, refused.code) == (409, "would-refuse")
    assert await actors(server) == set()
    change = {"add": [{"label": "new", "values": hexadecimal(values("a"))}]}
    applied = await admin.post("/policies/pi-a/apply", change)
    assert applied.status == 200
    assert [(each["label"], each["created_by"]) for each in applied.body["states"]][1] == ("new", "token:ci")
    assert await actors(server) == {("policy change", "pi-a")}


async def test_rules(server: Server, admin: Admin) -> None:
    """Rules come with a change, are shown with the policy, and are taken away."""
    await make_policy(server)
    rules = {
        "judge-by-events": [7],
        "rules": [{"secure-boot": "on"}, {"events": {"pcr": 7, "allow": [{"variable": "PK"}]}}],
    }
    applied = await admin.post("/policies/web/apply", {"rules": rules})
    assert applied.status == 200, applied
    assert applied.body["rules"]["judge-by-events"] == [7]
    assert (await admin.get("/policies/web")).body["rules"] == applied.body["rules"]
    assert (await admin.post("/policies/web/apply", {"rules": "none"})).body["rules"] is None


async def test_a_rollout_from_start_to_finish(server: Server, admin: Admin) -> None:
    """A share first, then more, then all; every step is the token's in the audit record."""
    machines = await fleet(server, "pi-a", "pi-b", "pi-c")
    for attester, _ in machines.values():
        attester.extend(4, b"another kernel")
    coming = booted(machines["pi-a"][0])
    assert (await admin.get("/rollouts")).body["rollouts"] == []
    assert (await admin.get("/policies/pi-a/rollout")).status == 404
    body: dict[str, Any] = {
        "name": "kernel",
        "change": {"add": [{"label": "new", "values": coming}]},
        "share": 0.0001,
        "limit": 2,
        "salt": "salt",
    }
    started = await admin.post("/policies/pi-a/rollout", body)
    assert (started.status, started.body["status"], started.body["devices"]) == (201, "running", 3)
    assert (started.body["share"], started.body["limit"]) == (0.0001, 2)
    assert started.body["change"]["add"] == body["change"]["add"]
    again = await admin.post("/policies/pi-a/rollout", body | {"name": "another"})
    assert (again.status, again.code) == (400, "change-invalid")
    wider = await admin.post("/policies/pi-a/rollout/widen", {"share": 1})
    assert (wider.status, len(wider.body["waiting"])) == (200, 3)
    attester, kid = machines["pi-a"]
    assert (await server.unlock(attester, kid)).status == 200
    (under_way,) = (await admin.get("/rollouts")).body["rollouts"]
    assert ([each["device"] for each in under_way["passed"]], under_way["waiting"]) == (
        ["pi-a"],
        ["pi-b", "pi-c"],
    )
    stopped = await admin.post("/policies/pi-a/rollout/stop", {"why": "lunch"})
    assert (stopped.body["status"], stopped.body["why"]) == ("stopped", "lunch")
    assert (await server.unlock(*machines["pi-b"])).code == "state-not-rolled-out"
    assert (await admin.post("/policies/pi-a/rollout/stop", {})).code == "rollout-changed"
    assert (await admin.post("/policies/pi-a/rollout/resume")).body["status"] == "running"
    assert (await server.unlock(*machines["pi-b"])).status == 200
    finished = await admin.post("/policies/pi-a/rollout/finish")
    assert (finished.status, finished.body["status"]) == (200, "finished")
    assert (await server.unlock(*machines["pi-c"])).status == 200
    assert (await admin.get("/policies/pi-a/rollout")).body["status"] == "finished"
    assert (await admin.post("/policies/pi-a/rollout/abandon", {})).status == 404
    verbs = {"start", "widen", "stop", "resume", "finish"}
    assert await actors(server) == {(f"policy rollout {verb}", "pi-a") for verb in verbs}


async def test_a_rollout_is_taken_back(server: Server, admin: Admin) -> None:
    """Unless a machine that has passed would be refused: that takes a person."""
    machines = await fleet(server, "pi-a")
    attester, kid = machines["pi-a"]
    attester.extend(4, b"another kernel")
    body = {"name": "kernel", "change": {"add": [{"label": "new", "values": booted(attester)}]}, "share": 1.0}
    assert (await admin.post("/policies/pi-a/rollout", body)).status == 201
    assert (await server.unlock(attester, kid)).status == 200
    refused = await admin.post("/policies/pi-a/rollout/abandon", {})
    assert (refused.status, refused.code) == (409, "would-refuse")
    other = await fleet(server, "pi-x")
    other["pi-x"][0].extend(4, b"another kernel")
    body["change"] = {"add": [{"label": "new", "values": booted(other["pi-x"][0])}]}
    assert (await admin.post("/policies/pi-x/rollout", body)).status == 201
    abandoned = await admin.post("/policies/pi-x/rollout/abandon", {"why": "a bad image"})
    assert (abandoned.status, abandoned.body["status"]) == (200, "abandoned")
    assert (await server.unlock(*other["pi-x"])).status == 403


CHANGE: dict[str, Any] = {"add": [{"label": "new", "values": hexadecimal(values("a"))}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("apply", {}, 400, "change-invalid"),
        ("apply", {"add": [], "retire": []}, 400, "change-invalid"),
        ("apply", {"retire": ["none"]}, 400, "change-invalid"),
        ("apply", {"add": [{"label": "x", "values": {}}]}, 400, "change-invalid"),
        ("apply", {"add": [{"label": "x", "values": {"0": "00"}}]}, 400, "request-malformed"),
        ("apply", {"add": [{"label": "x"}]}, 400, "request-malformed"),
        ("apply", CHANGE | {"force": True}, 400, "request-malformed"),
        ("dry-run", {"retire": "x"}, 400, "request-malformed"),
        ("apply", {"rules": "some"}, 400, "request-malformed"),
        ("apply", {"rules": {"nonsense": 1}}, 400, "rules-invalid"),
        ("dry-run", {"rules": {"judge-by-events": [9], "rules": []}}, 400, "rules-invalid"),
        ("apply", {"rules": {"\ud800": 1}}, 400, "request-malformed"),
        (
            "dry-run",
            {"rules": {"judge-by-events": [7], "rules": [{"\udc00": "on"}]}},
            400,
            "request-malformed",
        ),
        ("rollout", {"name": "x", "change": CHANGE}, 400, "request-malformed"),
        ("rollout", {"name": "x", "change": CHANGE, "share": 0.5, "label": "a"}, 400, "request-malformed"),
        ("rollout", {"name": "x", "change": CHANGE, "share": 0}, 400, "request-malformed"),
        ("rollout", {"name": "x", "change": CHANGE, "share": 1.01}, 400, "request-malformed"),
        ("rollout", {"name": "x", "change": CHANGE, "share": "1"}, 400, "request-malformed"),
        ("rollout", {"name": "a b", "change": CHANGE, "share": 1}, 400, "request-malformed"),
        ("rollout", {"name": "x", "change": CHANGE, "label": "a\u0000b"}, 400, "request-malformed"),
        ("rollout", {"name": "x", "change": CHANGE, "share": 1, "limit": -1}, 400, "request-malformed"),
        ("rollout/widen", {"share": 1}, 404, "not-found"),
        ("rollout/stop", {"why": "a\u0000b"}, 400, "request-malformed"),
        ("rollout/stop", {"why": "\ud800"}, 400, "request-malformed"),
        ("rollout/stop", {}, 404, "not-found"),
        ("rollout/finish", None, 404, "not-found"),
    ],
)
async def test_wrong_changes(
    server: Server, admin: Admin, path: str, body: Any, status: int, code: str
) -> None:
    """The refusal names what is wrong, and nothing changes."""
    await make_policy(server)
    answer = await admin.post(f"/policies/web/{path}", body)
    assert (answer.status, answer.code) == (status, code), answer
    assert (await server.store.policies.get_policy("web")).states == ()
    assert await actors(server) == set()


async def test_changes_of_other_policies(server: Server) -> None:
    """A token for one policy neither changes another nor sees its rollout; there or not, the answer is the same."""
    await fleet(server, "pi-a")
    await fleet(server, "pi-b")
    limited = await holder(server, policies=("pi-b",))
    every = await holder(server, name="every")
    start = {"name": "x", "change": CHANGE, "share": 1}
    assert (await every.post("/policies/pi-a/rollout", start)).status == 201
    for policy in ("pi-a", "none"):
        answers = [
            await limited.post(f"/policies/{policy}/dry-run", CHANGE),
            await limited.post(f"/policies/{policy}/apply", CHANGE),
            await limited.post(f"/policies/{policy}/rollout", start),
            await limited.get(f"/policies/{policy}/rollout"),
            await limited.post(f"/policies/{policy}/rollout/widen", {"share": 1}),
            await limited.post(f"/policies/{policy}/rollout/stop", {}),
            await limited.post(f"/policies/{policy}/rollout/resume"),
            await limited.post(f"/policies/{policy}/rollout/finish"),
            await limited.post(f"/policies/{policy}/rollout/abandon", {}),
        ]
        assert {(answer.status, answer.code) for answer in answers} == {(403, "policy-not-granted")}
    assert (await limited.get("/rollouts")).body["rollouts"] == []
    assert len((await every.get("/rollouts")).body["rollouts"]) == 1


# --- what a dry run tells, and whom ---------------------------------------------------------------------------------

NOT_THIS = {"judge-by-events": [8], "rules": [{"command-line": {"matches": "root=/dev/none"}}]}
#: Asks for one letter of a command line: who may ask often enough reads all of it.
ORACLE = {
    "judge-by-events": [8],
    "rules": [
        {"command-line": {"matches": "linux .*"}},
        {"events": {"pcr": 8, "allow": [{"data-matches": ".*"}]}},
    ],
}


async def logged(server: Server) -> str:
    """A machine whose event log the server keeps; a part of its kernel command line."""
    attester = Attester()
    attester.boot("secure-boot")
    kid = await server.enroll(attester, "pi-a", selection=Selection.parse("sha256:4,8"))
    await server.unlock(attester, kid)
    (recorded,) = (await server.store.policies.get_policy("pi-a")).states
    assert recorded.values[8] == attester.pcrs["sha256"][8]
    every = await holder(server, name="reader")
    shown = await every.post("/policies/pi-a/dry-run", {"rules": NOT_THIS})
    (group,) = shown.body["refused"]
    assert group["code"] == "rule-failed"
    assert 'the command line "' in group["sentence"]
    return str(group["sentence"]).partition('the command line "')[2].partition('"')[0].split()[0]


@pytest.mark.parametrize("scopes", [(Scope.STAGE,), (Scope.STAGE, Scope.APPROVE)], ids=["stage", "approve"])
@pytest.mark.parametrize("rules", [NOT_THIS, ORACLE], ids=["not-this", "oracle"])
async def test_rules_of_ones_own_do_not_read_what_machines_logged(
    server: Server, scopes: tuple[Scope, ...], rules: dict[str, Any]
) -> None:
    """Neither in a sentence nor by who would be refused: a token that may not read learns no command line."""
    word = await logged(server)
    client = await holder(server, *scopes)
    answer = await client.post("/policies/pi-a/dry-run", {"rules": rules})
    assert (answer.status, answer.code) == (403, "scope-missing")
    assert word not in str(answer.body)


async def test_a_dry_run_by_who_may_not_read_has_codes_only(server: Server) -> None:
    """Also under the policy's own rules; whoever may read is told why."""
    word = await logged(server)
    every = await holder(server, name="every")
    changes = PolicyChanges(server.store, server.clock, Author.operator("tester"))
    await changes.apply("pi-a", await changes.parse("pi-a", {"rules": NOT_THIS}), force=True)
    change = {"add": [{"label": "new", "values": {"4": "00" * 32, "8": "11" * 32}}]}
    told = await every.post("/policies/pi-a/dry-run", change)
    assert word in told.body["refused_already"][0]["sentence"]
    answer = await (await holder(server, Scope.STAGE)).post("/policies/pi-a/dry-run", change)
    assert answer.status == 200
    (group,) = answer.body["refused_already"]
    assert (group["code"], group["devices"]) == ("rule-failed", ["pi-a"])
    assert word not in str(answer.body)


async def test_a_dry_run_by_who_may_not_read_names_no_pcr(server: Server) -> None:
    """Values of one's own beside it would otherwise tell, PCR by PCR, what each machine runs."""
    machines = await fleet(server, "pi-a", "pi-b")
    near = booted(machines["pi-a"][0]) | {"4": "00" * 32}
    change = {"add": [{"label": "new", "values": near}], "rules": "none"}
    attester, kid = machines["pi-b"]
    attester.extend(0, b"other firmware")
    server.clock.advance(minutes=1)
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    told = await (await holder(server, name="every")).post("/policies/pi-a/dry-run", change)
    assert told.body["refused_already"][0]["sentence"] == "PCR 0 is not as approved."
    answer = await (await holder(server, Scope.STAGE)).post("/policies/pi-a/dry-run", change)
    assert "PCR" not in str(answer.body)
    assert [group["code"] for group in answer.body["refused_already"]] == ["pcr-mismatch"]
