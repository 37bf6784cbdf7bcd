"""docs/protocol-examples.md: a real run, which a new run resembles, and which proves what docs/protocol.md says."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

from tang_attest.protocol import tpm
from tang_attest.protocol.quote import check_binding, check_is_quote, check_pcr_digest, check_selection
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import unb64u
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.values.points import parse_point
from tang_attest.protocol.verification import cap_value
from tests.conformance.registered import check_registered
from tests.docs.recorded import PAGE, TITLES, Message, document, read, record
from tests.docs.test_protocol_grammar import GRAMMAR

TEXT = PAGE.read_text()
SPECIFICATION = (PAGE.parent / "protocol.md").read_text()


@cache
def messages() -> dict[str, Message]:
    """The messages of the page, by the section of the specification and the title."""
    return {message.title: message for message in read(TEXT)}


def message(start: str) -> Message:
    """The one whose title begins so."""
    [found] = [each for title, each in messages().items() if title.startswith(start)]
    return found


@pytest.mark.slow
def test_a_new_run_has_the_same_messages(tmp_path: Path) -> None:
    """The pin, a software TPM and the server, once more; nonces, keys and signatures are others."""
    run, jwe = record(tmp_path)
    assert [each.normalized() for each in run] == [each.normalized() for each in messages().values()]
    assert read(document(run, jwe)) == run


def test_the_page_is_whole() -> None:
    """Every message can be read back."""
    assert tuple(messages()) == TITLES


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _quotes() -> dict[str, tuple[dict[str, Any], str, bytes]]:
    """Evidence, the selection of its challenge, and its qualifying data, computed after the specification."""
    begun, finish = message("Begin").answer, message("Finish").body
    kid = message("Finish").answer["kid"]
    prove, announce, answer = message("Prove").body, message("Announce").body, message("Answer").body
    point = {name: prove[name] for name in ("crv", "kty", "x", "y")}
    thp = JWK(**point).thumbprint()
    values = hashlib.sha256(unb64u(announce["values"])).hexdigest()
    return {
        "enroll": (
            finish,
            begun["selection"],
            _sha256(f"tang-attest/v1 enroll\n{begun['nonce']}\npi-b\n{finish['proof']}\n"),
        ),
        "unlock": (
            prove["attest"],
            message("Ask for an unlock").answer["challenge"]["selection"],
            _sha256(f"tang-attest/v1 unlock\n{prove['attest']['nonce']}\n{kid}\n{thp}\n"),
        ),
        "announce": (
            announce,
            message("Ask to announce").answer["selection"],
            _sha256(f"tang-attest/v1 announce\n{announce['nonce']}\n{kid}\n{values}\n{announce['label']}\n"),
        ),
        "verify": (
            answer,
            message("Ask for a round").answer["challenge"]["selection"],
            _sha256(f"tang-attest/v1 verify\n{answer['nonce']}\n{kid}\n"),
        ),
    }


@pytest.mark.parametrize("purpose", ["enroll", "unlock", "announce", "verify"])
def test_each_quote_is_over_the_qualifying_data_of_the_specification(purpose: str) -> None:
    """Signed by the AK that enrolled, over the selection, with the values that were sent."""
    evidence, selected, binding = _quotes()[purpose]
    ak, selection = tpm.parse_ak(unb64u(message("Begin").body["ak"])), Selection.parse(selected)
    quote = unb64u(evidence["quote"])
    tpm.verify_signature(ak, tpm.parse_signature(unb64u(evidence["signature"])), quote)
    attest = tpm.parse_attest(quote)
    check_is_quote(attest)
    check_binding(attest, binding)
    check_selection(attest, selection)
    check_pcr_digest(attest, selection, selection.split(unb64u(evidence["pcrs"])), ak.hash_name)


def test_the_cap_is_in_the_refused_quote() -> None:
    """The running system's PCR 15 has the value of section 11.3, and the code is `capped`."""
    refused = message("A refusal")
    values = Selection.parse("sha256:0,7,15").split(unb64u(refused.body["attest"]["pcrs"]))
    assert values[15] == cap_value("sha256")
    assert refused.answer["code"] == "capped"
    assert not any(
        Selection.parse("sha256:0,7,15").split(unb64u(message("Prove").body["attest"]["pcrs"]))[15]
    )


