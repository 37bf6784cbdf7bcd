"""The reasons of a refusal: the one that a person can act on comes first, and says what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.signed_values import keys, statement
from tang_attest.protocol.signed_values.pcrsig import policy_digest
from tang_attest.protocol.signed_values.signer import check_signer
from tests.keys.rsa_keys import draw
from tests.protocol.signed_values import signing
from tests.protocol.signed_values.signing import NOW, b64
from tests.protocol.signed_values.test_examine import (
    NEW_4_9,
    NEW_11,
    SELECTION,
    STATEMENT,
    judge,
    policy,
)


def reasons(judging: ReferencePolicy, values: Mapping[int, bytes], **brought: Any) -> list[Reason]:
    """The reasons of a refusal, in order."""
    with pytest.raises(Refused) as refusal:
        judge(judging, values, **brought)
    return list(refusal.value.reasons)


def test_a_time_says_that_of_the_server() -> None:
    """A clock that is wrong, at the server or where the statement was signed, is seen."""
    signer, key = signing.pipeline()
    text = signing.signed(key, STATEMENT, not_before=NOW, not_after=NOW + timedelta(hours=1))
    early = reasons(policy(signer), NEW_4_9, statements=[text], now=NOW - timedelta(seconds=3))[0]
    assert early.sentence == (
        "Statement 'web/1' counts from 2026-11-27 12:00:00 UTC on; it is 2026-11-27 11:59:57 UTC now."
    )
    late = reasons(policy(signer), NEW_4_9, statements=[text], now=NOW + timedelta(hours=1))[0]
    assert late.sentence == (
        "Statement 'web/1' was good until 2026-11-27 13:00:00 UTC; it is 2026-11-27 13:00:00 UTC now."
    )


def test_a_pcr_that_is_not_quoted_is_beyond_the_scope() -> None:
    """It is no other value of that PCR: the machine cannot send one."""
    signer, key = signing.pipeline()
    text = signing.signed(key, STATEMENT | {8: bytes(32)})
    [first, *_] = reasons(policy(signer), NEW_4_9, statements=[text])
    assert (first.code, first.sentence) == (
        "statement-out-of-scope",
        "Statement 'web/1' names PCR 8, which signer 'pipeline' may not sign.",
    )


def test_a_pcr_of_the_scope_that_is_not_quoted_is_named() -> None:
    """A running machine quotes no PCR 11."""
    signer, key = signing.pipeline(pcrs=(4, 9, 11))
    text = signing.signed(key, STATEMENT | {11: NEW_4_9[11]})
    running = {pcr: value for pcr, value in NEW_4_9.items() if pcr != 11}
    [first, *_] = reasons(policy(signer), running, statements=[text])
    assert (first.code, first.sentence) == (
        "statement-mismatch",
        "Statement 'web/1' names PCR 11, which is not quoted.",
    )


@pytest.mark.parametrize("changes", [{"not_after": NOW}, {"label": "bad/1"}, {"policies": ("q",)}])
def test_a_pcrsig_that_nobody_asked_for_hides_no_reason(changes: dict[str, Any]) -> None:
    """Every image of ukify may bring one; the policy trusts a pipeline's key alone."""
    signer, key = signing.pipeline(label="web")
    text = signing.signed(key, STATEMENT, **changes)
    pcrsig = signing.pcrsig(draw(2048), NEW_4_9[11])
    codes = [each.code for each in reasons(policy(signer), NEW_4_9, pcrsig=pcrsig, statements=[text])]
    assert codes[0] in {"statement-expired", "statement-out-of-scope", "statement-elsewhere"}
    assert "statement-untrusted" not in codes


def test_a_statement_about_this_boot_explains_before_a_foreign_one() -> None:
    """The machine brings what lies beside its images, other people's statements too."""
    signer, key = signing.pipeline()
    late = signing.signed(key, STATEMENT, not_after=NOW)
    foreign = signing.signed(ec.generate_private_key(ec.SECP256R1()), STATEMENT)
    other = signing.signed(key, {4: bytes(32)})
    for statements in ([foreign, "none", other, late], [late, other, "none", foreign]):
        codes = [each.code for each in reasons(policy(signer), NEW_4_9, statements=statements)]
        assert codes[0] == "statement-expired"
        assert codes[3] == "statement-mismatch"


def test_a_curve_signs_no_pcrsig() -> None:
    """Neither where an RSA key is trusted, nor where the operator trusted the image's EC key for PCR 11."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = key.sign(policy_digest(NEW_11[11]), ec.ECDSA(hashes.SHA256()))
    entry = signing.entry(draw(2048), NEW_11[11], sig=b64(made), pkfp="ab" * 32)
    vendor, _ = signing.vendor()
    [first, *_] = reasons(policy(vendor), NEW_11, pcrsig={"sha256": [entry]})
    assert (first.code, first.sentence) == (
        "statement-untrusted",
        "The .pcrsig is signed with no RSA key of 2048 bits or more, and no other counts.",
    )
    on_a_curve = signing.signer("image", key, pcrs=(11,))
    [first, *_] = reasons(policy(on_a_curve), NEW_11, pcrsig={"sha256": [entry]})
    assert (first.code, first.sentence) == (
        "statement-untrusted",
        "The policy trusts no RSA key, and no other key signs a .pcrsig.",
    )


# --- keys ---------------------------------------------------------------------------------------------------


def _said(pem: bytes) -> str:
    with pytest.raises(Malformed) as error:
        keys.read_key(pem)
    assert error.value.code == "signer-unsuitable"
    return error.value.sentence


def test_a_certificate_is_no_key_and_says_how_to_get_one() -> None:
    """Vendors publish certificates."""
    pem = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert "openssl x509 -noout -pubkey" in _said(pem)


def test_a_file_with_two_keys_is_refused() -> None:
    """The second one would silently not be trusted."""
    two = [signing.public_pem(draw(bits)) for bits in (2048, 3072)]
    assert _said(b"".join(two)) == "The file has several keys; a signer has one."
    assert keys.read_key(two[0])


def test_each_form_names_the_keys_of_the_other() -> None:
    """RSA for a .pcrsig, curves for statements."""
    with pytest.raises(Malformed, match=r"RSA keys sign \.pcrsig"):
        statement.sign(signing.about(STATEMENT), signing.private_pem(draw(2048)))
    text = signing.signed(ec.generate_private_key(ec.SECP256R1()), STATEMENT)
    with pytest.raises(Malformed, match=r"RSA keys sign \.pcrsig"):
        statement.verify(text, signing.public_der(draw(2048)))
    vendor, _ = signing.vendor()
    with pytest.raises(Malformed, match="statements take P-256 or Ed25519"):
        check_signer(replace(vendor, pcrs=(4,)), SELECTION, 15)
