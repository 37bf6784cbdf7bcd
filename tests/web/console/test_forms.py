"""Forms: bounded, decoded, and what no page of ours sends is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tang_attest.errors import Malformed
from tang_attest.protocol.coverage import BootPart
from tang_attest.service.operators import acts
from tang_attest.web.console.forms import SentForm, local_path, parse_form
from tang_attest.web.console.routes.acts import act_of, credential_of


def form(**fields: str | list[str]) -> SentForm:
    """A form with these fields."""
    return SentForm({name: value if isinstance(value, list) else [value] for name, value in fields.items()})


def refused(call: Callable[[], object]) -> bool:
    """True when *call* says that the form is malformed."""
    with pytest.raises(Malformed) as caught:
        call()
    return caught.value.code == "form-malformed" and caught.value.sentence.endswith(".")


def test_a_form_is_read() -> None:
    """Several values of one name stay in their order; spaces around a text go."""
    found = parse_form(b"a=1&b=+x+&a=2&empty=")
    assert found.all("a") == ("1", "2")
    assert (found.text("b"), found.text("empty"), found.text("none", "d")) == ("x", "", "d")
    assert found.number("a", 1, 9) == 1
    assert found.choice("a", ("1", "2")) == "1"


@pytest.mark.parametrize("body", [b"a=%ff", b"\xff=1", b"&".join(b"a=1" for _ in range(1001))])
def test_bytes_that_no_browser_sends_are_refused(body: bytes) -> None:
    """No UTF-8, no ASCII, too many fields."""
    assert refused(lambda: parse_form(body))


@pytest.mark.parametrize("text", ["", "0", "x", "-1", "10", "1e3", "٣", "9" * 30])
def test_a_number_has_bounds(text: str) -> None:
    """And is written in ASCII."""
    assert refused(lambda: form(n=text).number("n", 1, 9))


@pytest.mark.parametrize("path", ["/", "/machines/pi-b", "/audit?device=a&before=5"])
def test_a_path_of_the_console_leads_there(path: str) -> None:
    """It may have a query."""
    assert local_path(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "//evil.example",
        "https://evil.example/",
        "/\\evil.example",
        "/a//b",
        "javascript:alert(1)",
        "/a\r\nSet-Cookie: x=1",
        "/" + "a" * 600,
        "/%2f%2fevil",
    ],
)
def test_no_link_leads_elsewhere(path: str) -> None:
    """A browser may read such an address in its own way."""
    assert local_path(path) == "/"


def test_each_act_is_named_by_its_form() -> None:
    """As the pages send them."""
    boots: dict[str, str | list[str]] = {
        "act": "approve",
        "boot": ["pi-b:7", "pi-c:8"],
        "for": "policy",
        "until": "30",
    }
    assert act_of(form(**boots, accept=["initrd"])) == acts.ApproveBoots(
        boots=(("pi-b", 7), ("pi-c", 8)), minutes=30, accepted=(BootPart.INITRD,)
    )
    once: dict[str, str | list[str]] = {"act": "approve", "boot": "pi-b:7", "for": "machine", "until": "once"}
    assert act_of(form(**once)) == acts.ApproveBoots(boots=(("pi-b", 7),), only_this_device=True, once=True)
    assert act_of(form(act="allow", device="pi-b", minutes="30")) == acts.AllowUnlock("pi-b", 30)
    assert act_of(form(act="resume", device="pi-b")) == acts.ResumeDevice("pi-b")
    assert act_of(form(act="remove", device="pi-b")) == acts.RemoveDevice("pi-b")
    assert act_of(form(act="announced", policy="p", label="l")) == acts.ApproveAnnounced("p", "l")
    assert act_of(form(act="reinstate", policy="p", label="l")) == acts.Reinstate("p", "l")
    assert act_of(form(act="trust", policy="p")) == acts.TrustPredictions("p")
    assert act_of(form(act="token", minutes="60", machines="1", labels="a, b")) == acts.IssueToken(
        name=None, policy=None, minutes=60, machines=1, labels=("a", "b")
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"act": "rule"},
        {"act": "approve", "for": "policy", "until": "once"},
        {"act": "approve", "boot": "pi-b:x", "for": "policy", "until": "once"},
        {"act": "approve", "boot": "pi-b", "for": "policy", "until": "once"},
        {"act": "approve", "boot": "pi-b:7", "for": "all", "until": "once"},
        {"act": "approve", "boot": "pi-b:7", "for": "policy", "until": "31"},
        {"act": "approve", "boot": "pi-b:7", "for": "policy", "until": "once", "accept": "everything"},
        {"act": "approve", "boot": ["d:1"] * 201, "for": "policy", "until": "once"},
        {"act": "allow", "device": "pi-b", "minutes": "0"},
        {"act": "token", "minutes": "60", "machines": "0"},
    ],
)
def test_an_act_that_no_page_names_is_refused(fields: dict[str, str | list[str]]) -> None:
    """Nothing is guessed."""
    assert refused(lambda: act_of(form(**fields)))


@pytest.mark.parametrize("text", ["", "[]", "{", "7", '"text"', "[" * 15_000, '{"a":"' + "x" * 17_000 + '"}'])
def test_a_credential_is_a_small_object(text: str) -> None:
    """Deep and long ones are refused before they cost anything."""
    assert refused(lambda: credential_of(SentForm({"credential": [text]})))
