"""Every page: headers, errors in one sentence with an action, odd requests, and strings of a hostile machine."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import Unavailable
from tang_attest.ports.machines import NewDevice
from tang_attest.ports.policies import Observation
from tang_attest.service.policies.explanation import Explanation, Explanations
from tang_attest.service.policies.signers import SignerTerms
from tests.attester import Attester
from tests.server import Server
from tests.store.samples import entry
from tests.web.console.conftest import Enter
from tests.web.console.test_story import refuse
from tests.web.console.visitor import Shown, Visitor

PAGES = (
    "/",
    "/machines",
    "/machines/pi-b",
    "/refusals/1",
    "/policies",
    "/policies/pi-b",
    "/audit",
    "/enroll",
    "/operators",
)
HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}\u202egnp\x1b[2J" + "x" * 3000


async def test_every_page_is_sound(server: Server, enter: Enter) -> None:
    """Nested markup, a title, one heading of the first level, our own script alone, and nothing inline."""
    await refuse(server, Attester())
    visitor = await enter("admin")
    for path in PAGES:
        shown = await visitor.get(path)
        assert shown.status == 200, (path, shown.text)
        page = shown.page
        assert shown.body.count("<h1") == 1, path
        assert [script.partition("?")[0] for script in page.scripts] == ["/static/console.js"]
        names = {name for name, _ in page.attributes}
        assert not {name for name in names if name == "style" or name.startswith("on")}, path
        foreign = [
            value for name, value in page.attributes if name in ("src", "href") and value and ":" in value
        ]
        assert foreign == [], path


async def test_every_answer_has_the_headers(server: Server, stranger: Visitor) -> None:
    """Pages, redirections, errors and files."""
    for path in ("/sign-in", "/", "/nope", "/static/console.css"):
        headers = (await stranger.get(path)).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Strict-Transport-Security"].startswith("max-age=")
        assert "Server" not in headers
        assert ("no-store" in headers["Cache-Control"]) is not path.startswith("/static")


async def test_an_unknown_address_is_a_page(enter: Enter) -> None:
    """With one sentence; names that nothing can have are as unknown as names that nothing has."""
    visitor = await enter("admin")
    for path in (
        "/nope",
        "/machines/nobody",
        "/machines/%00",
        "/machines/..%2f",
        "/policies/x%0a",
        "/refusals/99",
    ):
        shown = await visitor.get(path)
        assert shown.status == 404, path
        assert "To the list" in shown.text


async def test_an_odd_method_is_refused(enter: Enter) -> None:
    """And named in Allow; HEAD is like GET, without a body."""
    visitor = await enter("admin")
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        shown = await visitor.request(method, "/machines")
        assert (shown.status, shown.headers["Allow"]) == (405, "GET, HEAD"), method
    for path in ("/", "/machines", "/audit.csv", "/sign-in"):
        shown = await visitor.request("HEAD", path)
        assert (shown.status in (200, 303), shown.body) == (True, ""), path


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        (b"x" * 70_000, "application/x-www-form-urlencoded", 413, "request-too-large"),
        (b"{}", "application/json", 400, "form-malformed"),
        (b"", "", 400, "form-malformed"),
        (b"a=%ff", "application/x-www-form-urlencoded", 400, "form-malformed"),
        (b"&".join([b"a=1"] * 2000), "application/x-www-form-urlencoded", 400, "form-malformed"),
    ],
)
async def test_no_form_of_a_browser_is_refused(
    stranger: Visitor, body: bytes, media_type: str, status: int, code: str
) -> None:
    """Before anything is done with it."""
    headers = {"Origin": "https://console.test", "Content-Type": media_type or "text/plain"}
    shown = await stranger.request("POST", "/sign-in", data=body, headers=headers)
    assert (shown.status, code in shown.text) == (status, True)


async def test_a_database_that_is_away_is_one_sentence(
    server: Server, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503, and it is tried again; nothing is known of anybody's session meanwhile."""
    visitor = await enter("admin")
    sign_out = (await visitor.get("/")).form("/sign-out")

    async def away(*_: object) -> None:
        raise Unavailable("unavailable", "The database does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(server.store._database, "read", away)
        patch.setattr(server.store._database, "write", away)
        for path in (*PAGES, "/audit.csv", "/events"):
            shown = await visitor.get(path)
            assert (shown.status, "The database does not answer." in shown.text) == (503, True), path
        assert (await visitor.send(sign_out)).status == 503
    assert (await visitor.get("/")).status == 200


async def test_a_defect_tells_the_log_alone(
    server: Server, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page has a request id, and nothing of the inside."""
    visitor = await enter("admin")

    async def broken(*_: object) -> None:
        raise RuntimeError("inside")

    with structlog.testing.capture_logs() as logs:
        monkeypatch.setattr(type(server.store.attention), "attention", broken)
        shown = await visitor.get("/")
    assert (shown.status, "inside" in shown.body) == (500, False)
    assert any(line["event"] == "defect" for line in logs)


async def test_the_log_has_no_secret(server: Server, enter: Enter, stranger: Visitor, caplog: Any) -> None:
    """No cookie, no token of a form, no one-time code, no credential, no target with a query."""
    with caplog.at_level(logging.DEBUG), structlog.testing.capture_logs() as logs:
        visitor = await enter("admin")
        token = dict((await visitor.get("/")).form("/sign-out").fields)["csrf"]
        await visitor.get("/machines?name=SECRET")
        await stranger.post("/register", {"token": "ONE-TIME-CODE"})
    text = f"{logs}{caplog.text}"
    for secret in (visitor.cookie, token, "SECRET", "ONE-TIME-CODE"):
        assert secret not in text
    assert "/machines" in text


def check_harmless(shown: Shown, path: str) -> None:
    """Nothing of :data:`HOSTILE` acts; a string of it is cut."""
    assert shown.status == 200, (path, shown.text)
    assert "<script>alert" not in shown.body, path
    assert "{{7*7}}" in shown.page.text, path
    assert "49" not in shown.page.text.split("alert(1)")[1][:60], path
    assert "\u202e" not in shown.body, path
    assert "\x1b" not in shown.body, path
    assert "x" * 1000 not in shown.body, path


async def test_strings_of_a_machine_are_text(
    server: Server, enter: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an EK issuer, a reason, an audit entry, an event log's sentences and doubts."""
    await refuse(server, Attester())
    visitor = await enter("admin")
    hostile = NewDevice(
        name="evil",
        ak_public=b"p",
        ak_name=b"n" * 32,
        ak_spki=b"s",
        ak_scheme="RSASSA",
        ak_hash="sha256",
        ek_spki=b"e",
        ek_certificate=None,
        ek_verified=True,
        ek_issuer=HOSTILE,
        origin="enrolled",
        enrolled_at=server.clock.now(),
    )
    await server.store.devices.add_device(hostile, "pi-b", None, entry())
    check_harmless(await visitor.get("/machines/evil"), "/machines/evil")

    await server.store.audit.append(
        entry(f"unlock {HOSTILE}", device="evil", address=HOSTILE[:40], details={HOSTILE: HOSTILE})
    )
    check_harmless(await visitor.get("/audit"), "/audit")
    check_harmless(await visitor.get("/machines/evil"), "/machines/evil")

    explain = Explanations.explain

    async def odd(self: Explanations, observation: Observation) -> Explanation:
        found = await explain(self, observation)
        return replace(found, doubts=(HOSTILE,))

    monkeypatch.setattr(Explanations, "explain", odd)
    check_harmless(await visitor.get("/refusals/1"), "/refusals/1")


async def test_the_record_is_searched_and_downloaded(server: Server, enter: Enter) -> None:
    """By machine, event and code; as CSV with a formula defused; a time that is none is named."""
    await refuse(server, Attester())
    await server.store.audit.append(entry("odd", device="pi-b", actor="=cmd|' /C calc'!A0"))
    visitor = await enter("viewer")
    found = await visitor.get("/audit?device=pi-b&event=unlock&code=pcr-mismatch")
    assert "pcr-mismatch" in found.text
    assert "No entry matches." in (await visitor.get("/audit?code=capped")).text
    table = await visitor.get("/audit.csv?device=pi-b")
    assert table.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert "attachment" in table.headers["Content-Disposition"]
    assert table.body.splitlines()[0].startswith("no,at,event,actor,")
    assert "'=cmd|" in table.body
    for query in ("since=yesterday", "before=x", "verdict=maybe"):
        assert (await visitor.get(f"/audit?{query}")).status == 400


async def test_the_chain_is_checked(server: Server, enter: Enter) -> None:
    """On demand; a changed row is named."""
    visitor = await enter("viewer")
    checked = await visitor.send((await visitor.get("/audit")).form("/audit/check"))
    assert "The chain holds" in checked.text


async def test_the_record_comes_in_pages(server: Server, enter: Enter) -> None:
    """Older entries follow."""
    for number in range(60):
        await server.store.audit.append(entry("device label", device=f"m{number}"))
    visitor = await enter("viewer")
    first = await visitor.get("/audit?event=device")
    assert "m59" in first.text
    assert "m5 " not in f"{first.text} "
    link = next(
        value for name, value in first.page.attributes if name == "href" and value and "before=" in value
    )
    assert "m5 " in f"{(await visitor.get(link)).text} "


async def test_a_policy_shows_its_states_and_tries_a_change(server: Server, enter: Enter) -> None:
    """Booted by whom, and what retiring would do; a change that is none is named."""
    attester = Attester()
    kid = await server.enroll(attester)
    attester.reset_count += 1
    assert (await server.unlock(attester, kid)).status == 200
    visitor = await enter("admin")
    policy = await visitor.get("/policies/pi-b")
    assert "Booted last by pi-b." in policy.text
    tried = await visitor.send(policy.form("/policies/pi-b/dry-run"))
    assert "1 of 1 machine would be refused" in tried.text
    assert "state-in-use" in (await visitor.send(policy.form("/policies/pi-b/retire"))).text
    token = dict(policy.form("/sign-out").fields)["csrf"]
    odd = await visitor.post("/policies/pi-b/dry-run", {"csrf": token, "change": "{"})
    assert (odd.status, "form-malformed" in odd.text) == (400, True)
    trust = await visitor.act(next(policy.forms_about("trust")))
    assert trust.status == 303
    assert "count at once" in (await visitor.get("/policies/pi-b")).text
    distrust = (await visitor.get("/policies/pi-b")).form("/policies/pi-b/distrust")
    assert (await visitor.send(distrust)).status == 303
    assert not (await server.store.policies.get_policy("pi-b")).trust_predictions


async def test_a_policy_shows_its_signers(server: Server, enter: Enter) -> None:
    """Each with its PCRs, its labels, and the digest of its key."""
    await server.enroll(Attester())
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    terms = SignerTerms(name="pipeline", pem=pem, pcrs=(4,), label="web", no_rollback=True)
    signer = await server.signers.trust("pi-b", terms, force=True)
    visitor = await enter("viewer")
    shown = (await visitor.get("/policies/pi-b")).text
    assert "pipeline PCR 4 · labels of web · no older versions" in shown
    assert signer.key_id in shown
