"""Our plain Tang and Debian's tangd give the same answers over the same key directory."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tang_attest.protocol.values.points import CURVES
from tests.tang.servers import Answer, generate, jose, ours, public, send, tangd, thumbprint, verifies
from tests.tang.world import World, as_int, generator, make_world, number, without

HASHES = ("S1", "S224", "S256", "S384", "S512")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def ports(world: World) -> Iterator[tuple[int, int]]:
    """The ports of tangd and of our server."""
    with tangd(world.directory) as theirs, ours(world.directory) as mine:
        yield theirs, mine


def both(ports: tuple[int, int], method: str, target: str, body: bytes = b"") -> Answer:
    """The answer, which is the same from both."""
    theirs, mine = (send(port, method, target, body) for port in ports)
    assert mine == theirs
    return mine


# --- targets and methods -----------------------------------------------------------------------------------------

METHODS = [
    "ACL",
    "CHECKOUT",
    "COPY",
    "DELETE",
    "HEAD",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "NOTIFY",
    "OPTIONS",
    "PATCH",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
]

TARGETS = {
    "/": (404, 404),
    "//": (404, 404),
    "/rec": (404, 404),
    "/rec/": (404, 404),
    "/rec//": (404, 404),
    "/rec?": (404, 404),
    "/rec/x": (405, 400),
    "/rec/x/": (404, 404),
    "/rec/x/y": (404, 404),
    "/rec/x?": (404, 404),
    "/rec/x?a=b": (404, 404),
    "/rec/x.y": (404, 404),
    "/rec/%78": (404, 404),
    "//rec": (404, 404),
    "//rec///x": (405, 400),
    "/Rec/x": (404, 404),
    "/adv/x": (404, 405),
    "/adv//x": (404, 405),
    "/adv/x/": (404, 404),
    "/adv/-_": (404, 405),
    "/adv/x?": (404, 404),
    "/adv/x~": (404, 404),
    "/adv/%78": (404, 404),
    "/adv?": (404, 404),
    "/adv?x=1": (404, 404),
    "/adv#x": (404, 404),
    "/adv;x": (404, 404),
    "/advx": (404, 404),
    "/ADV": (404, 404),
    "/%61dv": (404, 404),
    "/./adv": (404, 404),
    "/x/../adv": (404, 404),
    "//x/adv": (404, 404),
    "http://localhost/adv": (404, 404),
    "/" + "a" * 4094: (404, 404),
    "/" + "a" * 4095: (414, 414),
    "/" + "a" * 9000: (414, 414),
    "/adv/" + "a" * 4090: (404, 405),
    "/adv/" + "a" * 4091: (414, 414),
    "/rec/" + "a" * 4090: (405, 400),
    "/adv?" + "a" * 4091: (414, 414),
}


@pytest.mark.parametrize(("target", "statuses"), TARGETS.items(), ids=lambda value: str(value)[:24])
def test_target(ports: tuple[int, int], target: str, statuses: tuple[int, int]) -> None:
    """Targets are matched raw; GET and then POST (of nothing) get these statuses, without a body."""
    for method, status in zip(("GET", "POST"), statuses, strict=True):
        assert both(ports, method, target) == Answer(status, None, b"")


@pytest.mark.parametrize("method", METHODS)
def test_method(ports: tuple[int, int], method: str) -> None:
    """Another method is 405 where the target is Tang's and 404 elsewhere, HEAD and OPTIONS too."""
    assert both(ports, method, "/adv").status == 405
    assert both(ports, method, "/adv/x").status == 405
    assert both(ports, method, "/rec/x").status == 405
    assert both(ports, method, "/rec").status == 404


# --- POST /rec: the request ----------------------------------------------------------------------------------------

Request = Callable[[World], tuple[str, bytes]]


def ask(key: str, curve: str = "P-521", **members: Any) -> Request:
    """A request to *key* with a good point of *curve*, *members* changed."""
    return lambda world: (world.kid(key), _encode(world.point(curve, **members)))


