"""The admin API does whatever the console does: searches, trust anchors, approvals of several machines at once."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from yarl import URL

from tests.attester import Attester
from tests.protocol.endorsement import ek_pki as pki
from tests.server import Server
from tests.web.admin.client import Admin


async def refused(server: Server, name: str, *, kernel: bytes = b"another kernel", **terms: Any) -> Attester:
    """A machine that enrolled, then booted something else, and waits at its prompt."""
    attester = Attester()
    kid = await server.enroll(attester, name, **terms)
    attester.extend(4, kernel)
    await server.unlock(attester, kid)
    return attester


def names(body: dict[str, Any]) -> list[str]:
    """The machines of a page."""
    return [device["name"] for device in body["devices"]]


async def test_devices_are_searched_as_on_the_command_line(server: Server, admin: Admin) -> None:
    """By policy, label, refusal and silence; conditions add up, and pages keep them."""
    await refused(server, "bad")
    good = Attester()
    kid = await server.enroll(good, "good")
    assert (await server.unlock(good, kid)).status == 200
    await admin.request("PUT", "/devices/good/labels", json={"labels": ["rack-1", "site=x"]})
    assert names((await admin.get("/devices?refused=true")).body) == ["bad"]
    assert names((await admin.get("/devices?refused=false")).body) == ["bad", "good"]
    assert names((await admin.get("/devices?policy=good,none")).body) == ["good"]
    assert names((await admin.get("/devices?label=rack-1,site%3Dx")).body) == ["good"]
    assert names((await admin.get("/devices?label=rack-1,other")).body) == []
    assert names((await admin.get("/devices?stale=3600")).body) == []
    server.clock.advance(hours=2)
    await server.unlock(good, kid)
    assert names((await admin.get("/devices?stale=3600")).body) == ["bad"]
    assert names((await admin.get("/devices?stale=3600&refused=true&policy=good")).body) == []
    page = (await admin.get("/devices?policy=good,bad&limit=1")).body
    assert (names(page), page["next"]) == (["bad"], "bad")


async def test_a_search_shows_no_foreign_device(server: Server, admin: Admin, limited: Admin) -> None:
    """A policy that the token is not for has no machines, with its name or without."""
    await refused(server, "bad")
    assert names((await limited.get("/devices?refused=true")).body) == []
    assert names((await limited.get("/devices?policy=bad")).body) == []
    assert (await limited.get("/observations?policy=bad")).code == "policy-not-granted"
    assert (await admin.get("/observations?policy=web")).body["observations"] == []
    (seen,) = (await admin.get("/observations?policy=bad")).body["observations"]
    for path in ("/alike", ""):
        assert (await limited.get(f"/observations/{seen['id']}{path}")).code == "observation-missing"
    for path, body in (("/approve", {}), ("/approve-alike", {"observations": [seen["id"]]})):
        answer = await limited.post(f"/observations/{seen['id']}{path}", body)
        assert (answer.status, answer.code) == (404, "observation-missing")


@pytest.mark.parametrize(
    "query",
    [
        "/devices?refused=1",
        "/devices?refused=",
        "/devices?stale=0",
        "/devices?stale=1h",
        "/devices?policy=",
        "/devices?policy=a,,b",
        "/devices?label=",
        "/observations?policy=%20",
        "/audit?since=yesterday",
        "/audit?since=2026-11-27T10:00:00",
        "/audit?since=0001-01-01T00:00:00%2B14:00",
        "/audit?since=2026-11-27T10:00:00Z&until=2026-11-27T10:00:00Z",
        "/audit?event=",
        "/audit?code=%00",
        "/audit?who=%ed%a0%80",
        "/audit.csv?limit=10001",
        "/audit.csv?limit=0",
    ],
)
async def test_searches_that_cannot_be_read(admin: Admin, query: str) -> None:
    """Each is refused with one sentence."""
    answer = await admin.get(query)
    assert (answer.status, answer.code) == (400, "request-malformed")


async def test_the_audit_record_is_searched(server: Server, admin: Admin) -> None:
    """By time, event, code and actor, as ``audit list`` does."""
    await refused(server, "bad")
    server.clock.advance(hours=1)
    boundary = server.clock.now().isoformat()
    await admin.post("/devices/bad/suspend", {"reason": "=1+1"})

    async def events(query: str) -> list[str]:
        return [entry["event"] for entry in (await admin.get(f"/audit?{query}")).body["entries"]]

    assert await events("code=pcr-mismatch,device-suspended") == ["unlock"]
    assert await events("event=device") == ["device suspend"]
    assert await events("who=ci") == ["device suspend"]
    assert await events("who=token:ci,operator:nobody&event=unlock") == []
    assert await events(f"since={URL.build(query={'x': boundary}).raw_query_string[2:]}") == [
        "device suspend"
    ]
    assert "device suspend" not in await events(f"until={boundary.replace('+00:00', 'Z')}")


async def test_the_audit_record_as_csv(server: Server, admin: Admin, limited: Admin) -> None:
    """The same search for a spreadsheet, in which nothing is computed; not for a limited token."""
    await refused(server, "bad")
    await admin.post("/devices/bad/suspend", {"reason": "=1+1"})
    answer = await admin.get("/audit.csv?event=device")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    (row,) = csv.DictReader(io.StringIO(answer.body.decode()))
    listed = (await admin.get("/audit?event=device")).body["entries"][0]
    assert (row["no"], row["event"], row["actor"]) == (str(listed["no"]), "device suspend", "token:ci")
    assert row["device"] == "bad"
    await admin.post("/tokens", {"policy": "web"})
    assert (await limited.get("/audit.csv")).code == "policy-not-granted"
    assert len(list(csv.reader(io.StringIO((await admin.get("/audit.csv?limit=1")).body.decode())))) == 2


async def test_a_formula_is_no_formula(server: Server, admin: Admin) -> None:
    """An attacker's text in a cell does not compute."""
    made = pki.ca("Root")
    await admin.post("/ek-roots", {"pem": made.pem.decode(), "label": "=cmd"})
    await refused(server, "bad")
    text = (await admin.get("/audit.csv")).body.decode()
    for row in csv.reader(io.StringIO(text)):
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)


