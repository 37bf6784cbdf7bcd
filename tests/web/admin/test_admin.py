"""The admin API over real HTTP: who may do what, what is refused, and what the audit record says of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from tang_attest.errors import TangAttestError, Unavailable
from tang_attest.ports.admin import Scope
from tang_attest.ports.audit import AuditEntry
from tang_attest.protocol.reference_state import Life, ReferenceState, StateLimits
from tang_attest.service.admin import administration
from tang_attest.service.admin.administration import Administration
from tang_attest.service.audit.actors import Author
from tang_attest.web.admin import bearer
from tang_attest.web.admin.operation import Operation
from tang_attest.web.admin.routes import OPERATIONS
from tests.attester import Attester
from tests.server import Server
from tests.web.admin.client import EVERY_SCOPE, Admin, holder, make_policy, pcrread, values

UNKNOWN = "A" * 43


@pytest.fixture
async def admin(server: Server) -> Admin:
    """Holds a token with every scope; there is a policy ``web``."""
    await make_policy(server)
    return await holder(server)


async def observe(server: Server, attester: Attester, name: str = "pi-b", **terms: Any) -> str:
    """Enroll a machine that then boots something else, and is refused; its kid."""
    kid = await server.enroll(attester, name, **terms)
    attester.extend(4, b"another kernel")
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    return kid


def address(operation: Operation) -> str:
    """The operation's address, with names of things that are not there."""
    return operation.path.format(device="none", policy="none", label="none", observation="1", signer="none")


# --- who may ask ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_a_token_does_what_its_scope_says(server: Server, operation: Operation) -> None:
    """And nothing else: the refusal names the scope that is missing, and says nothing of what exists."""
    for scope in EVERY_SCOPE:
        client = await holder(server, scope, name=f"ci-{scope}")
        answer = await client.request(operation.method, address(operation))
        if scope is operation.scope:
            assert answer.code != "scope-missing", scope
        else:
            assert (answer.status, answer.code) == (403, "scope-missing"), scope
            assert answer.body["detail"] == f"Token 'ci-{scope}' lacks the scope '{operation.scope}'."


