"""Plain Tang without a server: routes, key sets and limits.  tests/tang compares the answers with tangd's."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.keys.jwk import EcSigner
from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.values.advertisement import THUMBPRINT_HASHES, thumbprint
from tang_attest.protocol.values.points import CURVES, Point
from tang_attest.service.tang.plain import BODY_LIMIT, KeySet, TangKey, TangStatus, load_json, permits
from tang_attest.web.tang_routes import Route, handle_adv, handle_rec, match

# --- routes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "endpoint", "route"),
    [
        ("/adv", "", Route("adv")),
        ("/adv/a-_9", "", Route("adv", "a-_9")),
        ("///adv//x", "", Route("adv", "x")),
        ("/adv/adv", "", Route("adv", "adv")),
        ("/rec/adv", "", Route("rec", "adv")),
        ("/tang/adv", "/tang", Route("adv")),
        ("/tang///adv/x", "tang/", Route("adv", "x")),
        ("/a/b.c/rec/x", "/a/b.c", Route("rec", "x")),
        ("/adv", "/tang", 404),
        ("//tang/adv", "/tang", 404),
        ("/tangadv", "/tang", 404),
        ("/a/bxc/adv", "/a/b.c", 404),
        ("/adv\n", "", 404),
        ("/rec/x\n", "", 404),
        ("/rec/\u0661", "", 404),
        ("/adv/\udcff", "", 404),
        ("/" + "ü" * 2048, "", 414),
    ],
)
def test_match(target: str, endpoint: str, route: Route | int) -> None:
    """A target is one of Tang's only as a whole, after the endpoint if there is one."""
    method = "POST" if isinstance(route, Route) and route.name == "rec" else "GET"
    assert match(method, target, endpoint) == route


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "PUT", "get", "X"])
def test_match_method(method: str) -> None:
    assert match(method, "/adv") == 405
    assert match(method, "/nothing") == 404


# --- key sets ----------------------------------------------------------------------------------------------------


class CountingSigner:
    """An EcSigner that counts."""

    def __init__(self) -> None:
        private = ec.generate_private_key(ec.SECP256R1())
        self.signer, self.count = EcSigner(private), 0
        numbers = private.public_key().public_numbers()
        self.members = Point(CURVES["P-256"], numbers.x, numbers.y).members()
        self.algorithm = self.signer.algorithm

    def sign(self, message: bytes) -> bytes:
        self.count += 1
        return self.signer.sign(message)


class Fixed:
    """A provider of one key set, as coroutine or not."""

    def __init__(self, keys: KeySet) -> None:
        self.keys = keys

    def current(self) -> KeySet:
        return self.keys


class FixedLater(Fixed):
    async def current(self) -> KeySet:  # type: ignore[override]
        return self.keys


@pytest.fixture
def exchange() -> ExchangeKey:
    return ExchangeKey(ec.generate_private_key(ec.SECP521R1()))


@pytest.fixture
def signer() -> CountingSigner:
    return CountingSigner()


@pytest.fixture
def keys(exchange: ExchangeKey, signer: CountingSigner) -> KeySet:
    """A key set as it comes out of a database."""
    return KeySet([TangKey.for_exchange(exchange), TangKey.for_signing(signer, signer.members)])


def client() -> bytes:
    return json.dumps(ExchangeKey(ec.generate_private_key(ec.SECP521R1())).public.members()).encode()


def test_signs_once(keys: KeySet, signer: CountingSigner) -> None:
    """An advertisement is signed once for each signer that is asked for, whichever thumbprint names it."""
    assert keys.advertisement() is keys.advertisement()
    assert signer.count == 1
    for algorithm in THUMBPRINT_HASHES:
        keys.advertisement(thumbprint(signer.members, algorithm))
    assert signer.count == 3


