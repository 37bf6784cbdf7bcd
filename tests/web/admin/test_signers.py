"""The admin API for signers and signed values."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.ports.admin import Scope
from tang_attest.protocol.signed_values import statement
from tang_attest.protocol.signed_values.statement import ValueStatement
from tests.attester import Attester
from tests.protocol.signed_values import signing
from tests.server import Server
from tests.web.admin.client import holder, make_policy

KEY = ec.generate_private_key(ec.SECP256R1())
TRUST: dict[str, Any] = {
    "name": "pipeline",
    "key": signing.public_pem(KEY).decode(),
    "pcrs": [4],
    "label": "web",
    "no_rollback": True,
}


def signed(server: Server, values: dict[int, bytes], **changes: Any) -> str:
    """A statement for pi-b that counts now."""
    now = server.clock.now().replace(microsecond=0)
    fields: dict[str, Any] = {
        "policies": ("pi-b",),
        "bank": "sha256",
        "values": values,
        "label": "web/2",
        "version": 2,
        "not_before": now,
        "not_after": now + timedelta(days=1),
    }
    return statement.sign(ValueStatement(**(fields | changes)), signing.private_pem(KEY))


async def test_a_pipeline_posts_what_it_signed(server: Server, attester: Attester) -> None:
    """With a token that may stage only; the machine brings nothing."""
    kid = await server.enroll(attester)
    operator = await holder(server)
    made = await operator.post("/policies/pi-b/signers", TRUST)
    assert made.status == 201
    assert (made.body["form"], made.body["pcrs"], made.body["highest"]) == ("statement", [4], [])
    pipeline = await holder(server, Scope.STAGE, name="pipeline")
    assert (await pipeline.post("/policies/pi-b/signers", TRUST)).code == "scope-missing"
    attester.extend(4, b"update")
    text = signed(server, {4: attester.pcrs["sha256"][4]})
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    posted = await pipeline.post("/policies/pi-b/signed/statements", {"statement": text + "\n"})
    assert posted.status == 201
    assert (posted.body["label"], posted.body["version"], posted.body["signer"]) == ("web/2", 2, "pipeline")
    assert (await server.unlock(attester, kid)).status == 200
    shown = (await operator.get("/policies/pi-b/signers")).body
    assert [each["label"] for each in shown["statements"]] == ["web/2"]
    assert [(each["family"], each["version"]) for each in shown["signers"][0]["highest"]] == [("web", 2)]


async def test_signers_and_labels_end_at_once(server: Server, attester: Attester) -> None:
    """A label that is retired and restored, and a signer that is dropped."""
    await server.enroll(attester)
    admin = await holder(server)
    await admin.post("/policies/pi-b/signers", TRUST)
    label = "/policies/pi-b/signed/labels/web%2F2"
    assert (await admin.post(f"{label}/retire")).body["retired"] == ["web/2"]
    assert (await admin.post(f"{label}/retire")).code == "state-changed"
    assert (await admin.post(f"{label}/restore")).body["retired"] == []
    assert (await admin.post(f"{label}/restore")).code == "not-found"
    gone = await admin.request("DELETE", "/policies/pi-b/signers/pipeline")
    assert (gone.status, gone.body["signers"]) == (200, [])
    assert (await admin.request("DELETE", "/policies/pi-b/signers/pipeline")).code == "not-found"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pcrs": [7]}, "signer-unsuitable"),
        ({"pcrs": [99]}, "signer-unsuitable"),
        ({"pcrs": []}, "request-malformed"),
        ({"key": "no key"}, "signer-unsuitable"),
        ({"key": signing.private_pem(KEY).decode()}, "signer-unsuitable"),
        ({"name": "../x"}, "request-malformed"),
        ({"label": "x" * 41}, "request-malformed"),
        ({"extra": 1}, "request-malformed"),
        ({"force": True}, "request-malformed"),
    ],
)
async def test_a_signer_that_is_none(
    server: Server, attester: Attester, changes: dict[str, Any], code: str
) -> None:
    """Refused as on the command line; nothing can be forced."""
    await server.enroll(attester)
    admin = await holder(server)
    assert (await admin.post("/policies/pi-b/signers", TRUST | changes)).code == code


async def test_a_statement_that_is_none(server: Server, attester: Attester) -> None:
    """With the codes of the protocol."""
    await server.enroll(attester)
    admin = await holder(server)
    await admin.post("/policies/pi-b/signers", TRUST)
    value = {4: b"\x04" * 32}
    header = base64.urlsafe_b64encode(b"{}").decode().rstrip("=")
    for text, code in (
        ("x", "statement-malformed"),
        ("\u00fc", "statement-malformed"),
        (f"{header}.{header}.AA", "statement-malformed"),
        (signed(server, value, policies=("other",)), "statement-elsewhere"),
        (signed(server, value, label="db/1"), "statement-out-of-scope"),
        (signed(server, {7: b"\x07" * 32}), "statement-out-of-scope"),
    ):
        answer = await admin.post("/policies/pi-b/signed/statements", {"statement": text})
        assert answer.code == code, text


async def test_a_token_for_another_policy_sees_and_does_nothing(server: Server, attester: Attester) -> None:
    """Every operation."""
    await server.enroll(attester)
    await make_policy(server, "other")
    other = await holder(server, policies=("other",))
    for method, path, body in (
        ("GET", "/signers", None),
        ("POST", "/signers", TRUST),
        ("DELETE", "/signers/pipeline", None),
        ("POST", "/signed/statements", {"statement": "x"}),
        ("POST", "/signed/labels/web/retire", None),
        ("POST", "/signed/labels/web/restore", None),
    ):
        options = {} if body is None else {"json": body}
        answer = await other.request(method, f"/policies/pi-b{path}", **options)
        assert answer.code == "policy-not-granted", path
