"""Vectors of advertisements, good and bad."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools.conformance.primitives.curve import CURVES
from tools.conformance.primitives.encoding import b64u, compact, thumbprint
from tools.conformance.primitives.jose import BadAdvertisement, SigningKey, advertise, verify_advertisement
from tools.vectors.keys import octets, scalar


def advertisements() -> Iterator[dict[str, Any]]:
    """Yield advertisements of a device; *accepted* says if a client may bind to its key."""
    p521, p256 = CURVES["P-521"], CURVES["P-256"]
    old, new = SigningKey(p521, scalar("old signer", p521)), SigningKey(p256, scalar("new signer", p256))
    evil = SigningKey(p521, scalar("evil signer", p521))
    exchange = p521.jwk(p521.multiply(scalar("exchange", p521)), alg="ECMR", key_ops=["deriveKey"])
    other = p521.jwk(p521.multiply(scalar("exchange 2", p521)), alg="ECMR", key_ops=["deriveKey"])
    kid, ak_name = thumbprint(exchange), "000b" + octets("ak name", 32).hex()
    trusted = old.thumbprint

    def made(keys: list[Any], signers: list[SigningKey], **more: Any) -> dict[str, Any]:
        return advertise(keys, signers, deterministic=True, **({"ak_name": ak_name} | more))

    one = made([old.public, exchange], [old])
    both = made([old.public, new.public, exchange], [old, new])
    changed = dict(one, payload=made([old.public, other], [old])["payload"])
    relabeled = made([old.public, exchange], [old], header={"alg": "ES256"})
    unnamed = advertise([old.public, exchange], [old], deterministic=True)
    cases: list[tuple[str, bool, dict[str, Any], str]] = [
        ("one signer", True, one, "flattened form"),
        ("two signers", True, both, "general form, each signing key signed"),
        ("members in another order", True, made([exchange, new.public, old.public], [new, old]), "the order does not count"),
        ("an unknown member", True, made([old.public, exchange], [old], future=1), "a client ignores members that it does not know"),
        ("another signer", False, made([evil.public, exchange], [evil]), "no trusted key signed"),
        ("a signer that has not signed", False, made([old.public, new.public, exchange], [new]), "the trusted key is in it and has not signed"),
        ("a key slipped in", False, made([old.public, evil.public, exchange], [old]), "each signing key in it has to sign, or later advertisements are anybody's"),
        ("a trusted key that is not in it", False, made([exchange], [old]), "a signature of a key outside of the set does not count"),
        ("no signing key", False, made([exchange], [evil]), "signed by all of no keys"),
        ("another payload", False, changed, "the signature is over another payload"),
        ("another algorithm", False, relabeled, "alg is not that of the key's curve"),
        ("another content type", False, made([old.public, exchange], [old], header={"cty": "json"}), "cty is not jwk-set+json"),
        ("no algorithm", False, made([old.public, exchange], [old], header={"alg": "none"}), "alg is none"),
        ("no algorithm and no signature", False, made([old.public, exchange], [old], header={"alg": "none"}) | {"signature": ""}, "alg is none, and nothing was signed"),
        ("an unknown algorithm", False, made([old.public, other], [old], header={"alg": "ES999"}) | {"signature": "AAAA"}, "alg is not one of JOSE"),
        ("an empty signature", False, dict(one, signature=""), "no signature at all"),
        ("no payload", False, {key: value for key, value in one.items() if key != "payload"}, "a member is missing"),
        ("keys are no list", False, dict(one, payload=b64u(compact({"keys": exchange}))), "keys is an object"),
        ("another AK", False, made([old.public, exchange], [old], ak_name="000b" + "00" * 32), "ak_name is not the Name of this machine's AK"),
        ("no AK", False, unnamed, "ak_name is missing: this is an advertisement of a server, not of a device"),
    ]  # fmt: skip
    for name, accepted, jws, reason in cases:
        assert accepts(jws, trusted, ak_name) == accepted, name  # noqa: S101 - the kit's own client agrees
        yield {
            "name": name,
            "reason": reason,
            "advertisement": jws,
            "trusted": trusted,
            "ak_name": ak_name,
            "kid": kid if accepted else None,
            "accepted": accepted,
        }


def accepts(jws: Any, trusted: str, ak_name: str) -> bool:
    """Return True if a client that trusts *trusted* may bind to the key that *jws* advertises."""
    try:
        payload = verify_advertisement(jws, [trusted])
    except BadAdvertisement:
        return False
    return bool(payload.get("ak_name") == ak_name)
