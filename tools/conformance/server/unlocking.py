"""Duties of sections 2, 3, 6 and 7: the exchange, its challenges, and what holds between requests."""

from __future__ import annotations

import json
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from ..primitives.curve import read_point
from ..primitives.encoding import b64u, compact, unb64u
from ..primitives.texts import CAP_HEADER
from ..report import Group, NotTestedError, collect, expect
from ..tpm.machine import CAP_PCR
from .client import Device, Tested, refused

DUTIES: Group[Tested] = []

_NONCE: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")
_UNKNOWN: Final = "A" * 43
_RACERS: Final = 8
#: Each is an object, so that a server of 1.2 reads it, and an older one ignores it (12.1).
_ODD_SIGNED_VALUES: Final[tuple[dict[str, object], ...]] = (
    {},
    {"future": [1]},
    {"pcrsig": "text", "statements": 7},
    {"pcrsig": {"sha256": [{"pcrs": [11], "pkfp": "00", "pol": "00", "sig": "?"}]}},
    {"pcrsig": {"sha256": [None, {"pcrs": "11"}], "sha1": 1}},
    {"statements": ["", "a.b.c", 5, None, "e30.e30.AA"]},
    {"statements": ["x"] * 9},
    {"statements": ["x" * 16385], "pcrsig": {"sha256": "y" * 16385}},
)


@collect(DUTIES, "3.1", "a question is answered with a challenge")
def _(world: Tested) -> None:
    device = world.device
    answer = device.post(f"/rec/{device.kid}", device.point(7)[1])
    refused(answer, 401, "evidence-required")
    expect(answer.headers.get("www-authenticate") == "TPM2-Quote", "WWW-Authenticate is not TPM2-Quote")
    challenge = answer.json["challenge"]
    expect(_NONCE.fullmatch(challenge["nonce"]), "the nonce has not its grammar")
    expect(challenge["selection"] == device.selection, "the selection is not that of the enrollment")
    expect(challenge["expires_in"] > 0, "expires_in is not above zero")
    expect("quote" in challenge["evidence"], "evidence has no word 'quote'")
    expect(challenge.get("cap_pcr") == device.enrolled["cap_pcr"], "cap_pcr is not that of the enrollment")
    expect("1.1" in challenge.get("versions", ()), "versions has no 1.1")


@collect(DUTIES, "3.1", "each challenge has a nonce of its own, whatever X")
def _(world: Tested) -> None:
    device = world.device
    _, jwk = device.point(7)
    off = jwk | {"y": jwk["x"]}
    nonces = {device.challenge(each)["nonce"] for each in (jwk, jwk, off)}
    expect(len(nonces) == 3, "a nonce came twice")


@collect(DUTIES, "3.1", "a kid that is no key's is unknown, whatever the body and its size")
def _(world: Tested) -> None:
    device = world.device
    draft = device.draft(device.challenge(), kid=_UNKNOWN)
    for body in (compact(device.point(7)[1]), draft.body(), b"no JSON", b"[" * 60, b"x" * 6000):
        refused(device.post(f"/rec/{_UNKNOWN}", body), 404, "key-unknown")


@collect(DUTIES, "2", "Y is s·X: K = Y - e·S opens what C was made for")
def _(world: Tested) -> None:
    device = world.device
    curve, big_s = device.key
    c, e = (secrets.randbelow(curve.order - 1) + 1 for _ in range(2))
    x = curve.sum(curve.multiply(c), curve.multiply(e))
    answer = device.send(device.draft(device.challenge(), x))
    expect(answer.status == 200, f"a good request is answered with {answer.named}: {answer.body!r:.200}")
    expect(answer.content_type == "application/jwk+json", f"the answer is of type {answer.content_type}")
    expect(answer.headers.get("cache-control") == "no-store", "the answer may be stored")
    found, y = read_point(answer.json)
    expect(found is curve, "Y is on another curve")
    k = curve.sum(y, curve.negate(curve.multiply(e, big_s)))
    expect(k == curve.multiply(c, big_s), "K is another point")


@collect(DUTIES, "7", "the reply is tangd's, byte for byte")
def _(world: Tested) -> None:
    body = world.device.opens().body
    curve, y = read_point(json.loads(body))
    expect(body == compact(curve.jwk(y, alg="ECMR", key_ops=["deriveKey"])), f"the reply is {body[:160]!r}")


