"""Links of messages lead to the page of the thing to decide, also by way of the sign-in."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

from tang_attest.ports.notices import NoticeGroup, NoticeKind
from tang_attest.service.notifications import places
from tang_attest.service.notifications.message import compose, without_names
from tests.attester import Attester
from tests.server import Server
from tests.web.console.conftest import Enter
from tests.web.console.test_story import refuse

NOW: Final = datetime(2026, 11, 27, 16, 0, tzinfo=UTC)
CONSOLE: Final = "https://console.example"


def group(kind: NoticeKind, *names: str, page: str | None = None) -> NoticeGroup:
    """A group of one event for each of *names*."""
    made = NoticeGroup("key", kind, "It happened.", "Look.", NOW, known_until=NOW, due_at=NOW, page=page)
    made.members = {name: (name, NOW.isoformat()) for name in names}
    return made


def url(of: NoticeGroup) -> Any:
    """The link of the message about *of*."""
    return compose(of, "tang-1", CONSOLE)["url"]


def test_a_message_leads_to_what_it_is_about() -> None:
    """One machine to its page, several to the list; a refused boot to its page, which has machines that differ alike."""
    assert url(group(NoticeKind.BOOT, "pi-a", "pi-b")) == f"{CONSOLE}/machines/pi-a/refusal"
    assert url(replace(group(NoticeKind.BOOT, "pi-a", "pi-b"), step=1)) == f"{CONSOLE}/machines/pi-b/refusal"
    for kind in (NoticeKind.UNLOCK, NoticeKind.SUSPENSION, NoticeKind.SILENCE):
        assert url(group(kind, "pi-a")) == f"{CONSOLE}/machines/pi-a"
        assert url(group(kind, "pi-a", "pi-b")) == f"{CONSOLE}/"
        assert url(replace(group(kind, "pi-a"), beyond=1)) == f"{CONSOLE}/"
    assert (
        url(group(NoticeKind.ROLLOUT, "policy web", page=places.of_policy("web")))
        == f"{CONSOLE}/policies/web"
    )
    assert url(group(NoticeKind.CERTIFICATE, "tls")) == f"{CONSOLE}/"


def test_a_link_has_no_name_for_those_who_learn_none() -> None:
    """The list, which they sign in to see; and no link without the console."""
    message = compose(group(NoticeKind.BOOT, "pi-a"), "tang-1", CONSOLE)
    assert without_names(message)["url"] == f"{CONSOLE}/"
    assert without_names(compose(group(NoticeKind.BOOT, "pi-a"), "tang-1", None))["url"] is None


@pytest.mark.parametrize(
    ("subject", "page"),
    [
        ({"act": "approve", "boots": [{"device": "pi-b", "observation": 7}]}, "/refusals/7"),
        ({"act": "resume", "device": "pi-b", "policy": "web"}, "/machines/pi-b"),
        ({"act": "reinstate", "policy": "web", "label": "old"}, "/policies/web"),
        ({"act": "token", "device": None, "policy": None}, "/"),
    ],
)
def test_a_subject_has_a_page(subject: dict[str, Any], page: str) -> None:
    """The one on which another operator signs the same."""
    assert places.of_subject(subject) == page


async def test_a_link_survives_the_sign_in(server: Server, enter: Enter) -> None:
    """From a mail to the landing page, to the sign-in, and from there to the refused boot."""
    await refuse(server, Attester())
    visitor = await enter("approver")
    cookie, visitor.cookie = visitor.cookie, ""
    link = urlsplit(str(url(group(NoticeKind.BOOT, "pi-b")))).path
    elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    landing = await visitor.get(link, **elsewhere)
    assert landing.status == 200
    assert f"url={link}" in landing.body
    asked = await visitor.get(link)
    assert asked.status == 303
    page = await visitor.get(asked.headers["Location"])
    entered = await visitor.sign(page.form("/sign-in"))
    assert (entered.status, entered.headers["Location"]) == (303, link)
    assert (await visitor.get(link)).headers["Location"] == "/refusals/1"
    assert cookie != visitor.cookie
    [observation] = await server.store.policies.list_observations("pi-b", 1)
    await server.reference_values.dismiss([observation])
    assert (await visitor.get(link)).headers["Location"] == "/machines/pi-b"


async def test_each_place_is_a_page(server: Server, enter: Enter) -> None:
    """A route that is renamed is renamed here, too."""
    await refuse(server, Attester())
    visitor = await enter("viewer")
    for path in (places.FIRST, places.RECORD, places.of_machine("pi-b"), places.of_policy("pi-b")):
        assert (await visitor.get(path)).status == 200, path


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example/", "/\\evil.example", "/%2f/evil.example"]
)
async def test_a_foreign_target_leads_to_the_list(server: Server, enter: Enter, target: str) -> None:
    """The sign-in goes on to pages of the console only."""
    visitor = await enter("viewer")
    visitor.cookie = ""
    form = (await visitor.get("/sign-in")).form("/sign-in")
    form.fields = [(name, value) for name, value in form.fields if name != "next"] + [("next", target)]
    assert (await visitor.sign(form)).headers["Location"] == "/"
