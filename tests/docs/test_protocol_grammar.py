"""The grammar of docs/protocol.md, 13: real values fit it, and it is what the server and the pin take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tang_attest.errors import ACTIONS, Malformed
from tang_attest.protocol import cap, challenge, enrollment
from tang_attest.protocol.reference_state import check_label
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.web import attest_routes, tang_routes
from tests.docs.abnf import Grammar
from tests.docs.texts import texts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text()
[BLOCK] = re.findall(r"^```abnf\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
GRAMMAR = Grammar(BLOCK)
SHELL = "".join(
    (ROOT / "clevis-pin" / "lib" / name).read_text()
    for name in ("clevis-attest-functions", "clevis-attest-setup-functions")
)
#: Expressions of the pin, by the rule that they have to take exactly.
PIN = {
    "device-name": "ATTEST_NAME",
    "kid": "ATTEST_KID",
    "ak-handle": "ATTEST_HANDLE",
    "url": "ATTEST_URL",
    "spki": "ATTEST_SPKI",
    "file": "ATTEST_FILE",
    "nonce": "ATTEST_NONCE",
    "selection": "ATTEST_SELECTION",
    "code": "ATTEST_CODE",
    "token": "ATTEST_TOKEN",
}
UUID = "0f6e5a3c-0000-4000-8000-00000000000"
GOOD: dict[str, tuple[str, ...]] = {
    "device-name": ("a", "pi-b", "A.b_c-9", "a" * 63),
    "policy-name": ("pi-b",),
    "state-label": ("x", "kernel 6.1.0-29", "Größe", "x" * 64),
    "change": ("", "PCR 9: initrd /boot/initrd.img-6.1.0-29"),
    "kid": (b64u(bytes(range(32))),),
    "nonce": (
        challenge.make_nonce(bytes(32), challenge.Purpose.UNLOCK, "kid", 10**12, bytes(16)),
        challenge.make_nonce(
            bytes(32), challenge.Purpose.UNLOCK, "kid", 10**12, bytes(16), challenge.Mark(None)
        ),
    ),
    "ticket": (challenge.make_nonce(bytes(32), challenge.Purpose.POLL, "kid", 10**12, bytes(16)),),
    "token": (b64u(bytes(32)),),
    "proof": (enrollment.activation_proof("nonce", bytes(32)),),
    "ak-name": ("000b" + "0" * 64, "000c" + "0" * 96),
    "version": (*challenge.VERSIONS, "1.0", "10.20"),
    "selection": ("sha256:0,2,4,7,15", "sha384:23", "sha512:" + ",".join(map(str, range(24)))),
    "code": tuple(ACTIONS),
    "problem-type": tuple(f"urn:tang-attest:{code}" for code in ACTIONS),
    "ak-handle": ("0x81010002",),
    "url": ("http://10.0.0.1:7500", "https://[2001:db8::1]:443/tang/", "http://host.example", "HTTP://host"),
    "spki": ("sha256//" + "A" * 43 + "=", "sha256//" + "A" * 43 + "=;sha256//" + "b" * 43 + "="),
    "file": ("/etc/ssl/certs/ca-certificates.crt",),
    "uuid": (UUID + "1",),
    "cap-text": (cap.HEADER.decode(), f"{cap.HEADER.decode()}attested {UUID}1\npassphrase {UUID}2\n"),
    "cap-texts": (cap.HEADER.decode() * 3,),
    "b64u": ("", b64u(b"any bytes")),
    "hex": ("", "00ff"),
    "target-adv": ("/adv", "/adv/", "//adv//abc"),
    "target-rec": ("/rec/" + "A" * 43, "//rec//x"),
    "target-attest": (
        "/attest/enroll",
        "/attest/enroll/selection",
        "/attest/enroll/finish",
        "/attest/adv/x",
        "/attest/announce/x",
        "/attest/agent/x",
        "/attest/agent/x/evidence",
    ),
    "www-authenticate": ("TPM2-Quote",),
    "retry-after": ("1", "30"),
    "allow": ("GET", "POST"),
}
BAD = {
    "device-name": ("", "-a", "a" * 64, "a b", "a\n", "ä"),
    "state-label": ("", " x", "x ", "x" * 65),
    "kid": ("A" * 42, "A" * 44, "A" * 42 + "="),
    "nonce": ("A" * 15, "A" * 129),
    "token": ("", "A" * 129, "a b"),
    "version": ("1", "1.01", "01.1", "1.1.1"),
    "selection": ("sha1:0", "sha256:", "sha256:24", "SHA256:0", "sha256:00", "sha256:0,", "sha256:0 1"),
    "code": ("", "Refused", "-a", "a" * 42),
    "ak-handle": ("0x80010002", "0x8101000G", "0x8101000A"),
    "url": ("ftp://host", "http://", "http://host?query", "http://user@host"),
    "spki": ("sha256//A=", "sha1//" + "A" * 43 + "="),
    "file": ("relative", "/a b", "/a'b"),
    "uuid": ((UUID + "1").upper(), UUID),
    "cap-text": ("tang-attest/v1 cap", "Tang-attest/v1 cap\n", f"{cap.HEADER.decode()}opened {UUID}1\n"),
    "target-attest": ("/attest/enroll/", "//attest/enroll", "/attest/agent/x/"),
}


@pytest.mark.parametrize("rule", GRAMMAR.rules)
def test_every_rule_is_grammar_and_has_real_values(rule: str) -> None:
    """A rule without a value is one of the building blocks, which other rules use."""
    assert GRAMMAR.expression(rule)
    used = any(re.search(rf"(?<![A-Za-z-]){rule}(?![\w-])", text) for text in GRAMMAR.rules.values())
    assert rule in GOOD or used or rule in ("session", "request-id"), rule  # these come from a server below
    for text in GOOD.get(rule, ()):
        assert GRAMMAR.fits(rule, text), text
    for text in BAD.get(rule, ()):
        assert not GRAMMAR.fits(rule, text), text


def _pin_expression(rule: str) -> re.Pattern[str]:
    [text] = re.findall(rf"^readonly {PIN[rule]}='\^(.*)\$'$", SHELL, re.MULTILINE)
    return re.compile(text.replace(r"\[[", r"\[["))


@pytest.mark.parametrize("rule", PIN)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_pin_takes_what_the_grammar_says(rule: str, data: st.DataObject) -> None:
    """Each direction: a text of the grammar, and a text of the pin's expression."""
    pin, grammar = _pin_expression(rule), re.compile(GRAMMAR.expression(rule))
    text = data.draw(texts(grammar))
    assert pin.fullmatch(text), text
    text = data.draw(texts(pin))
    # The pin counts a token's characters beside its expression.
    assert grammar.fullmatch(text) or (rule == "token" and len(text) > 128), text