@collect(DUTIES, "2", "X = G gets S, and X = -G gets -S")
def _(world: Tested) -> None:
    device = world.device
    curve, big_s = device.key
    for x, wanted in ((curve.generator, big_s), (curve.negate(curve.generator), curve.negate(big_s))):
        answer = device.send(device.draft(device.challenge(), x))
        expect(answer.status == 200, f"it is answered with {answer.named}")
        expect(read_point(answer.json)[1] == wanted, "Y is another point")


@collect(DUTIES, "3.3", "step 2: a coordinate without its zeros is good, and hashed with them")
def _(world: Tested) -> None:
    device = world.device
    curve, _ = device.key
    scalar, x = 3, curve.multiply(3)
    while x[0] >> 8 * (curve.size - 1):
        scalar, x = scalar + 1, curve.sum(x, curve.generator)
    draft = device.draft(device.challenge(), x)
    draft.x["x"] = b64u(unb64u(draft.x["x"]).lstrip(b"\0"))
    answer = device.send(draft)
    expect(answer.status == 200, f"it is answered with {answer.named}")


@collect(DUTIES, "3.3", "steps 1 to 9 use no nonce up, and a refusal of step 12 does")
def _(world: Tested) -> None:
    device = world.device
    challenge = device.challenge()
    bad = device.draft(challenge)
    bad.binding = bytes(32)
    refused(device.send(bad), 403, "qualifying-data-mismatch")
    answer = device.send(device.draft(challenge))
    expect(answer.status == 200, f"the nonce of a refused request is answered with {answer.named}")
    challenge = device.challenge()
    draft = device.draft(challenge)
    draft.values = bytes([draft.values[0] ^ 1]) + draft.values[1:]
    refused(device.send(draft), 403, "pcr-mismatch")
    refused(device.send(device.draft(challenge)), 403, "nonce-used")


@collect(DUTIES, "3.4", "a replay is refused, and so is a second quote over one nonce")
def _(world: Tested) -> None:
    device = world.device
    challenge = device.challenge()
    draft = device.draft(challenge)
    body = draft.body()
    answer = device.post(f"/rec/{device.kid}", body)
    expect(answer.status == 200, f"a good request is answered with {answer.named}")
    refused(device.post(f"/rec/{device.kid}", body), 403, "nonce-used")
    refused(device.send(device.draft(challenge)), 403, "nonce-used")


@collect(DUTIES, "3.2", "captured evidence is no good for another X")
def _(world: Tested) -> None:
    device = world.device
    draft = device.draft(device.challenge())
    evidence = draft.evidence()
    refused(
        device.post(f"/rec/{device.kid}", device.point(13)[1] | {"attest": evidence}),
        403,
        "qualifying-data-mismatch",
    )


@collect(DUTIES, "3.4", "of requests with one nonce at the same moment, one gets Y")
def _(world: Tested) -> None:
    device = world.device
    challenge = device.challenge()
    bodies = [device.draft(challenge).body() for _ in range(_RACERS)]
    with ThreadPoolExecutor(_RACERS) as pool:
        answers = list(pool.map(lambda body: device.post(f"/rec/{device.kid}", body), bodies))
    good = sum(answer.status == 200 for answer in answers)
    expect(good == 1, f"{good} of {_RACERS} got Y")
    codes = {answer.code for answer in answers if answer.status != 200}
    expect(codes == {"nonce-used"}, f"the others are refused with {', '.join(sorted(codes))}")


@collect(DUTIES, "3.3", "step 10: two quotes of one boot may overtake each other on the way")
def _(world: Tested) -> None:
    device = world.device
    first, second = device.challenge(), device.challenge()
    one, other = device.draft(first), device.draft(second)
    for draft in (other, one):
        answer = device.send(draft)
        expect(answer.status == 200, f"it is answered with {answer.named}")


@collect(DUTIES, "3.3", "step 10: a quote of an earlier boot than the newest evidence is refused")
def _(world: Tested) -> None:
    device = world.device
    held = device.draft(device.challenge())
    body = held.body()
    device.machine.boot()
    device.opens("a quote of the next boot")
    refused(device.post(f"/rec/{device.kid}", body), 403, "clock-backwards")