async def test_trust_anchors(server: Server, admin: Admin, limited: Admin) -> None:
    """Added once, listed, removed; a limited token has nothing to do with what every policy trusts."""
    first, second = pki.ca("Root"), pki.ca("Other")
    added = await admin.post("/ek-roots", {"pem": (first.pem + second.pem).decode()})
    assert (added.status, added.body["new"], len(added.body["roots"])) == (200, 2, 2)
    again = await admin.post("/ek-roots", {"pem": first.pem.decode(), "label": "another"})
    assert again.body["new"] == 0
    listed = (await admin.get("/ek-roots")).body["roots"]
    assert again.body["roots"][0] in listed
    assert {root["label"] for root in listed}.isdisjoint({"another"})
    written = [e for _, e in await server.store.audit.list_audit() if e.event == "ek-root add"]
    assert [entry.actor for entry in written] == ["token:ci", "token:ci"]
    print_ = listed[0]["fingerprint"]
    removed = await admin.post("/ek-roots/remove", {"fingerprint": print_.upper()})
    assert removed.body == listed[0]
    assert (await admin.post("/ek-roots/remove", {"fingerprint": print_})).code == "not-found"
    assert [root["fingerprint"] for root in (await admin.get("/ek-roots")).body["roots"]] == [
        listed[1]["fingerprint"]
    ]
    for answer in (
        await limited.get("/ek-roots"),
        await limited.post("/ek-roots", {"pem": first.pem.decode()}),
        await limited.post("/ek-roots/remove", {"fingerprint": listed[1]["fingerprint"]}),
    ):
        assert (answer.status, answer.code) == (403, "policy-not-granted")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "request-malformed"),
        ({"pem": "x", "der": "eA"}, "request-malformed"),
        ({"pem": ""}, "certificate-malformed"),
        ({"pem": "no certificate"}, "certificate-malformed"),
        ({"der": "eA"}, "certificate-malformed"),
        ({"pem": "x", "label": " "}, "request-malformed"),
        ({"pem": "x", "label": "a\nb"}, "request-malformed"),
    ],
)
async def test_certificates_that_are_none(admin: Admin, body: dict[str, Any], code: str) -> None:
    """Nothing is trusted then."""
    answer = await admin.post("/ek-roots", body)
    assert (answer.status, answer.code) == (400, code)
    assert (await admin.get("/ek-roots")).body["roots"] == []