@settings(max_examples=200, deadline=None)
@given(name=texts(GRAMMAR.expression("device-name")))
def test_the_server_takes_each_device_name(name: str) -> None:
    """And no other: the tests of enrollment show that."""
    assert enrollment.check_name(name) == name


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=70))
def test_labels_of_states(text: str) -> None:
    """The grammar, and "only printable characters"."""
    try:
        taken = check_label(text) == text
    except Malformed:
        taken = False
    assert taken == (GRAMMAR.fits("state-label", text) and text.isprintable())


@settings(max_examples=200, deadline=None)
@given(text=texts(GRAMMAR.expression("selection")))
def test_selections_are_ascending_and_distinct(text: str) -> None:
    """The rest of the grammar is in numbers, not in letters."""
    numbers = [int(number) for number in text.partition(":")[2].split(",")]
    if numbers == sorted(set(numbers)):
        assert str(Selection.parse(text)) == text


@settings(max_examples=200, deadline=None)
@given(text=texts(GRAMMAR.expression("cap-text")))
def test_texts_of_the_cap(text: str) -> None:
    """Every text of the grammar is read, if its lines are ordered and it is not too long."""
    uuids = [line.partition(" ")[2] for line in text.splitlines()[1:]]
    if uuids == sorted(uuids) and len(text) <= cap.MAX_TEXT:
        assert [each.raw for each in cap.parse(text.encode())] == [text.encode()]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_targets(data: st.DataObject) -> None:
    """The server's routes, on the raw target."""
    adv = data.draw(texts(GRAMMAR.expression("target-adv")))
    rec = data.draw(texts(GRAMMAR.expression("target-rec")))
    attest = data.draw(texts(GRAMMAR.expression("target-attest")))
    assert tang_routes.match("GET", adv) == tang_routes.Route(
        "adv", adv.strip("/").partition("/")[2].strip("/") or None
    )
    assert isinstance(tang_routes.match("POST", rec), tang_routes.Route)
    assert attest_routes.find(attest)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=40))
def test_base64url_has_one_spelling(data: bytes) -> None:
    """Section 1: a receiver refuses every other one."""
    text = b64u(data)
    assert GRAMMAR.fits("b64u", text)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for last in alphabet if data else "":
        if last != text[-1]:
            try:
                assert unb64u(text[:-1] + last) != data
            except ValueError:
                continue