@collect(DUTIES, "15.3", "a nonce is good for one purpose and one key")
def _(world: Tested) -> None:
    device = world.device
    nonces = {
        "an announcement": device.asked_to_announce()["nonce"],
        "a round": device.asked_for_a_round()["nonce"],
    }
    for purpose, nonce in nonces.items():
        answer = device.send(device.draft(device.challenge() | {"nonce": nonce}))
        expect(answer.code == "nonce-invalid", f"a nonce of {purpose} is answered with {answer.named}")
    unlock = device.challenge()["nonce"]
    challenge = device.asked_to_announce() | {"nonce": unlock}
    values = device.machine.values(challenge["selection"])
    announced = device.post(f"/attest/announce/{device.kid}", device.announcement(challenge, values, "x"))
    expect(announced.code == "nonce-invalid", f"at an announcement it is answered with {announced.named}")
    challenge = device.asked_for_a_round() | {"nonce": unlock}
    ended = device.post(f"/attest/agent/{device.kid}/evidence", device.round(challenge))
    expect(ended.code == "nonce-invalid", f"at a round it is answered with {ended.named}")


def _sibling(world: Tested) -> Device:
    if world.sibling is None or not world.sibling.kid:
        raise NotTestedError("it takes a second token")
    return world.sibling


@collect(DUTIES, "3.3", "steps 3 and 4: evidence and nonces of another device are refused")
def _(world: Tested) -> None:
    device, sibling = world.device, _sibling(world)
    foreign = device.challenge() | {"nonce": sibling.challenge()["nonce"]}
    refused(device.send(device.draft(foreign)), 403, "nonce-invalid")
    draft = device.draft(device.challenge())
    draft.machine = sibling.machine
    refused(device.send(draft), 403, "signature-invalid")
    sibling.opens("the other device's own request")


@collect(DUTIES, "3.5", "a refused device is told which PCRs differ, after the signature and not before")
def _(world: Tested) -> None:
    device = world.device
    draft = device.draft(device.challenge())
    draft.values = bytes([draft.values[0] ^ 1]) + draft.values[1:]
    answer = device.send(draft)
    refused(answer, 403, "pcr-mismatch")
    first = int(device.selection.partition(":")[2].partition(",")[0])
    expect(answer.json.get("pcrs") == [first], f"pcrs is {answer.json.get('pcrs')}, and PCR {first} differs")
    expect(draft.values.hex()[:64] not in answer.body.decode(), "the answer has a value")
    draft = device.draft(device.challenge())
    draft.values = bytes([draft.values[0] ^ 1]) + draft.values[1:]
    draft.signature = lambda made: made[:-1] + bytes([made[-1] ^ 1])
    answer = device.send(draft)
    expect(answer.code == "signature-invalid", f"it is answered with {answer.named}")
    expect("pcrs" not in answer.json, "a client without the TPM is told the PCRs")


@collect(DUTIES, "11", "a capped boot gets no Y, and the next boot does")
def _(world: Tested) -> None:
    device = world.device
    if not device.has_cap:
        raise NotTestedError(f"PCR {CAP_PCR} is not in the selection; give the token a selection with it")
    device.opens("an uncapped boot")
    for text in (CAP_HEADER, CAP_HEADER + b"attested 0f6e5a3c-0000-4000-8000-000000000001\n"):
        device.machine.extend(CAP_PCR, text)
        refused(device.unlock(), 403, "capped")
    device.machine.boot()
    device.opens("the next boot")


@collect(DUTIES, "3.3", "step 12: another boot gets no Y, and the approved one does afterwards")
def _(world: Tested) -> None:
    device = world.device
    first = device.selection.partition(":")[2].partition(",")[0]
    device.machine.boot(**{f"pcr{first}": b"another component"})
    refused(device.unlock(), 403, "pcr-mismatch")
    device.machine.boot()
    device.opens("the approved boot")


@collect(DUTIES, "3.3", "step 3: a nonce that expired brings a new challenge")
def _(world: Tested) -> None:
    device = world.device
    challenge = device.challenge()
    if challenge["expires_in"] > world.patience:
        raise NotTestedError(f"a nonce lives {challenge['expires_in']} s; give --patience to wait that long")
    world.wait(challenge["expires_in"] + 0.1)
    answer = device.send(device.draft(challenge))
    refused(answer, 401, "nonce-expired")
    answer = device.send(device.draft(answer.json["challenge"]))
    expect(answer.status == 200, f"the new challenge is answered with {answer.named}")


