"""The kit as a client: what each step of the protocol sends, and the device that comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from ..evidence.draft import Asked, Draft
from ..primitives.curve import Affine, NistCurve, read_point
from ..primitives.encoding import b64u, compact, thumbprint, unb64u
from ..primitives.http import Answer, Http
from ..primitives.jose import verify_advertisement
from ..primitives.texts import activation_proof, announce_data, enroll_data, verify_data
from ..report import ViolationError, expect
from ..tpm.machine import CAP_PCR, Machine
from ..tpm.structures import ClockReading, Quote, split_selection


@dataclass
class Device:
    """A machine of the kit, and what the server said of it."""

    http: Http
    name: str
    token: str
    machine: Machine = field(default_factory=Machine)
    _: KW_ONLY
    kid: str = ""
    selection: str = ""
    finish: bytes = b""
    enrolled: dict[str, Any] = field(default_factory=dict)

    def post(self, path: str, body: object) -> Answer:
        """POST JSON, or bytes as they are."""
        return self.http.request("POST", path, body if isinstance(body, bytes) else compact(body))

    # --- enrollment ---

    def begin(self, **changes: Any) -> Answer:
        """Send the first request of an enrollment; *changes* replace its members."""
        body = {
            "name": self.name,
            "token": self.token,
            "ak": b64u(self.machine.ak_public),
            "ek": b64u(self.machine.ek_public),
        }
        return self.post("/attest/enroll", body | changes)

    def begun(self) -> dict[str, Any]:
        """Return the answer to a good first request."""
        answer = self.begin()
        expect(
            answer.status == 200, f"the first request is answered with {answer.named}: {answer.body!r:.200}"
        )
        members: dict[str, Any] = answer.json
        return members

    def proof(self, begun: Mapping[str, Any]) -> str:
        """Return the proof of the credential in *begun*."""
        blob, encrypted = (unb64u(begun[name]) for name in ("credential_blob", "encrypted_secret"))
        return activation_proof(begun["nonce"], self.machine.activate(blob, encrypted))

    def evidence(self, binding: bytes, selection: str) -> dict[str, str]:
        """Return quote, signature and values over the machine as it is."""
        values, machine = self.machine.values(selection), self.machine
        quote = Quote(binding, machine.reading(), [selection], machine.digest(values)).marshal()
        return {"quote": b64u(quote), "signature": b64u(machine.sign(quote)), "pcrs": b64u(values)}

    def finished(self, begun: Mapping[str, Any], **changes: Any) -> bytes:
        """Return the body of the second request; *changes* replace its members, ``binding`` the qualifying data."""
        proof = changes.get("proof") or self.proof(begun)
        binding = changes.pop("binding", None) or enroll_data(begun["nonce"], self.name, proof)
        body = {"session": begun["session"], "proof": proof, **self.evidence(binding, begun["selection"])}
        return compact(body | changes)

    def enroll(self) -> Answer:
        """Enroll, and keep what the server answers."""
        self.finish = self.finished(self.begun())
        answer = self.post("/attest/enroll/finish", self.finish)
        expect(answer.status == 201, f"the enrollment is answered with {answer.named}: {answer.body!r:.200}")
        self.enrolled = answer.json
        self.kid, self.selection = self.enrolled["kid"], self.enrolled["selection"]
        return answer

    @cached_property
    def key(self) -> tuple[NistCurve, Affine]:
        """S, out of the advertisement of the enrollment."""
        payload = verify_advertisement(self.enrolled["advertisement"])
        [found] = [key for key in payload["keys"] if thumbprint(key) == self.kid]
        return read_point(found)

    @property
    def has_cap(self) -> bool:
        """True if the selection has the cap PCR."""
        return CAP_PCR in split_selection(self.selection)[1]

    # --- unlock ---

    def challenge(self, jwk: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return a challenge of 3.1."""
        answer = self.post(f"/rec/{self.kid}", jwk or self.key[0].jwk(self.any_point(), alg="ECMR"))
        expect(answer.status == 401, f"the question is answered with {answer.named} in place of 401")
        challenge: dict[str, Any] = answer.json["challenge"]
        return challenge

    def point(self, scalar: int) -> tuple[Affine, dict[str, Any]]:
        """Return a point of the key's curve, and its JWK."""
        curve, _ = self.key
        point = curve.multiply(scalar)
        return point, curve.jwk(point, alg="ECMR")

    def any_point(self) -> Affine:
        """Return a random point of the key's curve."""
        implementation = {32: ec.SECP256R1(), 48: ec.SECP384R1(), 66: ec.SECP521R1()}[self.key[0].size]
        numbers = ec.generate_private_key(implementation).public_key().public_numbers()
        return numbers.x, numbers.y

    def draft(self, challenge: Mapping[str, Any], x: Affine | None = None, *, kid: str = "") -> Draft:
        """Return a good request for *challenge*, made now; *x* is any point by default."""
        curve, _ = self.key
        asked = Asked(
            kid or self.kid,
            challenge["nonce"],
            challenge["selection"],
            curve,
            x or self.any_point(),
        )
        before = ClockReading(self.machine.clock, self.machine.reset_count, self.machine.restart_count)
        return Draft(self.machine, asked, before, self.machine.reading())

    def send(self, draft: Draft, *, kid: str = "") -> Answer:
        """Send an unlock request."""
        return self.post(f"/rec/{kid or self.kid}", draft.body())

    def unlock(self) -> Answer:
        """Unlock, as an honest client does."""
        return self.send(self.draft(self.challenge()))

    def opens(self, reason: str = "a good request") -> Answer:
        """Unlock, and expect Y."""
        answer = self.unlock()
        expect(answer.status == 200, f"{reason} is answered with {answer.named}")
        return answer

    # --- the rest ---

    def announcement(self, challenge: Mapping[str, Any], values: bytes, label: str, **changes: Any) -> bytes:
        """Return the body of an announcement; *changes* replace its members, ``binding`` the qualifying data."""
        binding = changes.pop("binding", None) or announce_data(challenge["nonce"], self.kid, values, label)
        evidence = self.evidence(binding, challenge["selection"])
        body = {"nonce": challenge["nonce"], **evidence, "label": label, "values": b64u(values)}
        return compact(body | changes)

    def asked_to_announce(self) -> dict[str, Any]:
        """Return a challenge of section 9."""
        answer = self.post(f"/attest/announce/{self.kid}", {})
        expect(answer.status == 200, f"the question is answered with {answer.named}")
        challenge: dict[str, Any] = answer.json
        return challenge

    def asked_for_a_round(self) -> dict[str, Any]:
        """Return a challenge of section 10."""
        answer = self.post(f"/attest/agent/{self.kid}", {})
        expect(answer.status == 200, f"the question is answered with {answer.named}")
        challenge: dict[str, Any] = answer.json["challenge"]
        return challenge

    def round(self, challenge: Mapping[str, Any], **changes: Any) -> bytes:
        """Return the evidence of a round; *changes* replace its members, ``binding`` the qualifying data."""
        binding = changes.pop("binding", None) or verify_data(challenge["nonce"], self.kid)
        evidence = self.evidence(binding, challenge["selection"])
        return compact({"nonce": challenge["nonce"], **evidence} | changes)


@dataclass
class Tested:
    """The server under test, and the machines that the kit enrolls there.

    *sibling* is a second device, if there is a second token.  *patience* is in seconds: a nonce that lives longer is
    not waited for with *wait*.  *signers* are the thumbprints of the server's signing keys, once they are known.
    """

    http: Http
    device: Device
    sibling: Device | None = None
    _: KW_ONLY
    patience: float = 10
    wait: Callable[[float], None] = time.sleep
    signers: list[str] = field(default_factory=list)


def refused(answer: Answer, status: int, code: str) -> None:
    """Expect a problem of that status and code, with all that section 6 wants."""
    if (answer.status, answer.code) != (status, code):
        raise ViolationError(f"{answer.named} in place of {status} {code}")
    body = answer.json
    expect(body.get("status") == status, f"the problem's status is {body.get('status')}")
    expect(
        body.get("type", f"urn:tang-attest:{code}") == f"urn:tang-attest:{code}",
        "the problem's type has another code",
    )
    for member in ("detail", "action"):
        expect(isinstance(body.get(member), str), f"the problem has no {member}")
    expect(answer.headers.get("cache-control") == "no-store", "the answer may be stored: Cache-Control")