def ask_less(key: str, *names: str) -> Request:
    """A request that lacks members."""
    return lambda world: (world.kid(key), _encode(without(world.point(), *names)))


def ask_raw(change: Callable[[bytes], bytes]) -> Request:
    """A request whose text was changed."""
    return lambda world: (world.kid("exc"), change(_encode(world.point())))


def ask_member(text: bytes) -> Request:
    """A request with one more member, as text."""
    return ask_raw(lambda body: body[:-1] + b"," + text + b"}")


def ask_change(key: str, curve: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Request:
    """A request whose members were changed."""
    return lambda world: (world.kid(key), _encode(change(world.point(curve))))


def ask_x(text: Callable[[int], str]) -> Request:
    """A request on P-256 whose x was written another way."""
    return ask_change("exc256", "P-256", lambda jwk: {**jwk, "x": text(as_int(jwk["x"]))})


def _encode(value: object) -> bytes:
    return json.dumps(value).encode()


def _pad(size: int) -> Request:
    return ask_raw(lambda body: body + b" " * (size - len(body)))


RECOVERIES: dict[str, tuple[int, Request]] = {
    # body is not one JSON object or array: 400
    "no body": (400, lambda world: (world.kid("exc"), b"")),
    "no JSON": (400, lambda world: (world.kid("exc"), b"JSON")),
    "a string": (400, lambda world: (world.kid("exc"), b'"EC"')),
    "a number": (400, lambda world: (world.kid("exc"), b"1")),
    "null": (400, lambda world: (world.kid("exc"), b"null")),
    "cut": (400, ask_raw(lambda body: body[:-1])),
    "trailing text": (400, ask_raw(lambda body: body + b"x")),
    "two objects": (400, ask_raw(lambda body: body + body)),
    "trailing comma": (400, ask_raw(lambda body: body[:-1] + b",}")),
    "comment": (400, ask_raw(lambda body: b"/**/" + body)),
    "byte order mark": (400, ask_raw(lambda body: b"\xef\xbb\xbf" + body)),
    "UTF-16": (400, ask_raw(lambda body: body.decode().encode("utf-16"))),
    "Latin-1": (400, ask_member(b'"a":"\xe9"')),
    "overlong UTF-8": (400, ask_member(b'"a":"\xc0\xaf"')),
    "surrogate in UTF-8": (400, ask_member(b'"a":"\xed\xa0\x80"')),
    "control character": (400, ask_member(b'"a":"\x01"')),
    "NUL escape": (400, ask_member(rb'"a":"\u0000"')),
    "NUL escape in a name": (400, ask_member(rb'"a\u0000":1')),
    "NUL escape in a value that is replaced": (400, ask_member(rb'"a":"\u0000","a":1')),
    "high surrogate alone": (400, ask_member(rb'"a":"\ud83d"')),
    "high surrogate twice": (400, ask_member(rb'"a":"\ud83d\ud83d"')),
    "low surrogate alone": (400, ask_member(rb'"a":"\ude00"')),
    "unknown escape": (400, ask_member(rb'"a":"\x41"')),
    "NaN": (400, ask_member(b'"a":NaN')),
    "infinity": (400, ask_member(b'"a":-Infinity')),
    "integer of 65 bits": (400, ask_member(b'"a":9223372036854775808')),
    "integer of 5000 digits": (400, ask_member(b'"a":' + b"1" * 5000)),
    "float too large": (400, ask_member(b'"a":1e999')),
    "float without digits": (400, ask_member(b'"a":1.')),
    "leading zero": (400, ask_member(b'"a":01')),
    "nested 3000 deep": (400, ask_member(b'"a":' + b"[" * 3000 + b"]" * 3000)),
    "nested 9000 deep": (400, ask_member(b'"a":' + b"[" * 9000 + b"]" * 9000)),
    "nested 30000 deep": (400, lambda world: (world.kid("exc"), b"[" * 30000 + b"]" * 30000)),
    "nested 500 deep": (200, ask_member(b'"a":' + b"[" * 500 + b"]" * 500)),
    "escaped NUL escape": (200, ask_member(rb'"a":"\\u0000"')),
    "surrogate pair": (200, ask_member(rb'"a":"\uD83d\uDe00"')),
    "escapes": (200, ask_member(rb'"a":"\"\\\/\b\f\n\r\t\u007f"')),
    "float too small": (200, ask_member(b'"a":1e-999')),
    "integer of 64 bits": (200, ask_member(b'"a":-9223372036854775808')),
    "white space": (200, ask_raw(lambda body: b" \t\r\n" + body + b"\n")),
    "last of two members counts": (400, ask_member(b'"kty":"RSA"')),
    "first of two members does not": (200, ask_raw(lambda body: b'{"kty":"RSA",' + body[1:])),
    "65535 bytes": (200, _pad(65535)),
    "65536 bytes": (413, _pad(65536)),
    # use or key_ops, but no deriveKey: 403
    "use": (403, ask_change("exc", "P-521", lambda jwk: {**without(jwk, "key_ops"), "use": "enc"})),
    "use of no meaning": (
        403,
        ask_change("exc", "P-521", lambda jwk: {**without(jwk, "key_ops"), "use": ""}),
    ),
    "use is null": (403, ask("exc", use=None)),
    "use is a number": (403, ask("exc", use=1)),
    "use and deriveKey": (200, ask("exc", use="sig")),
    "key_ops empty": (403, ask("exc", key_ops=[])),
    "key_ops null": (403, ask("exc", key_ops=None)),
    "key_ops text": (403, ask("exc", key_ops="deriveKey")),
    "key_ops object": (403, ask("exc", key_ops={"deriveKey": 1})),
    "key_ops deriveBits": (403, ask("exc", key_ops=["deriveBits"])),
    "key_ops other case": (403, ask("exc", key_ops=["derivekey"])),
    "key_ops mixed": (200, ask("exc", key_ops=[None, 1, {}, "deriveBits", "deriveKey"])),
    "key_ops missing": (200, ask_less("exc", "key_ops")),
    "403 before kty": (403, ask("exc", key_ops=[], kty="RSA")),
    # kty not EC, alg not ECMR: 400
    "array": (400, lambda world: (world.kid("exc"), _encode([world.point()]))),
    "empty array": (400, lambda world: (world.kid("exc"), b"[]")),
    "empty object": (400, lambda world: (world.kid("exc"), b"{}")),
    "kty missing": (400, ask_less("exc", "kty")),
    "kty RSA": (400, ask("exc", kty="RSA")),
    "kty other case": (400, ask("exc", kty="ec")),
    "kty null": (400, ask("exc", kty=None)),
    "kty list": (400, ask("exc", kty=["EC"])),
    "kty escaped": (200, ask_raw(lambda body: body.replace(b'"EC"', rb'"\u0045C"'))),
    "alg ECDH": (400, ask("exc", alg="ECDH-ES")),
    "alg null": (400, ask("exc", alg=None)),
    "alg number": (400, ask("exc", alg=1)),
    "alg missing": (200, ask_less("exc", "alg")),
    "kty before kid": (400, lambda world: ("unknown", _encode(world.point(kty="RSA")))),
    # unknown thumbprint: 404
    "kid unknown": (404, lambda world: ("unknown", _encode(world.point()))),
    "kid of a client": (404, lambda world: (thumbprint(world.clients["P-521"]), _encode(world.point()))),
    "kid cut": (404, lambda world: (world.kid("exc")[:-1], _encode(world.point()))),
    "kid before point": (404, lambda world: ("unknown", _encode(world.point(x="")))),
    # server key lacks an explicit deriveKey, lacks d, or has another alg: 403
    "a signing key": (403, ask("sig")),
    "a hidden signing key": (403, ask(".sig256", "P-256")),
    "server key for deriveBits": (403, ask("exc-bits")),
    "server key with use only": (403, ask("exc-use-only")),
    "server key with a number as use": (403, ask("exc-use-number")),
    "server key without key_ops": (403, ask(".exc-silent")),
    "server key without d": (403, ask("exc-public")),
    "server key with null d": (403, ask("exc-d-null")),
    "server key for ECDH": (403, ask("exc-ecdh")),
    "server key with null alg": (403, ask("exc-alg-null")),
    "server key before point": (403, ask("sig", x="")),
    "server key without alg": (200, ask("exc-alg-missing")),
    "server key with use and deriveKey": (200, ask("exc-use")),
    "server key with more members": (200, ask("exc-more")),
    "server key with short x": (200, ask("exc-short", "P-256")),
    # the exchange fails: 400
    "server key with another d": (400, ask("exc-d-wrong")),
    "server key with unreadable d": (400, ask("exc-d-rubbish")),
    "another curve": (400, ask("exc", "P-256")),
    "another curve, other way": (400, ask("exc256", "P-521")),
    "curve missing": (400, ask_less("exc", "crv")),
    "curve unknown": (400, ask("exc", crv="P-520")),
    "curve null": (400, ask("exc", crv=None)),
    "curve secp256k1": (400, ask("exc256", "P-256", crv="secp256k1")),
    "another curve's name": (400, ask("exc256", "P-384", crv="P-256")),
    "x missing": (400, ask_less("exc", "x")),
    "y missing": (400, ask_less("exc", "y")),
    "x null": (400, ask("exc", x=None)),
    "x number": (400, ask("exc", x=1)),
    "x empty": (400, ask("exc", x="")),
    "x and y empty": (400, ask("exc", x="", y="")),
    "x and y zero": (400, ask("exc", x="AA", y="AA")),
    "y of another point": (
        400,
        lambda world: (world.kid("exc"), _encode(world.point(y=world.keys["sig"]["y"]))),
    ),
    "x and y exchanged": (400, ask_change("exc", "P-521", lambda jwk: {**jwk, "x": jwk["y"], "y": jwk["x"]})),
    "x one byte short": (400, ask_x(lambda x: number(x >> 8, 31))),
    "x one byte more": (400, ask_x(lambda x: number(x << 8, 33))),
    "x of one character": (400, ask("exc", x="A")),
    "x padded": (400, ask_x(lambda x: number(x, 32) + "=")),
    "x with a line feed": (400, ask_x(lambda x: number(x, 32) + "\n")),
    "x with a space": (400, ask_x(lambda x: " " + number(x, 32))),
    "x in plain base64": (400, ask("exc256", "P-256", x="+/" + "A" * 41)),
    "x with stray bits": (400, ask_x(lambda x: number(x, 32)[:-1] + _after(number(x, 32)[-1]))),
    "x with a letter of another alphabet": (400, ask("exc", x="é" + "A" * 87)),
    "x with leading zeros": (200, ask_x(lambda x: number(x, 60))),
    "-X": (
        200,
        ask_change("exc256", "P-256", lambda jwk: {**jwk, "y": number(_p256() - as_int(jwk["y"]), 32)}),
    ),
    "x is zero": (200, lambda world: (world.kid("exc256"), _encode({**_x_zero(), "x": "AA"}))),
    "x is zero and empty": (200, lambda world: (world.kid("exc256"), _encode({**_x_zero(), "x": ""}))),
    "with d": (200, lambda world: (world.kid("exc"), _encode(world.clients["P-521"]))),
    "with d of another": (
        400,
        ask_change("exc", "P-521", lambda jwk: {**jwk, "d": generate(alg="ECMR")["d"]}),
    ),
    "with null d": (400, ask("exc", d=None)),
    "with d zero": (400, ask("exc", d="AA")),
    "with d too large": (400, ask("exc", d="_" * 88)),
    "with an enormous d": (400, ask("exc", d="_" * 40000)),
    "with unreadable d": (400, ask("exc", d="=")),
    # and what works
    "G": (200, lambda world: (world.kid("exc"), _encode(generator("P-521")))),
    "-G": (200, lambda world: (world.kid("exc"), _encode(generator("P-521", negated=True)))),
    "G of P-384": (200, lambda world: (world.kid("exc384"), _encode(generator("P-384")))),
    "-G of P-384": (200, lambda world: (world.kid("exc384"), _encode(generator("P-384", negated=True)))),
    "G of P-256": (200, lambda world: (world.kid("exc256"), _encode(generator("P-256")))),
    "-G of P-256": (200, lambda world: (world.kid("exc256"), _encode(generator("P-256", negated=True)))),
    "the server's own key": (200, lambda world: (world.kid("exc"), _encode(public(world.keys["exc"])))),
    "P-521": (200, ask("exc")),
    "P-384": (200, ask("exc384", "P-384")),
    "P-256": (200, ask("exc256", "P-256")),
    "hidden P-521": (200, ask(".exc")),
    "hidden P-384": (200, ask(".exc384", "P-384")),
    "hidden P-256": (200, ask(".exc256", "P-256")),
    "members of no meaning": (200, ask("exc", attest={"nonce": "x"}, kid="", n=[1, None])),
}


def _p256() -> int:
    return CURVES["P-256"].p


def _x_zero() -> dict[str, Any]:
    """The point of P-256 with x = 0; p = 3 mod 4, so this power is a square root."""
    p = _p256()
    return {"kty": "EC", "crv": "P-256", "y": number(pow(CURVES["P-256"].b, (p + 1) // 4, p), 32)}


def _after(letter: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    return alphabet[alphabet.index(letter) + 1]


@pytest.mark.parametrize("name", RECOVERIES)
def test_rec(world: World, ports: tuple[int, int], name: str) -> None:
    """Status, type and body of the reply are tangd's."""
    status, request = RECOVERIES[name]
    kid, body = request(world)
    answer = both(ports, "POST", f"/rec/{kid}", body)
    assert answer.status == status
    assert answer.content_type == ("application/jwk+json" if status == 200 else None)
    assert bool(answer.body) == (status == 200)


@pytest.mark.parametrize("algorithm", HASHES)
@pytest.mark.parametrize("name", ["exc", ".exc256"])
def test_rec_by_thumbprint(world: World, ports: tuple[int, int], name: str, algorithm: str) -> None:
    """A key is found by each of its five thumbprints, a hidden one too."""
    body = _encode(world.point(world.keys[name]["crv"]))
    assert both(ports, "POST", f"/rec/{world.kid(name, algorithm)}", body).status == 200


def test_rec_is_what_jose_computes(world: World, ports: tuple[int, int], tmp_path: Path) -> None:
    """Tang's own test compares the reply with the output of ``jose jwk exc`` as text."""
    (tmp_path / "client.jwk").write_text(json.dumps(world.clients["P-521"]))
    template, local = '{"alg":"ECMR","key_ops":["deriveKey"]}', str(tmp_path / "client.jwk")
    expected = jose("jwk", "exc", "-i", template, "-l", local, "-r", str(world.directory / "exc.jwk"))
    answer = both(ports, "POST", f"/rec/{world.kid('exc')}", _encode(world.point()))
    assert answer.body.decode() == expected


# --- GET /adv ------------------------------------------------------------------------------------------------------


def open_jws(answer: Answer) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The payload and the signatures of an advertisement."""
    assert (answer.status, answer.content_type) == (200, "application/jose+json")
    jws = json.loads(answer.body)
    if "signatures" in jws:
        assert set(jws) == {"payload", "signatures"}
        signatures = jws["signatures"]
    else:
        assert set(jws) == {"payload", "protected", "signature"}
        signatures = [jws]
    return _decode(jws["payload"]), signatures


def _decode(text: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def assert_same_advertisement(theirs: Answer, mine: Answer) -> list[str]:
    """Compare what is not random; the algorithms of the signatures are returned."""
    (their_payload, their_signatures), (my_payload, my_signatures) = open_jws(theirs), open_jws(mine)
    assert set(my_payload) == set(their_payload) == {"keys"}
    # tangd lists keys in the order of the directory, we in that of the names.
    assert _sorted(my_payload["keys"]) == _sorted(their_payload["keys"])
    assert ("signatures" in json.loads(mine.body)) == ("signatures" in json.loads(theirs.body))
    my_headers = _sorted(_decode(signature["protected"]) for signature in my_signatures)
    assert my_headers == _sorted(_decode(signature["protected"]) for signature in their_signatures)
    assert all(set(signature) - {"payload"} == {"protected", "signature"} for signature in my_signatures)
    return sorted(_decode(signature["protected"])["alg"] for signature in my_signatures)


def _sorted(values: Any) -> list[Any]:
    return sorted(values, key=lambda value: json.dumps(value, sort_keys=True))


def test_adv(world: World, ports: tuple[int, int]) -> None:
    """The advertisement holds the same keys, member for member, and is signed by the same ones."""
    theirs, mine = (send(port, "GET", "/adv") for port in ports)
    assert assert_same_advertisement(theirs, mine) == ["ES256", "ES256", "ES384", "ES512"]
    for name in ("sig", "sig384", "sig-use", "sig-silent"):
        assert verifies(mine.body, world.keys[name])
        assert verifies(theirs.body, world.keys[name])
    for name in (".sig", ".sig256", "sig-only"):
        assert not verifies(mine.body, world.keys[name])


@pytest.mark.parametrize("algorithm", HASHES)
@pytest.mark.parametrize(("name", "count"), [(".sig256", 5), (".sig", 5), ("sig384", 5), ("sig-only", 5)])
def test_adv_by_thumbprint(
    world: World, ports: tuple[int, int], name: str, count: int, algorithm: str
) -> None:
    """The signer that is asked for signs too, hidden or not; a visible one signs twice."""
    theirs, mine = (send(port, "GET", f"/adv/{world.kid(name, algorithm)}") for port in ports)
    assert len(assert_same_advertisement(theirs, mine)) == count
    assert verifies(mine.body, world.keys[name] | {"key_ops": ["verify"]})
    assert verifies(mine.body, world.keys["sig"])


@pytest.mark.parametrize("name", ["exc", ".exc256", "exc-bits", "verify-only", ".sig-d-wrong", ".exc-silent"])
def test_adv_of_a_key_that_cannot_sign(world: World, ports: tuple[int, int], name: str) -> None:
    assert both(ports, "GET", f"/adv/{world.kid(name)}").status == 404


# --- other directories -----------------------------------------------------------------------------------------------


def _write(directory: Path, **keys: Any) -> None:
    for name, jwk in keys.items():
        (directory / f"{name}.jwk").write_text(json.dumps(jwk))


def test_one_signer_gives_the_flattened_form(tmp_path: Path) -> None:
    _write(tmp_path, sig=generate(alg="ES512"), exc=generate(alg="ECMR"))
    with tangd(tmp_path) as theirs, ours(tmp_path) as mine:
        answers = [send(port, "GET", "/adv") for port in (theirs, mine)]
    assert assert_same_advertisement(*answers) == ["ES512"]
    assert "signature" in json.loads(answers[1].body)


@pytest.mark.parametrize(
    ("jwk", "adv", "rec"),
    [
        pytest.param(None, 500, 500, id="no signing key"),
        pytest.param({"alg": "ES512", "key_ops": ["sign"]}, 500, 500, id="signing key that does not verify"),
        pytest.param({"alg": "ES512", "key_ops": ["verify"]}, 500, 500, id="key that only verifies"),
        pytest.param({"alg": "ECMR", "key_ops": ["sign", "verify"]}, 404, 200, id="signing key for ECMR"),
        pytest.param({"alg": "ES512", "d": "AQ"}, 404, 200, id="signing key with another d"),
        pytest.param({"alg": "ES512", "d": None}, 404, 200, id="signing key without d"),
    ],
)
def test_directory_that_cannot_advertise(
    tmp_path: Path, jwk: dict[str, Any] | None, adv: int, rec: int
) -> None:
    """Without an advertised signing key nothing works, and the request is looked at first."""
    exc = generate(alg="ECMR")
    _write(tmp_path, exc=exc, **({} if jwk is None else {"sig": generate(alg=jwk["alg"]) | jwk}))
    kid, body = thumbprint(exc), _encode(public(generate(alg="ECMR")))
    with tangd(tmp_path) as theirs, ours(tmp_path) as mine:
        ports = theirs, mine
        assert both(ports, "GET", "/adv").status == adv
        assert both(ports, "GET", f"/adv/{kid}").status == (500 if adv == 500 else 404)
        assert both(ports, "POST", f"/rec/{kid}", body).status == rec
        assert both(ports, "POST", "/rec/unknown", body).status == (500 if rec == 500 else 404)
        assert both(ports, "POST", f"/rec/{kid}", b"").status == 400


# --- where we differ, on purpose -------------------------------------------------------------------------------------

DIFFERENCES: dict[str, tuple[int, int, Request]] = {
    "x beyond the field": (200, 400, ask_x(lambda x: number(x + _p256(), 33))),
    "bytes after a NUL": (200, 400, ask_raw(lambda body: body + b"\0 rubbish")),
    "nested 1500 deep": (200, 400, ask_member(b'"a":' + b"[" * 1500 + b"]" * 1500)),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_difference(world: World, ports: tuple[int, int], name: str) -> None:
    """tangd takes these, and no client sends them."""
    theirs, mine, request = DIFFERENCES[name]
    kid, body = request(world)
    assert [send(port, "POST", f"/rec/{kid}", body).status for port in ports] == [theirs, mine]


@pytest.mark.parametrize(
    "jwk",
    [
        pytest.param({}, id="empty object"),
        pytest.param([], id="array"),
        pytest.param({"kty": "EC", "crv": "P-256", "x": "AQ", "y": "AQ"}, id="no point"),
    ],
)
def test_file_that_is_no_key(tmp_path: Path, jwk: object) -> None:
    """One JSON file that is no key stops tangd from advertising anything; we pass over it."""
    _write(tmp_path, sig=generate(alg="ES512"), exc=generate(alg="ECMR"), rubbish=jwk)
    with tangd(tmp_path) as theirs, ours(tmp_path) as mine:
        assert [send(port, "GET", "/adv").status for port in (theirs, mine)] == [404, 200]


def test_rsa_key(tmp_path: Path) -> None:
    """tangd also signs with RSA keys; we pass over them."""
    _write(tmp_path, sig=generate(alg="ES512"), exc=generate(alg="ECMR"), rsa=generate(alg="RS256"))
    with tangd(tmp_path) as theirs, ours(tmp_path) as mine:
        answers = [open_jws(send(port, "GET", "/adv")) for port in (theirs, mine)]
    assert [(len(payload["keys"]), len(signatures)) for payload, signatures in answers] == [(3, 2), (2, 1)]


def test_method_source(ports: tuple[int, int]) -> None:
    """tangd takes SOURCE, the 33rd method that its parser knows, for GET: it shifts a 32-bit 1 by 33."""
    assert [send(port, "SOURCE", "/adv").status for port in ports] == [200, 405]