def test_unknown_signers_are_not_kept(keys: KeySet) -> None:
    """A stranger cannot fill the memory with advertisements."""
    for number in range(100):
        with pytest.raises(TangStatus):
            keys.advertisement(f"unknown{number}")
    assert keys._advertisements == {}


def test_hidden_keys(exchange: ExchangeKey, signer: CountingSigner) -> None:
    """A hidden exchange key answers and is not advertised."""
    visible = ExchangeKey(ec.generate_private_key(ec.SECP521R1()))
    keys = KeySet(
        [
            TangKey.for_exchange(exchange, hidden=True),
            TangKey.for_exchange(visible),
            TangKey.for_signing(signer, signer.members),
        ]
    )
    assert json.loads(keys.recover(exchange.kid, client()))["kty"] == "EC"
    payload = load_json(_payload(keys.advertisement()))
    assert isinstance(payload, dict)
    assert {thumbprint(jwk) for jwk in payload["keys"]} == {visible.kid, thumbprint(signer.members)}
    assert not any("d" in jwk for jwk in payload["keys"])


def _payload(jws: bytes) -> bytes:
    text = json.loads(jws)["payload"]
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_private_part_is_not_advertised() -> None:
    """Only the public half of a private JWK is kept."""
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": "AQ",
        "y": "AQ",
        "d": "secret",
        "key_ops": ["sign", "verify", "unwrapKey"],
    }
    key = TangKey.from_jwk(jwk, None, None)
    assert key.public == {"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ", "key_ops": ["verify"]}
    assert jwk["d"] == "secret"


@pytest.mark.parametrize(
    ("members", "implicit", "explicit"),
    [
        ({}, True, False),
        ({"key_ops": ["deriveKey"]}, True, True),
        ({"key_ops": []}, False, False),
        ({"key_ops": None}, False, False),
        ({"use": "enc"}, False, False),
        ({"use": None, "key_ops": ["deriveKey"]}, False, False),
        ({"use": "sig", "key_ops": ["deriveKey"]}, True, True),
    ],
)
def test_permits(members: dict[str, Any], implicit: bool, explicit: bool) -> None:
    assert permits(members, "deriveKey") is implicit
    assert permits(members, "deriveKey", explicit=True) is explicit


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 60000,
        b'{"a":' * 10000,
        *(b"[" * depth + b"]" * depth for depth in (513, 9000, 30000)),
        *(b'{"a":' * depth + b"0" + b"}" * depth for depth in (513, 9000)),
    ],
)
def test_deep_nesting(text: bytes) -> None:
    """Nesting is an error like another, and its limit is not that of Python, which grew with 3.12 and 3.13."""
    with pytest.raises(ValueError, match="nested deeper than 512"):
        load_json(text)


def test_nesting_of_key_files() -> None:
    """A member that a person added to a key may be an object."""
    text = b'{"a":' * 512 + b"0" + b"}" * 512
    assert json.dumps(load_json(text), separators=(",", ":")).encode() == text


# --- handlers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [Fixed, FixedLater])
async def test_handlers(keys: KeySet, exchange: ExchangeKey, provider: type[Fixed]) -> None:
    """Keys may come at once or later."""
    advertisement = await handle_adv(provider(keys), None)
    assert (advertisement.status, advertisement.content_type) == (200, "application/jose+json")
    body = client()
    here = await handle_rec(provider(keys), exchange.kid, body)
    assert (here.status, here.content_type) == (200, "application/jwk+json")
    refusal = await handle_rec(provider(keys), "unknown", body)
    assert (refusal.status, refusal.body) == (404, None)


async def test_handlers_refuse(keys: KeySet) -> None:
    assert (await handle_adv(Fixed(keys), "unknown")).status == 404
    assert (await handle_rec(Fixed(keys), "unknown", b"")).status == 400
    assert (await handle_rec(Fixed(keys), "unknown", b" " * BODY_LIMIT)).status == 400
    assert (await handle_rec(Fixed(keys), "unknown", b" " * (BODY_LIMIT + 1))).status == 413
