"""Admission by role, session, origin and token; a visitor who gets nothing changes nothing."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from tang_attest.web.console.app import PAGES
from tests.attester import Attester
from tests.server import Server
from tests.service.operators.authenticator import ORIGIN, Passkey
from tests.web.console.conftest import Enter
from tests.web.console.test_story import refuse
from tests.web.console.visitor import PageForm, Visitor

#: Values for the parts of addresses.
_PARTS = {"name": "pi-b", "number": "1", "id": "abc"}
_TARGETS = sorted({(each.method, each.path) for each in PAGES if each.role is not None})


def address(path: str) -> str:
    """*path* with values in it."""
    return re.sub(r"\{(\w+)[^{}]*(\{[^}]*\})?[^}]*\}", lambda match: _PARTS[match[1]], path)


async def entries(server: Server) -> int:
    """The number of the newest entry of the audit record."""
    return (await server.store.attention.change_mark()).audit


@pytest.mark.parametrize(("method", "path"), _TARGETS)
async def test_a_stranger_gets_no_page(server: Server, stranger: Visitor, method: str, path: str) -> None:
    """A page leads to the sign-in, a form says so; both the same for what exists and for what does not."""
    before = await entries(server)
    if method == "GET":
        shown = await stranger.get(address(path))
        assert (shown.status, shown.headers["Location"].partition("?")[0]) == (303, "/sign-in")
    else:
        shown = await stranger.post(address(path), {"csrf": "x"})
        assert (shown.status, "sign-in-required" in shown.text) == (401, True)
    assert await entries(server) == before


async def test_the_stream_of_events_is_no_strangers(stranger: Visitor) -> None:
    """It would tell when machines boot."""
    assert (await stranger.get("/events")).status == 303


@pytest.mark.parametrize("role", ["viewer", "approver"])
async def test_a_role_gets_what_it_may(server: Server, enter: Enter, role: str) -> None:
    """Every page below a role works, and every one above names the role that it takes."""
    await refuse(server, Attester())
    visitor = await enter(role)
    for each in PAGES:
        if each.role is None or each.method != "GET":
            continue
        shown = await visitor.get(address(each.path))
        may = each.role != "admin"
        if each.path.endswith("/refusal"):  # an address of messages
            assert (shown.status, shown.headers["Location"]) == (303, "/refusals/1")
            continue
        assert shown.status == (200 if may else 403), (each.path, shown.text)
        assert ("role-missing" in shown.text) is not may


async def test_a_viewer_changes_nothing(server: Server, enter: Enter) -> None:
    """The pages have no such form, and a form of their own making is refused."""
    await refuse(server, Attester())
    visitor = await enter("viewer")
    for path in ("/", "/refusals/1", "/machines/pi-b", "/policies/pi-b"):
        actions = {form.action for form in (await visitor.get(path)).page.forms if form.method == "post"}
        assert actions <= {"/sign-out", "/policies/pi-b/dry-run"}, path
    token = dict((await visitor.get("/")).form("/sign-out").fields)["csrf"]
    before = await entries(server)
    forms = {
        "/refusals/1/dismiss": {},
        "/machines/pi-b/suspend": {"reason": "x"},
        "/policies/pi-b/retire": {"label": "recorded"},
        "/acts": {"act": "approve", "boot": "pi-b:1", "for": "policy", "until": "retired"},
    }
    for path, fields in forms.items():
        shown = await visitor.post(path, {"csrf": token, **fields})
        assert (shown.status, "role-missing" in shown.text) == (403, True), path
    assert await entries(server) == before


@pytest.mark.parametrize(
    "origin",
    ["", "null", "https://evil.example", "http://console.test", f"{ORIGIN}.evil.example", f"{ORIGIN}:444"],
)
async def test_a_form_of_another_origin_changes_nothing(server: Server, enter: Enter, origin: str) -> None:
    """Missing, null, or foreign: with the cookie and the right token all the same."""
    await refuse(server, Attester())
    visitor = await enter("approver")
    form = (await visitor.get("/refusals/1")).form("/refusals/1/dismiss")
    before = await entries(server)
    shown = await visitor.send(form, None, Origin=origin)
    assert (shown.status, "origin-foreign" in shown.text) == (403, True)
    assert await entries(server) == before


@pytest.mark.parametrize("path", ["/sign-in", "/register", "/register/passkey"])
async def test_forms_without_a_session_come_from_here_too(stranger: Visitor, path: str) -> None:
    """No other site signs somebody in."""
    shown = await stranger.post(path, {"credential": "{}"}, Origin="https://evil.example")
    assert (shown.status, "origin-foreign" in shown.text) == (403, True)


@pytest.mark.parametrize("token", ["", "x", "ä"])
async def test_a_form_has_the_token_of_its_session(server: Server, enter: Enter, token: str) -> None:
    """A wrong one, and the one of another operator's session."""
    await refuse(server, Attester())
    visitor, other = await enter("approver"), await enter("admin")
    form = (await visitor.get("/refusals/1")).form("/refusals/1/dismiss")
    foreign = dict((await other.get("/")).form("/sign-out").fields)["csrf"]
    before = await entries(server)
    for wrong in (token, foreign):
        shown = await visitor.send(form, {"csrf": wrong})
        assert (shown.status, "form-expired" in shown.text) == (403, True)
    assert await entries(server) == before