@pytest.mark.parametrize("start", ["The server's", "The device's", "Finish"])
def test_advertisements_are_signed_as_section_5_says(start: str) -> None:
    """By every signing key, under its own algorithm, as a key set."""
    answer = message(start).answer
    jws = JWS()
    jws.deserialize(json.dumps(answer.get("advertisement", answer)))
    payload = json.loads(jws.objects["payload"])
    signing = [key for key in payload["keys"] if "verify" in key["key_ops"]]
    for key in signing:
        jws.verify(JWK(**key), alg={"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}[key["crv"]])
        assert jws.jose_header["cty"] == "jwk-set+json"
    assert signing
    if start != "The server's":
        [exchange] = [key for key in payload["keys"] if "deriveKey" in key["key_ops"]]
        assert JWK(**exchange).thumbprint() == message("Finish").answer["kid"]
        assert payload["ak_name"] == tpm.parse_ak(unb64u(message("Begin").body["ak"])).name.hex()
        assert GRAMMAR.fits("ak-name", payload["ak_name"])


def test_x_and_y_are_points() -> None:
    """On the curve of the key; X is another one in each unlock."""
    for value in (message("Prove").body, message("Prove").answer, message("A refusal").body):
        parse_point(value).public_key().public_numbers().public_key()
    assert isinstance(parse_point(message("Prove").body).public_key().curve, ec.SECP521R1)
    assert message("Prove").body["x"] != message("A refusal").body["x"]


RULES = {
    "name": "device-name",
    "policy": "policy-name",
    "kid": "kid",
    "nonce": "nonce",
    "ticket": "ticket",
    "token": "token",
    "session": "session",
    "proof": "proof",
    "request_id": "request-id",
    "selection": "selection",
    "code": "code",
    "type": "problem-type",
    "label": "state-label",
    **dict.fromkeys(("quote", "signature", "pcrs", "values", "x", "y", "payload", "protected"), "b64u"),
    **dict.fromkeys(("ak", "ek", "credential_blob", "encrypted_secret"), "b64u"),
}


def _texts(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        direct = [(name, member) for name, member in value.items() if isinstance(member, str)]
        return direct + [found for member in value.values() for found in _texts(member)]
    return [found for item in value for found in _texts(item)] if isinstance(value, list) else []


def test_every_text_of_the_run_has_the_grammar_of_section_13() -> None:
    """Each member that has a rule."""
    seen = set()
    for each in messages().values():
        for name, text in [*_texts(each.body), *_texts(each.answer)]:
            if name in RULES:
                assert GRAMMAR.fits(RULES[name], text), (name, text)
                seen.add(name)
        rule = {"adv": "target-adv", "rec": "target-rec"}.get(each.target.split("/")[1], "target-attest")
        assert GRAMMAR.fits(rule, each.target)
        for name, value in each.headers:
            assert name != "WWW-Authenticate" or GRAMMAR.fits("www-authenticate", value)
        for version in each.answer.get("versions", ()):
            assert GRAMMAR.fits("version", version)
    assert seen == set(RULES)


def test_the_header_of_the_disk() -> None:
    """Section 8: its members, and S by the thumbprint `kid`."""
    [text] = re.findall(r"^### The whole JWE\n\n    (\S+)\n", TEXT, re.MULTILINE)
    protected = json.loads(unb64u(text.split(".")[0]))
    attest = protected["clevis"]["attest"]
    assert {thumbprint(key) for key in attest["adv"]["keys"]} >= {protected["kid"]}
    assert attest["adv"]["cap_pcr"] == 15
    assert (protected["alg"], protected["enc"]) == ("ECDH-ES", "A256GCM")
    for url in attest["url"]:
        assert GRAMMAR.fits("url", url)
    assert GRAMMAR.fits("ak-handle", attest["ak"])
    assert json.dumps(protected["epk"]) in re.sub(r"\s+", " ", TEXT).replace("{ ", "{").replace(" }", "}")


def test_codes_of_the_run_are_registered() -> None:
    """With their status and route."""
    for each in messages().values():
        kind = dict(each.headers)["Content-Type"].partition(";")[0]
        check_registered(each.target, each.status, kind, each.answer)


def _members(value: Any, at: str = "") -> set[str]:
    if isinstance(value, dict):
        inner = (_members(member, f"{at}.{name}") for name, member in value.items() if name != "...")
        return {f"{at}.{name}" for name in value if name != "..."}.union(*inner)
    return set()


#: Members that the pin leaves out, in the run or always.
OPTIONAL = {".event_log", ".attest.event_log", ".ek_certificate", ".challenge.event_log_limit"}


@pytest.mark.parametrize(
    ("section", "start", "part"),
    [
        ("3.1 Ask", "Ask for an unlock", "answer"),
        ("3.2 Prove", "Prove", "body"),
        ("4.1 Begin", "Begin", "body"),
        ("4.1 Begin", "Begin", "answer"),
        ("4.2 Finish", "Finish", "body"),
        ("4.2 Finish", "Finish", "answer"),
        ("6. Problems", "A refusal", "answer"),
        ("9. Announcing", "Ask to announce", "answer"),
        ("9. Announcing", "Announce", "body"),
        ("10.1 Ask", "Ask for a round", "answer"),
        ("10.2 Prove", "Answer", "body"),
        ("10.2 Prove", "Answer", "answer"),
    ],
)
def test_the_short_messages_of_the_specification_have_the_members_of_the_run(
    section: str, start: str, part: str
) -> None:
    """One of the objects in the section has exactly these, but for what is optional or left out with `...`."""
    begin = SPECIFICATION.index(f" {section}")
    end = re.search(r"^##+ ", SPECIFICATION[begin:], re.MULTILINE)
    real = _members(getattr(message(start), part)) - OPTIONAL
    texts = _objects(SPECIFICATION[begin : begin + end.start() if end else None])
    shown = [json.loads(text) for text in texts]
    assert any(_fits(value, real) for value in shown), (real, shown)


def _fits(value: Any, real: set[str]) -> bool:
    said = _members(value) - OPTIONAL
    if "..." in value or _is_problem(said):
        return said <= real
    return said == real


def _is_problem(said: set[str]) -> bool:
    """A problem has members that only some codes have."""
    return ".type" in said


def _objects(text: str) -> list[str]:
    found = []
    for block in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE):
        whole = ""
        for indented in block.splitlines():
            line = indented[4:].removeprefix("200 ")
            if whole or line.startswith("{"):
                whole += line
                if whole.count("{") == whole.count("}"):
                    found.append(whole)
                    whole = ""
    return found
