"""Duties of sections 4 and 5: enrollment, and the advertisements."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from ..primitives.encoding import b64u, thumbprint
from ..primitives.jose import BadAdvertisement, verify_advertisement
from ..primitives.texts import enroll_data
from ..report import Group, NotTestedError, ViolationError, collect, expect
from ..tpm import structures as tpm
from ..tpm.machine import AK_P256, EK_P256, Machine
from ..tpm.structures import PublicArea
from .client import Device, Tested, refused

DUTIES: Group[Tested] = []

_NONCE = re.compile(r"[A-Za-z0-9_-]{16,128}")
_SELECTION = re.compile(r"sha(256|384|512):[0-9]{1,2}(,[0-9]{1,2})*")
_UNKNOWN_TOKEN = "A" * 40


def _verified(jws: Any, trusted: list[str]) -> dict[str, Any]:
    try:
        return verify_advertisement(jws, trusted)
    except BadAdvertisement as error:
        raise ViolationError(f"the advertisement is refused by a client: {error}") from error


@collect(DUTIES, "5", "the server's advertisement is signed by each signing key in it")
def _(world: Tested) -> None:
    for path in ("/adv", "/adv/"):
        answer = world.http.request("GET", path)
        expect(answer.status == 200, f"{path} is answered with {answer.named}")
        expect(answer.content_type == "application/jose+json", f"{path} is of type {answer.content_type}")
        payload = _verified(answer.json, [])
    keys = [key for key in payload["keys"] if "verify" in key.get("key_ops", ())]
    world.signers = [thumbprint(key) for key in keys]


@collect(DUTIES, "5", "/adv/{thp} is the advertisement that the key has signed, and 404 for an unknown one")
def _(world: Tested) -> None:
    for signer in world.signers:
        answer = world.http.request("GET", f"/adv/{signer}")
        expect(answer.status == 200, f"a known thumbprint is answered with {answer.named}")
        _verified(answer.json, [signer])
    answer = world.http.request("GET", f"/adv/{'A' * 43}")
    expect(answer.status == 404, f"an unknown thumbprint is answered with {answer.named}")


# --- before the token is used ------------------------------------------------------------------------------------


@collect(DUTIES, "4.4", "step 1: an unknown token is refused, whatever else is wrong")
def _(world: Tested) -> None:
    refused(world.device.begin(token=_UNKNOWN_TOKEN), 403, "token-invalid")
    refused(world.device.begin(token=_UNKNOWN_TOKEN, name="-", ak="!"), 403, "token-invalid")


@collect(DUTIES, "4.4", "step 2: a name has the grammar of a device's name, and members their types")
def _(world: Tested) -> None:
    for name in ("-pi", "", "a b", "pi\n", "a" * 64):
        refused(world.device.begin(name=name), 400, "request-malformed")
    refused(world.device.begin(ak=7), 400, "request-malformed")
    refused(world.device.begin(ak=b64u(bytes(2049))), 400, "request-malformed")


def _areas() -> dict[str, PublicArea]:
    attributes = {
        "restricted": tpm.RESTRICTED,
        "sign": tpm.SIGN,
        "fixedTPM": tpm.FIXED_TPM,
        "fixedParent": tpm.FIXED_PARENT,
        "sensitiveDataOrigin": tpm.SENSITIVE_DATA_ORIGIN,
    }
    areas = {
        f"without {name}": replace(AK_P256, attributes=AK_P256.attributes & ~bit)
        for name, bit in attributes.items()
    }
    areas["with decrypt"] = replace(AK_P256, attributes=AK_P256.attributes | tpm.DECRYPT)
    areas["without a scheme"] = replace(AK_P256, scheme="")
    areas["signing over SHA-1"] = replace(AK_P256, scheme="ecdsa-sha1")
    areas["named by SHA-1"] = replace(AK_P256, name_hash="sha1")
    return areas


@collect(DUTIES, "4.3", "an AK that is not as the checklist has it is refused")
def _(world: Tested) -> None:
    for name, area in _areas().items():
        answer = world.device.begin(ak=b64u(area.tpm2b(world.device.machine.ak.public_key())))
        expect(answer.code == "ak-unsuitable", f"an AK {name} is answered with {answer.named}")
        refused(answer, 403, "ak-unsuitable")


@collect(DUTIES, "4.4", "step 4: an AK that cannot be read is refused")
def _(world: Tested) -> None:
    public = world.device.machine.ak_public
    for ak in (b"", public[:-1], public + b"\0"):
        answer = world.device.begin(ak=b64u(ak))
        expect(answer.status == 400, f"it is answered with {answer.named}")
    refused(world.device.begin(ak=b64u(public + b"\0")), 400, "evidence-malformed")


@collect(DUTIES, "4.4", "step 5: an EK that cannot be read or used is refused")
def _(world: Tested) -> None:
    key = world.device.machine.ek.public_key()
    refused(world.device.begin(ek=b64u(EK_P256.tpm2b(key) + b"\0")), 400, "ek-malformed")
    for area in (
        replace(EK_P256, attributes=EK_P256.attributes & ~tpm.RESTRICTED),
        replace(EK_P256, attributes=EK_P256.attributes & ~tpm.DECRYPT),
        replace(EK_P256, attributes=EK_P256.attributes & ~tpm.FIXED_TPM),
        replace(EK_P256, aes=0),
    ):
        refused(world.device.begin(ek=b64u(area.tpm2b(key))), 403, "ek-unsupported")


@collect(DUTIES, "4.1", "the first answer has its members, and a credential for this EK and AK")
def _(world: Tested) -> None:
    begun = world.device.begun()
    expect(_NONCE.fullmatch(begun["nonce"]), "the nonce has not its grammar")
    expect(_SELECTION.fullmatch(begun["selection"]), "the selection has not its grammar")
    expect(begun["expires_in"] > 0, "expires_in is not above zero")
    expect(len(begun["session"]) <= 32768, "the session is too long")
    expect(isinstance(begun.get("cap_pcr"), int), "there is no cap_pcr")
    expect("1.1" in begun.get("versions", ()), "versions has no 1.1")
    world.device.proof(begun)
    again = world.device.begun()
    expect(again["nonce"] != begun["nonce"], "two enrollments have one nonce")
    expect(again["credential_blob"] != begun["credential_blob"], "two enrollments have one secret")


@collect(DUTIES, "4.4", "step 1: a session of somebody else is refused, whatever else is wrong")
def _(world: Tested) -> None:
    begun = world.device.begun()
    good = world.device.proof(begun)
    session = begun["session"]
    changed = session[:-6] + ("A" if session[-6] != "A" else "B") + session[-5:]
    for text in ("A" * 60, changed):
        refused(
            world.device.post(
                "/attest/enroll/finish", world.device.finished(begun, session=text, proof=good)
            ),
            403,
            "session-invalid",
        )
    refused(world.device.post("/attest/enroll/finish", {"session": "A"}), 403, "session-invalid")


@collect(
    DUTIES, "4.4", "step 6: without the secret of the credential there is no enrollment, whatever the quote"
)
def _(world: Tested) -> None:
    begun = world.device.begun()
    refused(
        world.device.post("/attest/enroll/finish", world.device.finished(begun, proof="0" * 64)),
        403,
        "activation-failed",
    )
    body = world.device.finished(begun, proof="0" * 64, pcrs=b64u(b"x"))
    refused(world.device.post("/attest/enroll/finish", body), 403, "activation-failed")


@collect(DUTIES, "4.4", "step 7: the first quote is checked as any other")
def _(world: Tested) -> None:
    device = world.device
    begun = device.begun()
    proof = device.proof(begun)

    def finish(code: str, **changes: Any) -> None:
        status = 400 if code == "evidence-malformed" else 403
        refused(device.post("/attest/enroll/finish", device.finished(begun, **changes)), status, code)

    other = Machine(pcrs=device.machine.pcrs)
    quoted = Device(device.http, device.name, device.token, other)
    binding = enroll_data(begun["nonce"], device.name, proof)
    finish("signature-invalid", **quoted.evidence(binding, begun["selection"]))
    finish("qualifying-data-mismatch", binding=enroll_data(begun["nonce"], "other", proof))
    finish("qualifying-data-mismatch", binding=enroll_data("N" * 32, device.name, proof))
    finish("selection-mismatch", **device.evidence(binding, begun["selection"].rpartition(",")[0]))
    values = device.machine.values(begun["selection"])
    finish("pcr-digest-mismatch", pcrs=b64u(values[:-1] + bytes([values[-1] ^ 1])))
    finish("evidence-malformed", pcrs=b64u(values[:-1]))


# --- the enrollment ----------------------------------------------------------------------------------------------


@collect(DUTIES, "4.2", "a good enrollment is answered with 201 and the device's key")
def _(world: Tested) -> None:
    answer = world.device.enroll()
    body = answer.json
    for member in (
        "name",
        "kid",
        "policy",
        "selection",
        "ek_verified",
        "learning",
        "advertisement",
        "cap_pcr",
        "versions",
    ):
        expect(member in body, f"the answer has no {member}")
    expect(body["name"] == world.device.name, "the answer has another name")
    expect(re.fullmatch(r"[A-Za-z0-9_-]{43}", body["kid"]), "kid is no thumbprint")
    expect(answer.headers.get("cache-control") == "no-store", "the answer may be stored")


def _check_own(world: Tested, jws: Any) -> None:
    payload = _verified(jws, world.signers)
    keys = [key for key in payload["keys"] if "deriveKey" in key.get("key_ops", ())]
    expect(
        [thumbprint(key) for key in keys] == [world.device.kid], "the exchange key is not the device's alone"
    )
    expect(keys[0].get("alg") == "ECMR", "the exchange key is not for ECMR")
    expect(
        payload.get("ak_name") == world.device.machine.ak_name.hex(),
        "ak_name is not the Name of the device's AK",
    )
    expect(
        payload.get("cap_pcr") == world.device.enrolled["cap_pcr"], "cap_pcr is not that of the enrollment"
    )
    expect("1.1" in payload.get("versions", ()), "versions has no 1.1")


@collect(
    DUTIES, "5", "the device's advertisement has its key and the Name of its AK, signed by the server's keys"
)
def _(world: Tested) -> None:
    _check_own(world, world.device.enrolled["advertisement"])
    answer = world.http.request("GET", f"/attest/adv/{world.device.kid}")
    expect(answer.status == 200, f"/attest/adv is answered with {answer.named}")
    expect(answer.content_type == "application/jose+json", f"it is of type {answer.content_type}")
    _check_own(world, answer.json)
    refused(world.http.request("GET", f"/attest/adv/{'A' * 43}"), 404, "key-unknown")


@collect(DUTIES, "4.2", "a lost 201 is answered again, and only to the machine that proves the same secret")
def _(world: Tested) -> None:
    again = world.device.post("/attest/enroll/finish", world.device.finish)
    expect(again.status == 201, f"the same request is answered with {again.named}")
    expect(again.json["kid"] == world.device.kid, "the same request gets another key")
    body = world.device.finish
    proof = body.index(b'"proof":"') + 9
    changed = body[:proof] + (b"0" if body[proof : proof + 1] != b"0" else b"1") + body[proof + 1 :]
    refused(world.device.post("/attest/enroll/finish", changed), 403, "activation-failed")


@collect(DUTIES, "4.4", "step 3: a token that was used up begins no other enrollment")
def _(world: Tested) -> None:
    other = Device(world.http, world.device.name, world.device.token)
    answer = other.begin()
    expect(answer.code in {"token-used", "token-used-up"}, f"it is answered with {answer.named}")


@collect(
    DUTIES, "4.4", "step 9: an AK that is a device already makes no second one, and the token stays good"
)
def _(world: Tested) -> None:
    if world.sibling is None:
        raise NotTestedError("it takes a second token")
    own = world.sibling.machine
    world.sibling.machine = world.device.machine
    begun = world.sibling.begun()
    answer = world.sibling.post("/attest/enroll/finish", world.sibling.finished(begun))
    world.sibling.machine = own
    refused(answer, 409, "device-exists")
    world.sibling.enroll()
    expect(world.sibling.kid != world.device.kid, "two devices have one key")