@collect(DUTIES, "3.3", "step 1: members that nobody knows, and null, are as if they were not there")
def _(world: Tested) -> None:
    device = world.device
    for changes in (
        {"future": {"a": 1}},
        {"event_log": None},
        {"event_log": ""},
        {"critical": ["quote", "nonce"]},
    ):
        draft = device.draft(device.challenge())
        members = draft.evidence() | changes
        answer = device.post(f"/rec/{device.kid}", draft.x | {"future": 1, "attest": members})
        expect(answer.status == 200, f"{changes} is answered with {answer.named}")


@collect(DUTIES, "3.8", "anything wrong inside signed_values is as if it were not there")
def _(world: Tested) -> None:
    device = world.device
    for values in _ODD_SIGNED_VALUES:
        draft = device.draft(device.challenge())
        draft.attest["signed_values"] = values
        answer = device.send(draft)
        expect(answer.status == 200, f"{values!r:.100} is answered with {answer.named}")


@collect(DUTIES, "3.8", "signed_values that nobody trusts permit no other boot")
def _(world: Tested) -> None:
    device = world.device
    for values in _ODD_SIGNED_VALUES:
        draft = device.draft(device.challenge())
        draft.values = bytes([draft.values[0] ^ 1]) + draft.values[1:]
        draft.attest["signed_values"] = values
        refused(device.send(draft), 403, "pcr-mismatch")


@collect(DUTIES, "12.2", "signed_values of a wrong type are refused")
def _(world: Tested) -> None:
    device = world.device
    challenge = device.challenge()
    if "1.2" not in challenge.get("versions", ()):
        raise NotTestedError("the server does not speak 1.2")
    draft = device.draft(challenge)
    draft.attest["signed_values"] = ["statements"]
    refused(device.send(draft), 400, "evidence-malformed")


@collect(DUTIES, "12.2", "a critical member that the server does not know is refused")
def _(world: Tested) -> None:
    device = world.device
    draft = device.draft(device.challenge())
    draft.attest = {"critical": ["future"], "future": 1}
    refused(device.send(draft), 400, "extension-unsupported")


@collect(DUTIES, "14", "sizes: an event log of 128 KiB is read, a byte more is not, nor a body over 256 KiB")
def _(world: Tested) -> None:
    device = world.device
    if "event_log_limit" in device.challenge():
        draft = device.draft(device.challenge())
        draft.attest["event_log"] = b64u(bytes(131072))
        answer = device.send(draft)
        expect(answer.status in {200, 403}, f"the largest log is answered with {answer.named}")
    draft = device.draft(device.challenge())
    draft.attest["event_log"] = b64u(bytes(131073))
    refused(device.send(draft), 400, "evidence-malformed")
    refused(device.post(f"/rec/{device.kid}", b" " * (256 * 1024 + 1)), 413, "request-too-large")


@collect(DUTIES, "1", "a compressed body is refused, and so are repeated members and NaN")
def _(world: Tested) -> None:
    device = world.device
    headers = {"Content-Encoding": "gzip"}
    answer = device.http.request("POST", f"/rec/{device.kid}", b"{}", headers)
    refused(answer, 415, "encoding-unsupported")
    for body in (
        b'{"kty":"EC","kty":"EC"}',
        b'{"kty":NaN}',
        b'{"a":1e999999999999999999999999999999999}',
        b"\xef\xbb\xbf{}",
    ):
        answer = device.post(f"/rec/{device.kid}", body)
        expect(answer.code == "request-malformed", f"{body!r} is answered with {answer.named}")


@collect(DUTIES, "7", "routes: other targets are 404, other methods 405, and nothing is redirected")
def _(world: Tested) -> None:
    http, kid = world.http, world.device.kid
    wanted = {
        ("GET", f"/rec/{kid}"): 405,
        ("POST", "/adv"): 405,
        ("POST", "/rec/"): 404,
        ("GET", "/attest/nothing"): 404,
        ("GET", f"/attest/announce/{kid}"): 405,
        ("POST", f"/attest/adv/{kid}"): 405,
    }
    for (method, path), status in wanted.items():
        answer = http.request(method, path, b"{}" if method == "POST" else None)
        expect(answer.status == status, f"{method} {path} is answered with {answer.named}")
    answer = http.request("GET", f"/attest/announce/{kid}")
    expect(answer.headers.get("allow") == "POST", f"Allow is {answer.headers.get('allow')}")
    expect(answer.code == "method-not-allowed", f"it is answered with {answer.named}")