@pytest.mark.parametrize(
    "path", ["/devices", "/policies/web", "/nothing", "/%0A", "/", "//", "/openapi.json/", "/%ff"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
async def test_strangers_learn_nothing(server: Server, method: str, path: str) -> None:
    """Without a valid token every address and every method answers alike."""
    await make_policy(server)
    answer = await Admin(server, None).request(method, path)
    assert (answer.status, answer.code) == (401, "admin-token-invalid")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert "Allow" not in answer.headers


async def test_every_wrong_token_is_answered_alike(server: Server, admin: Admin) -> None:
    """Unknown, expired, revoked, of another kind or in another place: one answer.  The log tells them apart."""
    expired = await holder(server, name="old", valid_for=timedelta(minutes=1))
    revoked = await holder(server, name="gone")
    await server.admin_tokens.revoke("gone")
    enrollment = await server.token()
    server.clock.advance(minutes=1)
    attempts: list[tuple[str, dict[str, str]]] = [
        ("missing", {}),
        ("unknown", {"Authorization": f"Bearer {UNKNOWN}"}),
        ("unknown", {"Authorization": f"Bearer {enrollment}"}),
        ("expired", {"Authorization": f"Bearer {expired.token}"}),
        ("revoked", {"Authorization": f"Bearer {revoked.token}"}),
        ("not a bearer token", {"Authorization": f"Basic {admin.token}"}),
        ("not a bearer token", {"Authorization": f"Bearer {admin.token}x"}),
        ("not a bearer token", {"Authorization": f"{admin.token}"}),
        ("not a bearer token", {"Authorization": "Bearer"}),
        ("missing", {"X-Authorization": f"Bearer {admin.token}"}),
    ]
    bodies = []
    with capture_logs() as logs:
        for _, headers in attempts:
            answer = await Admin(server, None).request("GET", "/devices", headers=headers)
            assert answer.status == 401
            bodies.append(answer.body | {"request_id": ""})
        in_query = await Admin(server, None).get(f"/devices?access_token={admin.token}")
    assert in_query.status == 401
    assert all(body == bodies[0] for body in bodies)
    causes = [entry["cause"] for entry in logs if entry["event"] == "not authenticated"]
    assert causes == [cause for cause, _ in attempts] + ["missing"]
    assert {entry["token"] for entry in logs if entry.get("cause") == "expired"} == {"old"}
    assert not any(
        text in str(logs) for text in (UNKNOWN, enrollment, str(expired.token), str(revoked.token))
    )


async def test_two_authorizations_are_none(server: Server, admin: Admin) -> None:
    """A proxy and a server that read different ones would disagree about who asks."""
    headers = [("Authorization", f"Bearer {admin.token}"), ("Authorization", f"Bearer {UNKNOWN}")]
    for each in (headers, headers[::-1]):
        assert (await server.request("GET", "/admin/v1/devices", headers=each)).status == 401


async def test_the_scheme_has_no_case(server: Server, admin: Admin) -> None:
    """RFC 9110, 11.1."""
    headers = {"Authorization": f"bEARER {admin.token}"}
    assert (await Admin(server, None).request("GET", "/devices", headers=headers)).status == 200


async def test_a_revoked_token_ends_at_once(server: Server, admin: Admin) -> None:
    """The request before was answered, the one after is not."""
    assert (await admin.get("/devices")).status == 200
    await server.admin_tokens.revoke("ci")
    assert (await admin.get("/devices")).status == 401


async def test_tokens_do_not_travel_in_the_clear(
    server: Server, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine has to use TLS; the token is not even looked up.  The server's own host need not."""
    original, remotes = bearer._check_transport, [""]
    monkeypatch.setattr(
        bearer, "_check_transport", lambda request: original(request.clone(remote=remotes[-1]))
    )
    for remote in ("192.0.2.7", "2001:db8::7", "fe80::7%eth0", "::ffff:192.0.2.7"):
        remotes.append(remote)
        for path in ("/devices", "/nothing"):
            answer = await server.request(
                "GET", f"/admin/v1{path}", headers={"Authorization": f"Bearer {admin.token}"}
            )
            assert (answer.status, answer.code) == (403, "transport-insecure")
    for remote in ("127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"):
        remotes.append(remote)
        assert (await admin.get("/devices")).status == 200
    monkeypatch.setattr(web.BaseRequest, "secure", mock.PropertyMock(return_value=True))
    remotes.append("192.0.2.7")
    assert (await admin.get("/devices")).status == 200


# --- addresses and methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/devices/", "//devices", "/devices/a/b", "/policies/web/states/x", "/DEVICES"]
)
async def test_no_such_address(admin: Admin, path: str) -> None:
    """A problem like every other."""
    answer = await admin.get(path)
    assert (answer.status, answer.code) == (404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/devices", "GET, HEAD"),
        ("DELETE", "/devices/pi-b", "GET, HEAD"),
        ("GET", "/policies/web/states", "POST"),
        ("HEAD", "/policies/web/states", "POST"),
        ("OPTIONS", "/audit", "GET, HEAD"),
        ("PROPFIND", "/audit", "GET, HEAD"),
        ("POST", "/openapi.json", ""),
    ],
)
async def test_methods(admin: Admin, method: str, path: str, allowed: str) -> None:
    """405 says what would do."""
    answer = await admin.request(method, path)
    assert (answer.status, answer.headers.get("Allow", "")) == ((405, allowed) if allowed else (404, ""))


async def test_head(admin: Admin) -> None:
    """The head of the GET, without its body."""
    answer = await admin.server.request(
        "HEAD", "/admin/v1/devices", headers={"Authorization": f"Bearer {admin.token}"}
    )
    assert (answer.status, answer.body) == (200, None if answer.body is None else b"")
    assert int(answer.headers["Content-Length"]) > 10


async def test_an_endpoint_before_it(tmp_path: Any) -> None:
    """The setting ``endpoint`` counts for the admin API too, and the document says so."""
    async with Server(tmp_path, endpoint="/tang") as server:
        client = await holder(server)
        assert (await client.get("/devices")).status == 200
        assert (await server.request("GET", "/admin/v1/devices")).status == 404
        served = await client.get("/openapi.json")
        assert served.body["servers"] == [{"url": "/tang/admin/v1"}]


# --- reading --------------------------------------------------------------------------------------------------------


async def test_devices(server: Server, admin: Admin, attester: Attester) -> None:
    """By name, in pages, with their outcomes."""
    for name in ("pi-c", "pi-a", "pi-b"):
        await server.enroll(Attester(), name)
    first = await admin.get("/devices?limit=2")
    assert [device["name"] for device in first.body["devices"]] == ["pi-a", "pi-b"]
    rest = await admin.get(f"/devices?limit=2&after={first.body['next']}")
    assert [device["name"] for device in rest.body["devices"]] == ["pi-c"]
    assert rest.body["next"] is None
    one = await admin.get("/devices/pi-b")
    assert one.body == first.body["devices"][1]
    assert (one.body["policy"], one.body["last_code"], one.body["ek_verified"]) == ("pi-b", None, False)
    assert (await admin.get("/devices/none")).status == 404


async def test_policies(server: Server, admin: Admin) -> None:
    """By name, in pages; one has its states with their values."""
    await make_policy(server, "db")
    first = await admin.get("/policies?limit=1")
    assert [policy["name"] for policy in first.body["policies"]] == ["db"]
    rest = await admin.get(f"/policies?after={first.body['next']}")
    assert (rest.body["policies"][0]["name"], rest.body["next"]) == ("web", None)
    await admin.stage("image", values("a"))
    (state,) = (await admin.get("/policies/web")).body["states"]
    assert (state["label"], state["life"], state["created_by"]) == ("image", "staged", "token:ci")
    assert state["values"]["7"] == values("a")[7].hex()
    assert (await admin.get("/policies")).body["policies"][1]["states"] == {"image": "staged"}
    assert (await admin.get("/policies/none")).status == 404


async def test_observations_and_audit(server: Server, admin: Admin, attester: Attester) -> None:
    """Newest first, in pages, of one machine or of all."""
    kid = await observe(server, attester)
    await server.unlock(attester, kid)
    await observe(server, Attester(), "pi-c")
    first = await admin.get("/observations?limit=2")
    assert [seen["device"] for seen in first.body["observations"]] == ["pi-c", "pi-b"]
    rest = await admin.get(f"/observations?limit=2&before={first.body['next']}")
    assert (len(rest.body["observations"]), rest.body["next"]) == (1, None)
    of_one = (await admin.get("/observations?device=pi-b")).body["observations"]
    assert of_one == [first.body["observations"][1], *rest.body["observations"]]
    explained = (await admin.get(f"/observations/{of_one[0]['id']}")).body
    assert explained["observation"] == of_one[0]
    assert explained["reasons"][0]["code"] == of_one[0]["code"]
    assert explained["doubts"] == ["the machine sent no event log, so only the values are known"]
    assert of_one[0]["values"]["4"] == attester.pcrs["sha256"][4].hex()
    for missing in ("/observations/99", "/observations/9223372036854775806", "/observations?device=none"):
        assert (await admin.get(missing)).status == 404

    newest = await admin.get("/audit?limit=1")
    assert (newest.body["entries"][0]["event"], newest.body["entries"][0]["device"]) == ("unlock", "pi-c")
    older = await admin.get(f"/audit?before={newest.body['next']}&device=pi-b")
    assert {entry["device"] for entry in older.body["entries"]} == {"pi-b"}
    assert older.body["next"] is None


# --- staging --------------------------------------------------------------------------------------------------------


async def test_a_staged_image_boots(server: Server, attester: Attester) -> None:
    """A state staged by a pipeline opens the disk of the machine that boots it, and the audit record names the token."""
    kid = await server.enroll(attester)
    attester.extend(4, b"another kernel")
    client = await holder(server, Scope.STAGE, policies=("pi-b",))
    coming = {pcr: attester.pcrs["sha256"][pcr] for pcr in (0, 2, 4, 7)}
    staged = await client.stage("image-42", coming, "pi-b")
    assert (staged.status, staged.body["life"], staged.body["origin"]) == (201, "staged", "imported")
    assert (await server.unlock(attester, kid)).status == 200
    ((_, entry),) = [
        row for row in await server.store.audit.list_audit() if row[1].event == "policy state add"
    ]
    assert (entry.actor, entry.address, entry.verdict) == ("token:ci", "127.0.0.1", "done")
    assert entry.request_id is not None
    assert entry.details["label"] == "image-42"


async def test_pipelines_retry(server: Server, admin: Admin) -> None:
    """The same again, or under another label: 200 with the state that is there, and nothing changes."""
    made = await admin.stage("image", values("a"))
    before = await server.store.audit.list_audit()
    for label in ("image", "image again"):
        again = await admin.stage(label, values("a"))
        assert (again.status, again.body) == (200, made.body)
    text = await admin.post(
        "/policies/web/states?label=image", data=pcrread(values("a")), headers={"Content-Type": "text/plain"}
    )
    assert (text.status, text.body) == (200, made.body)
    assert await server.store.audit.list_audit() == before


async def test_twice_at_once(server: Server, admin: Admin) -> None:
    """One is new, the others are told so."""
    answers = await asyncio.gather(*(admin.stage("image", values("a")) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]
    assert len((await server.store.policies.get_policy("web")).states) == 1


async def test_another_image_under_the_same_label(admin: Admin) -> None:
    """A label names one set of values."""
    await admin.stage("image", values("a"))
    answer = await admin.stage("image", values("b"))
    assert (answer.status, answer.code) == (409, "name-taken")


async def test_staged_for_a_while(server: Server, admin: Admin) -> None:
    """A retry answers the state as it is; another label starts anew; what is expired is not known any more."""
    made = await admin.stage("image", values("a"), expires_in=3600)
    assert made.body["expires_at"] == "2026-01-01T13:00:00Z"
    server.clock.advance(minutes=30)
    again = await admin.stage("image", values("a"), expires_in=3600)
    assert (again.status, again.body) == (200, made.body)
    longer = await admin.stage("longer", values("a"), expires_in=7200)
    assert (longer.status, longer.body["expires_at"]) == (201, "2026-01-01T14:30:00Z")
    server.clock.advance(minutes=30)
    assert (await admin.stage("image", values("a"))).code == "name-taken"


async def test_what_was_retired_stays_so(server: Server, admin: Admin) -> None:
    """A token that may stage cannot take back what an operator retired; one that may approve can."""
    await admin.stage("vulnerable", values("a"))
    await admin.move("vulnerable", "retire")
    stager = await holder(server, Scope.STAGE, name="stager")
    answer = await stager.stage("innocent", values("a"))
    assert (answer.status, answer.code) == (403, "state-retired")
    assert "'vulnerable'" in answer.body["detail"]
    assert (await stager.move("vulnerable", "restore")).code == "scope-missing"
    assert (await admin.move("vulnerable", "restore")).body["life"] == "active"
    assert (await stager.stage("innocent", values("a"))).status == 200


async def test_staging_is_bounded(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is read at every unlock: a token cannot make them without end."""
    monkeypatch.setattr(administration, "MAX_STAGED", 2)
    for word in ("a", "b"):
        assert (await admin.stage(word, values(word))).status == 201
    answer = await admin.stage("c", values("c"))
    assert (answer.status, answer.code) == (403, "announcements-full")
    assert (await admin.stage("a", values("a"))).status == 200
    await admin.move("a", "retire")
    assert (await admin.stage("c", values("c"))).status == 201


async def test_tpm2_pcrread(admin: Admin) -> None:
    """The tool's output is a body, with the label in the query; other PCRs in it are left out."""
    text = pcrread(values("a") | {9: bytes(32)})
    answer = await admin.post(
        "/policies/web/states?label=image%2042&expires_in=60",
        data=text,
        headers={"Content-Type": "text/plain; charset=utf-8"},
    )
    assert (answer.status, answer.body["label"]) == (201, "image 42")
    assert answer.body["values"] == {str(pcr): value.hex() for pcr, value in values("a").items()}
    assert answer.body["expires_at"] is not None


@pytest.mark.parametrize(
    ("query", "text", "code", "detail"),
    [
        ("label=x", b"hello", "values-invalid", "Line 1 is not a line of 'tpm2 pcrread'."),
        ("label=x", pcrread(values("a")) + b"  5 : 0xzz\n", "values-invalid", "Line 6 is not a line of"),
        ("label=x", pcrread({0: values("a")[0]}), "values-invalid", "PCR 2, 4, 7 missing"),
        ("label=x", b"", "values-invalid", "PCR 0, 2, 4, 7 missing"),
        ("label=x", b"\xff", "values-invalid", "not text"),
        ("label=x", pcrread(dict.fromkeys((0, 2, 4, 7), bytes(32))), "values-all-zero", "All values"),
        ("", pcrread(values("a")), "request-malformed", "label: "),
        ("label=", pcrread(values("a")), "request-malformed", "label: "),
        ("label=%00", pcrread(values("a")), "request-malformed", "label: A label has 1 to 64 printable"),
        ("label=x&expires_in=0", pcrread(values("a")), "request-malformed", "expires_in: "),
        ("label=x&expires_in=%2B5", pcrread(values("a")), "request-malformed", "expires_in: not a number"),
        ("label=x&expires_in=1_0", pcrread(values("a")), "request-malformed", "expires_in: not a number"),
        ("label=x&label=y", pcrread(values("a")), "request-malformed", "twice"),
        ("label=x&force=true", pcrread(values("a")), "request-malformed", "force: "),
        ("label=%ff", pcrread(values("a")), "request-malformed", "query cannot be read"),
    ],
)
async def test_wrong_text(admin: Admin, query: str, text: bytes, code: str, detail: str) -> None:
    """The refusal names the line or the parameter, and nothing changes."""
    answer = await admin.post(
        f"/policies/web/states?{query}", data=text, headers={"Content-Type": "text/plain"}
    )
    assert (answer.status, answer.code) == (400, code)
    assert detail in answer.body["detail"]
    await unchanged(admin)


GOOD = {"label": "x", "values": {str(pcr): value.hex() for pcr, value in values("a").items()}}


@pytest.mark.parametrize(
    ("body", "code", "detail"),
    [
        (b"", "request-malformed", "not JSON"),
        (b"{", "request-malformed", "not JSON"),
        (b"[]", "request-malformed", "not a JSON object"),
        (b'{"label": "a", "label": "b"}', "request-malformed", "repeated"),
        (b"[" * 100_000, "request-malformed", "nested deeper"),
        (GOOD | {"force": True}, "request-malformed", "force: "),
        (GOOD | {"label": 7}, "request-malformed", "label: "),
        (GOOD | {"label": " x"}, "request-malformed", "label: A label has"),
        (GOOD | {"label": "x" * 65}, "request-malformed", "label: "),
        (GOOD | {"expires_in": "60"}, "request-malformed", "expires_in: "),
        (GOOD | {"expires_in": 1.5}, "request-malformed", "expires_in: "),
        (GOOD | {"expires_in": 10**12}, "request-malformed", "expires_in: "),
        ({"label": "x"}, "request-malformed", "values: "),
        (GOOD | {"values": {"24": "00" * 32}}, "request-malformed", "values.24"),
        (GOOD | {"values": {"07": "00" * 32}}, "request-malformed", "values.07"),
        (GOOD | {"values": {"7": "00"}}, "request-malformed", "values.7"),
        (GOOD | {"values": {}}, "values-invalid", "PCR 0, 2, 4, 7 missing"),
        (GOOD | {"values": GOOD["values"] | {"9": "11" * 32}}, "values-invalid", "PCR 9 extra"),  # type: ignore[operator]
        (GOOD | {"values": GOOD["values"] | {"7": "11" * 48}}, "values-invalid", "PCR 7 has 48 bytes"),  # type: ignore[operator]
        (GOOD | {"values": dict.fromkeys("0247", "00" * 32)}, "values-all-zero", "All values"),
    ],
)
async def test_wrong_json(admin: Admin, body: Any, code: str, detail: str) -> None:
    """The refusal names the member, and nothing changes."""
    options = (
        {"data": body, "headers": {"Content-Type": "application/json"}}
        if isinstance(body, bytes)
        else {"json": body}
    )
    answer = await admin.request("POST", "/policies/web/states", **options)
    assert (answer.status, answer.code) == (400, code), answer
    assert detail in answer.body["detail"]
    await unchanged(admin)


async def unchanged(admin: Admin) -> None:
    """The policy has no state, and nobody changed anything."""
    assert (await admin.server.store.policies.get_policy("web")).states == ()
    assert not any(entry.actor == "token:ci" for _, entry in await admin.server.store.audit.list_audit())


async def test_a_label_is_given_once(admin: Admin) -> None:
    """With JSON the query has no label: two could differ."""
    answer = await admin.post("/policies/web/states?label=x", GOOD)
    assert (answer.status, answer.code) == (400, "request-malformed")
    await unchanged(admin)


@pytest.mark.parametrize(
    "media_type", ["application/x-www-form-urlencoded", "application/yaml", "text/html", "x"]
)
async def test_other_media_types(admin: Admin, media_type: str) -> None:
    """A form from a web page is not taken for JSON."""
    answer = await admin.post("/policies/web/states", data=b"{}", headers={"Content-Type": media_type})
    assert (answer.status, answer.code) == (415, "media-type-unsupported")
    text = await admin.post("/devices/x/approve", data=b"x", headers={"Content-Type": "text/plain"})
    assert (text.status, text.code) == (415, "media-type-unsupported")


async def test_big_bodies(admin: Admin) -> None:
    """Are not read to their end."""
    for media_type in ("text/plain", "application/json"):
        answer = await admin.post(
            "/policies/web/states?label=x", data=b" " * 300_000, headers={"Content-Type": media_type}
        )
        assert (answer.status, answer.code) == (413, "request-too-large")
    await unchanged(admin)


@pytest.mark.parametrize(
    "path",
    [
        "/devices/%ff",
        "/devices/a%00b",
        "/devices/a%2Fb",
        "/devices/a%0Ab",
        "/observations/9223372036854775807",
        "/devices?limit=0",
        "/devices?limit=101",
        "/devices?limit=1e1",
        "/devices?limit=%D9%A1",
        "/devices?limit",
        "/devices?limit=1&limit=1",
        "/devices?offset=1",
        "/devices?after=%00",
        "/audit?before=9223372036854775808",
        "/audit?before=-1",
        "/audit?device=%00",
        "/observations/0",
        "/observations/1x",
        "/observations/99999999999999999999",
        "/staged?x=1",
        "/audit?;",
    ],
)
async def test_wrong_addresses(admin: Admin, path: str) -> None:
    """Text that cannot be a name or a number is refused before a look-up."""
    answer = await admin.get(path)
    assert (answer.status, answer.code) == (400, "request-malformed")


async def test_no_body_where_none_belongs(admin: Admin) -> None:
    """{"force": true} is refused, not ignored."""
    await admin.stage("image", values("a"))
    answer = await admin.post("/policies/web/states/image/retire", {"force": True})
    assert (answer.status, answer.code) == (400, "request-malformed")
    assert (await admin.server.store.policies.get_policy("web")).states[0].life is Life.STAGED


# --- approving ------------------------------------------------------------------------------------------------------


async def test_approving_an_observation(server: Server, attester: Attester) -> None:
    """An observed boot counts once approved; the audit record has the token."""
    kid = await observe(server, attester)
    client = await holder(server, Scope.READ, Scope.APPROVE)
    seen = (await client.get("/observations?device=pi-b")).body["observations"][0]
    body = {
        "observation": seen["id"],
        "label": "new kernel",
        "once": True,
        "for_seconds": 600,
        "only_this_device": True,
    }
    approved = await client.post("/devices/pi-b/approve", body)
    assert approved.status == 200
    state = approved.body
    assert (state["label"], state["uses_left"], state["device"]) == ("new kernel", 1, "pi-b")
    assert state["expires_at"] == "2026-01-01T12:10:00Z"
    assert (await server.unlock(attester, kid)).status == 200
    assert (await server.unlock(attester, kid)).status == 403
    (entry,) = [row for _, row in await server.store.audit.list_audit() if row.event == "policy state add"]
    assert (entry.actor, entry.device, entry.address) == ("token:ci", "pi-b", "127.0.0.1")


async def test_approvals_that_are_refused(server: Server, admin: Admin, attester: Attester) -> None:
    """Nothing can be forced, nothing is approved by being the newest, and nothing for another machine."""
    kid = await observe(server, attester)
    await server.enroll(Attester(), "pi-c")
    (seen,) = (await admin.get("/observations")).body["observations"]
    attempts: list[tuple[str, dict[str, Any], int, str]] = [
        ("pi-b", {}, 400, "request-malformed"),
        ("pi-b", {"observation": seen["id"], "force": True}, 400, "request-malformed"),
        ("pi-b", {"observation": str(seen["id"])}, 400, "request-malformed"),
        ("pi-b", {"observation": seen["id"], "once": "yes"}, 400, "request-malformed"),
        ("pi-b", {"observation": 99}, 404, "observation-missing"),
        ("pi-c", {"observation": seen["id"]}, 404, "observation-missing"),
        ("none", {"observation": seen["id"]}, 404, "not-found"),
    ]
    for device, body, status, code in attempts:
        answer = await admin.post(f"/devices/{device}/approve", body)
        assert (answer.status, answer.code) == (status, code)
    assert (await server.unlock(attester, kid)).status == 403
    assert not any(entry.actor == "token:ci" for _, entry in await server.store.audit.list_audit())


async def test_a_states_life(server: Server, admin: Admin) -> None:
    """Announced, approved, retired, restored; every step is in the audit record, and none is done twice."""
    label = "6.1.0-29 / ü%2F"
    announced = ReferenceState(
        label,
        values("a"),
        "predicted",
        Life.PROPOSED,
        StateLimits(),
        created_at=None,
        created_by="device:pi-b",
    )
    await server.store.policies.add_state("web", announced, _entry(server))
    (waiting,) = (await admin.get("/staged")).body["states"]
    assert (waiting["policy"], waiting["label"], waiting["life"]) == ("web", label, "proposed")
    for deed, life in (("approve", "staged"), ("retire", "retired"), ("restore", "active")):
        moved = await admin.move(label, deed)
        assert (moved.status, moved.body["life"], moved.body["label"]) == (200, life, label)
        again = await admin.move(label, deed)
        assert (again.status, again.code) == (409, "state-changed")
    assert (await admin.get("/staged")).body["states"] == []
    events = [entry.event for _, entry in await server.store.audit.list_audit() if entry.actor == "token:ci"]
    assert events == ["policy state restore", "policy state retire", "policy state approve"]
    for deed in ("approve", "retire", "restore"):
        assert (await admin.move("none", deed)).status == 404
        assert (await admin.move(label, deed, "none")).status == 404


async def test_a_state_in_use_is_not_retired(server: Server, admin: Admin, attester: Attester) -> None:
    """That would lock machines out; a person at the server can force it, a token cannot."""
    kid = await server.enroll(attester)
    assert (await server.unlock(attester, kid)).status == 200
    (state,) = (await server.store.policies.get_policy("pi-b")).states
    answer = await admin.move(state.label, "retire", "pi-b")
    assert (answer.status, answer.code) == (409, "state-in-use")


def _entry(server: Server) -> AuditEntry:
    return Author("device:pi-b").entry(server.clock.now(), "announce", None, {})


# --- tokens for some policies ---------------------------------------------------------------------------------------


async def test_a_token_for_one_policy(server: Server, admin: Admin, attester: Attester) -> None:
    """Its holder sees and changes what belongs to that policy; the rest does not exist, or is refused alike."""
    await observe(server, attester)
    await observe(server, Attester(), "pi-c")
    limited = await holder(server, name="limited", policies=("pi-b",))
    assert [device["name"] for device in (await limited.get("/devices")).body["devices"]] == ["pi-b"]
    assert [policy["name"] for policy in (await limited.get("/policies")).body["policies"]] == ["pi-b"]
    mine = (await limited.get("/observations")).body["observations"]
    others = (await admin.get("/observations")).body["observations"]
    assert [seen["device"] for seen in mine] == ["pi-b"]
    (foreign,) = [seen for seen in others if seen["device"] == "pi-c"]
    assert (await limited.get(f"/observations/{mine[0]['id']}")).status == 200

    hidden = [
        await limited.get("/devices/pi-c"),
        await limited.get("/observations?device=pi-c"),
        await limited.get(f"/observations/{foreign['id']}"),
        await limited.post("/devices/pi-c/approve", {"observation": foreign["id"]}),
    ]
    absent = [
        await limited.get("/devices/none"),
        await limited.get("/observations?device=none"),
        await limited.get("/observations/999"),
        await limited.post("/devices/none/approve", {"observation": 999}),
    ]
    for one, another in zip(hidden, absent, strict=True):
        assert (one.status, one.code) == (another.status, another.code) == (404, one.code)
    for policy in ("pi-c", "none"):
        refused = [
            await limited.get(f"/policies/{policy}"),
            await limited.stage("x", values("a"), policy),
            *[await limited.move("recorded", deed, policy) for deed in ("approve", "retire", "restore")],
        ]
        assert {(answer.status, answer.code) for answer in refused} == {(403, "policy-not-granted")}
    assert (await limited.get("/audit")).code == "policy-not-granted"
    assert (await limited.stage("x", values("a"), "pi-b")).status == 201
    assert (await limited.post("/devices/pi-b/approve", {"observation": mine[0]["id"]})).status == 200
    assert (await limited.get("/staged")).body["states"][0]["label"] == "x"
    await make_policy(server, "other")
    await admin.stage("y", values("b"), "other")
    assert len((await limited.get("/staged")).body["states"]) == 1
    assert len((await admin.get("/staged")).body["states"]) == 2


# --- the operator's side --------------------------------------------------------------------------------------------


async def test_making_and_revoking_is_audited(server: Server, admin: Admin) -> None:
    """The names and scopes; never the token."""
    await server.admin_tokens.revoke("ci")
    made, revoked = [
        entry for _, entry in reversed(await server.store.audit.list_audit()) if "admin-token" in entry.event
    ]
    assert (made.event, made.actor, made.details["scopes"]) == (
        "admin-token create",
        "operator:tester",
        ["read", "stage", "approve", "enroll", "operate", "remove"],
    )
    assert (revoked.event, revoked.details) == ("admin-token revoke", {"name": "ci"})
    assert str(admin.token) not in str([made, revoked])


@pytest.mark.parametrize(
    ("name", "scopes", "policies", "code"),
    [
        ("ci", (), None, "setting-invalid"),
        ("ci", (Scope.READ,), (), "setting-invalid"),
        ("ci", (Scope.READ,), ("none",), "not-found"),
        ("c i", (Scope.READ,), None, "request-malformed"),
    ],
)
async def test_tokens_that_are_not_made(
    server: Server, name: str, scopes: tuple[Scope, ...], policies: tuple[str, ...] | None, code: str
) -> None:
    """A token for nothing, or for what is not there, is a slip."""
    with pytest.raises(TangAttestError) as refused:
        await server.admin_tokens.create(name, scopes, policies, timedelta(days=1))
    assert refused.value.code == code
    assert await server.store.admin_tokens.list_admin_tokens() == []


async def test_a_defect_tells_nothing(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets a request id, the log the rest."""
    monkeypatch.setattr(Administration, "devices", mock.AsyncMock(side_effect=ValueError("secret")))
    answer = await admin.get("/devices")
    assert (answer.status, answer.code) == (500, "internal")
    assert "secret" not in str(answer.body)


async def test_no_database(server: Server, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """503: whether the token is valid cannot be said, so nothing is."""
    away = mock.AsyncMock(side_effect=Unavailable("unavailable", "The database is away."))
    monkeypatch.setattr(server.store.admin_tokens, "find_admin_token", away)
    answer = await admin.get("/devices")
    assert (answer.status, answer.code) == (503, "unavailable")