async def test_a_session_ends(server: Server, enter: Enter) -> None:
    """By sign-out, after half an hour unused, after twelve hours, and when an administrator ends it."""
    visitor = await enter("approver")
    stolen = visitor.cookie
    await visitor.send((await visitor.get("/")).form("/sign-out"))
    assert visitor.cookie == ""
    visitor.cookie = stolen
    assert (await visitor.get("/")).status == 303

    await visitor.sign_in()
    server.clock.advance(minutes=29)
    assert (await visitor.get("/")).status == 200
    server.clock.advance(minutes=31)
    assert (await visitor.get("/")).status == 303

    await visitor.sign_in()
    for _ in range(25):
        server.clock.advance(minutes=29)
        last = (await visitor.get("/")).status
    assert last == 303

    await visitor.sign_in()
    await server.operators.sign_out("approver")
    assert (await visitor.get("/")).status == 303


async def test_a_page_that_renews_itself_keeps_no_session_open(server: Server, enter: Enter) -> None:
    """A screen that nobody looks at is signed out after half an hour."""
    visitor = await enter("viewer")
    for _ in range(3):
        server.clock.advance(minutes=11)
        last = await visitor.get("/", **{"X-Live": "1"})
    assert last.status == 303


async def test_an_administrator_signs_an_operator_out(server: Server, enter: Enter) -> None:
    """From the list of operators."""
    visitor, admin = await enter("viewer"), await enter("admin")
    listed = await admin.get("/operators")
    assert "1 passkey, 1 open session." in listed.text
    assert (await admin.send(listed.form("/operators/viewer/sign-out"))).status == 303
    assert (await visitor.get("/")).status == 303


async def test_the_cookie_is_bound(server: Server, enter: Enter, stranger: Visitor) -> None:
    """To this host, to TLS, away from scripts and from other sites' requests; it lives as long as the session."""
    await enter("viewer")
    stranger.passkey = Passkey()
    link = await server.operators.reset("viewer")
    options = await server.console.sign_in.registration_options(link.token)
    await server.console.sign_in.register(link.token, stranger.passkey.create(options))
    cookie = (await stranger.sign_in()).headers["Set-Cookie"]
    assert cookie.startswith("__Host-tang-attest=")
    words = {word.strip() for word in cookie.split(";")[1:]}
    seconds = int(timedelta(hours=12).total_seconds())
    assert words == {"HttpOnly", f"Max-Age={seconds}", "Path=/", "SameSite=Strict", "Secure"}


@pytest.mark.parametrize("cookie", ["x", "x" * 5000, "ä", ""])
async def test_a_foreign_cookie_is_none(stranger: Visitor, cookie: str) -> None:
    """Nor is one of any length."""
    shown = await stranger.get("/", Cookie=f"__Host-tang-attest={cookie}")
    assert (shown.status, shown.headers["Location"]) == (303, "/sign-in")


async def test_a_link_of_another_site_is_opened_once_more(stranger: Visitor) -> None:
    """The browser sends no strict cookie with it: the page refreshes itself, and then leads to the sign-in."""
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    landed = await stranger.get("/refusals/1", **elsewhere)
    assert landed.status == 200
    assert '<meta http-equiv="refresh" content="0; url=/refusals/1">' in landed.body
    again = await stranger.get("/refusals/1", **{**elsewhere, "Sec-Fetch-Site": "same-origin"})
    assert again.headers["Location"] == "/sign-in?next=%2Frefusals%2F1"


async def test_the_sign_in_leads_on(enter: Enter) -> None:
    """To the page that was asked for, and nowhere else."""
    visitor = await enter("viewer")
    assert (await visitor.get("/sign-in?next=/machines")).headers["Location"] == "/machines"
    assert (await visitor.get("/sign-in?next=//evil.example")).headers["Location"] == "/"


async def test_a_signature_is_for_one_act_once(server: Server, enter: Enter) -> None:
    """A replayed assertion, one for another act, and one of another site do nothing."""
    attester = Attester()
    await refuse(server, attester)
    await server.devices.suspend("pi-b", "test")
    visitor = await enter("approver")
    fields = dict((await visitor.get("/")).form("/sign-out").fields)
    resume = {**fields, "act": "resume", "device": "pi-b"}
    allow = {**fields, "act": "allow", "device": "pi-b", "minutes": "30"}
    one = (await visitor.post("/acts", resume)).form("/acts/")
    other = (await visitor.post("/acts", allow)).form("/acts/")
    crossed = PageForm("post", other.action, other.fields, one.options)
    assert "passkey-invalid" in (await visitor.sign(crossed)).text
    assert "passkey-invalid" in (await visitor.sign(one, origin="https://evil.example")).text
    device = await server.store.devices.get_device("pi-b")
    assert (device.suspension is not None, device.allowed_until) == (True, None)
