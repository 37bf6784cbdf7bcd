"""From a certificate up to a trust anchor (RFC 5280, section 6.1).

Rules of this module:

* Names and key identifiers only choose whom to ask; the signature decides.
* Breadth first, and each certificate is climbed from once. Certificates that a device sends along can
  therefore neither loop nor multiply the work, and a useless one never hides a useful one.
* Every objection is collected, so that one refusal names everything that was wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from tang_attest.errors import Malformed, Reason, Refused
from tang_attest.protocol.x509.keys import public_key, verify_signature
from tang_attest.protocol.x509.loose import Certificate

EK_CERTIFICATE: Final = "2.23.133.8.1"
"""tcg-kp-EKCertificate (EK Credential Profile 2.0, section 3.2)."""

MAX_ISSUERS: Final = 5
"""Above the leaf. Intel's on-die CA has the longest chains, most of them in the chip (tpm2-tss#2943)."""

_ANY_PURPOSE: Final = "2.5.29.37.0"

Chain = tuple[Certificate, ...]


def find_chain(
    leaf: Certificate, anchors: Sequence[Certificate], intermediates: Sequence[Certificate], now: datetime
) -> tuple[Chain, tuple[Reason, ...]]:
    """The shortest acceptable path from *leaf* to an anchor, both included; or the reasons why there is none.

    Exactly one of the two results is not empty. An anchor's own signature is not looked at, as the operator
    vouches for its key; everything else about it counts, its dates too. A leaf that is itself an anchor is
    its own chain.

    NOT checked: the leaf's dates, purpose and extensions (``endorsement`` does), revocation, certificate
    policies.
    """
    trusted = {anchor.der for anchor in anchors}
    # Anchors come first: with two ways up, the one without the device's help is taken. Each only once.
    known = tuple(dict.fromkeys((*anchors, *intermediates)))
    paths: deque[Chain] = deque([(leaf,)])
    climbed = {leaf.der}
    reasons: dict[Reason, None] = {}  # a set that keeps its order
    while paths:
        path = paths.popleft()
        if path[-1].der in trusted:
            return path, ()
        issuers = [c for c in known if _may_have_issued(c, path[-1]) and c.der not in climbed]
        if not issuers:
            reasons[_no_issuer(path, known)] = None
        for issuer in issuers:
            objections = tuple(_objections(issuer, path, now))
            reasons.update(dict.fromkeys(objections))
            if not objections:
                climbed.add(issuer.der)
                paths.append((*path, issuer))
    return (), tuple(reasons)


def standing(certificate: Certificate, now: datetime) -> Iterator[Reason]:
    """Return the objections to *certificate* at any place of the chain.

    Dates are compared to the second and without tolerance. The number of each check is the one in
    ``endorsement.verify_ek_certificate``.
    """
    # (4) valid now
    if now < certificate.not_before:
        yield _untrusted(f"{certificate.who} is not valid before {_date(certificate.not_before)}.")
    if now > certificate.not_after:
        yield Reason("ek-expired", f"{certificate.who} expired on {_date(certificate.not_after)}.")
    # (6) no critical extension that we would ignore
    if certificate.unhandled_critical:
        oids = ", ".join(certificate.unhandled_critical)
        yield Reason("ek-unsupported", f"{certificate.who} has critical extensions not known here: {oids}.")


def weak_key(certificate: Certificate) -> Iterator[Reason]:
    """Check (7): why the key of *certificate* cannot be used, if it cannot."""
    try:
        public_key(certificate.spki)
    except (Malformed, Refused) as error:
        yield Reason(error.code, f"{certificate.who}: {error.sentence}")


def _objections(issuer: Certificate, path: Chain, now: datetime) -> Iterator[Reason]:
    """Return the objections to climbing from the end of *path* to *issuer*, cheap checks first."""
    yield from standing(issuer, now)
    yield from _not_an_issuer(issuer)
    # (3) path length: the intermediates below this issuer; self-issued ones are free (section 6.1.4 (l))
    below = sum(not certificate.self_issued for certificate in path[1:])
    if issuer.path_length is not None and below > issuer.path_length:
        yield _untrusted(f"{issuer.who} allows {issuer.path_length} intermediates, and there are {below}.")
    if len(path) > MAX_ISSUERS:
        yield _untrusted(f"The chain is longer than {MAX_ISSUERS} issuers at '{issuer.subject}'.")
    # (3) and (7): signed by this issuer, with an algorithm that holds
    unusable = tuple(weak_key(issuer))
    yield from unusable
    if not unusable:
        try:
            verify_signature(path[-1], issuer)
        except Refused as error:
            yield from error.reasons


def _not_an_issuer(certificate: Certificate) -> Iterator[Reason]:
    # (3) a CA by basic constraints, by key usage, and for endorsement keys if for anything in particular
    if not certificate.is_ca:
        yield _untrusted(f"{certificate.who} is not a CA's, so its key cannot issue others.")
    if certificate.key_usage is not None and "key_cert_sign" not in certificate.key_usage:
        yield _untrusted(f"{certificate.who} has a key usage without signing certificates.")
    purposes = certificate.extended_key_usage
    if purposes is not None and not purposes & {EK_CERTIFICATE, _ANY_PURPOSE}:
        yield _untrusted(f"{certificate.who} is a CA's for other purposes than EK certificates.")


def _may_have_issued(issuer: Certificate, certificate: Certificate) -> bool:
    if issuer.subject_key != certificate.issuer_key:
        return False
    # Vendors have several CAs of one name; the identifiers tell them apart, where both are there (4.2.1.1)
    known = certificate.authority_key_id is not None and issuer.subject_key_id is not None
    return not known or issuer.subject_key_id == certificate.authority_key_id


def _no_issuer(path: Chain, known: Sequence[Certificate]) -> Reason:
    """The certificate that is missing above the end of *path*.

    Directly above an EK certificate that is an intermediate, with nearly every vendor. A certificate that
    issued itself, or has the name of an issuer that is known by another key, can only lack a root.
    """
    end = path[-1]
    namesake = any(certificate.subject_key == end.issuer_key for certificate in known)
    wanted, besides = "root", ""
    if len(path) == 1 and not end.self_issued and not namesake:
        wanted, besides = "intermediate", ", nor a root of that name"
    key_id = end.authority_key_id
    named = f"authority key id {key_id.hex(':')}" if key_id is not None else "no authority key id"
    return Reason(
        "ek-untrusted",
        f"No {wanted} for issuer '{end.issuer}' ({named}){besides}.",
        (("issuer", end.issuer), ("authority_key_id", key_id.hex() if key_id is not None else None)),
    )


def _untrusted(sentence: str) -> Reason:
    return Reason("ek-untrusted", sentence)


def _date(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")