async def test_a_token_for_the_name_of_a_machine_is_refused(server: Server, admin: Admin) -> None:
    """Nobody could enroll with it; ``again`` says that the machine will be removed first."""
    await server.enroll(Attester(), "pi-b")
    answer = await admin.post("/tokens", {"policy": "web", "name": "pi-b"})
    assert (answer.status, answer.code) == (409, "name-taken")
    assert (await admin.post("/tokens", {"policy": "web", "name": "pi-b", "again": True})).status == 201
    assert (await admin.post("/tokens", {"policy": "web", "name": "pi-*"})).status == 201


async def test_a_limited_token_learns_no_foreign_name(server: Server, admin: Admin, limited: Admin) -> None:
    """Not from the EK of a foreign machine, in a list or alone, registered or enrolled, nor from a policy's users."""
    from tests.web.admin.test_fleet import ek

    enrolled, waiting = Attester(), Attester()
    await server.enroll(enrolled, "secret-1")
    await admin.request("PUT", "/registered-eks/secret-2", json={"ek_sha256": ek(waiting), "policy": "db"})
    await server.devices.set_running_policy("secret-1", "web")
    for key in (enrolled, waiting):
        body = {"ek_sha256": ek(key), "policy": "web"}
        for answer in (
            await limited.request("PUT", "/registered-eks/mine", json=body),
            await limited.post("/registered-eks", {"machines": [body | {"name": "mine"}]}),
        ):
            assert (answer.status, answer.code) == (400, "ek-list-invalid")
            assert "secret" not in str(answer.body)
        shown = await admin.request("PUT", "/registered-eks/mine", json=body)
        assert "secret" in shown.body["detail"]
    used = await limited.post("/policies/web/remove")
    assert (used.status, used.code) == (409, "policy-in-use")
    assert "secret" not in str(used.body)
    # The name of a foreign machine is like any other.
    assert (await limited.post("/tokens", {"policy": "web", "name": "secret-1"})).status == 201


async def test_an_observation_is_approved_by_its_number(server: Server, admin: Admin) -> None:
    """For its machine alone, or for its policy."""
    await refused(server, "bad")
    (seen,) = (await admin.get("/observations")).body["observations"]
    made = await admin.post(
        f"/observations/{seen['id']}/approve",
        {"only_this_device": True, "accept_uncovered": ["kernel", "initrd", "command_line"]},
    )
    assert (made.status, made.body["device"]) == (200, "bad")


async def test_machines_with_the_same_difference_are_approved_together(server: Server, admin: Admin) -> None:
    """Those that were shown, and no others; a failure stands beside the other results."""
    for name in ("a", "b"):
        await refused(server, name)
    await refused(server, "c", kernel=b"a third kernel")
    number = (await admin.get("/observations?device=a")).body["observations"][0]["id"]
    foreign = (await admin.get("/observations?device=c")).body["observations"][0]["id"]
    alike = (await admin.get(f"/observations/{number}/alike")).body["waiting"]
    assert [each["device"] for each in alike] == ["a", "b"]
    shown = [each["observation"] for each in alike]
    gaps = ["kernel", "initrd", "command_line"]
    path = f"/observations/{number}/approve-alike"
    wrong = await admin.post(path, {"observations": [*shown, foreign], "accept_uncovered": gaps})
    assert (wrong.status, wrong.code) == (404, "observation-missing")
    done = await admin.post(path, {"observations": shown[:1], "accept_uncovered": gaps})
    assert [(each["device"], each["code"]) for each in done.body["results"]] == [("a", "ok")]
    assert (await admin.post(path, {"observations": []})).code == "request-malformed"
