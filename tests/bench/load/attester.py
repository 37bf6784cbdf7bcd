"""Machines of the load generator: real AKs and real signatures, with TPM structures that are patched, not marshalled.

``tests.attester`` makes each structure with tpm2_pytss, which costs ten times the signature.  Here the first quote
is made that way; every other one is a copy of it with other qualifying data and another clock.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tang_attest.protocol.enrollment import activation_proof, enrollment_digest
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import b64u, unb64u
from tests.attester import Attester, members
from tests.bench.load.client import ask

SELECTION: Final = "sha256:0,2,4,7"

_P521: Final = ec.SECP521R1()
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_MARK: Final = hashlib.sha256(b"the qualifying data goes here").digest()


@dataclass(frozen=True, slots=True)
class Blinded:
    """An X with its private part, so that a reply can be checked, and the texts that are made of it."""

    private: ec.EllipticCurvePrivateKey
    jwk: bytes
    thumbprint: str

    @classmethod
    def make(cls) -> Blinded:
        """A random one."""
        private = ec.generate_private_key(_P521)
        public = dict(members(private))
        return cls(private, json.dumps(public, separators=(",", ":")).encode(), thumbprint(public))

    def check(self, reply: bytes, server: ec.EllipticCurvePublicKey) -> None:
        """Raise unless *reply* is Y = x·S."""
        y = public_key(json.loads(reply))
        numbers = y.public_numbers()
        if self.private.exchange(ec.ECDH(), server) != numbers.x.to_bytes(66, "big"):
            raise RuntimeError("the server answered another point than s·X")


def public_key(jwk: dict[str, str]) -> ec.EllipticCurvePublicKey:
    """The P-521 point of a JWK, which is on its curve."""
    x, y = (int.from_bytes(unb64u(jwk[name]), "big") for name in ("x", "y"))
    return ec.EllipticCurvePublicNumbers(x, y, _P521).public_key()


class Machine:
    """An enrolled machine: gives evidence as fast as its AK signs."""

    def __init__(self, port: int, name: str, token: str) -> None:
        self._attester = Attester()
        private = self._attester.private
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise TypeError("the AK is on P-256")
        self._private = private
        enrolled = self._enroll(port, name, token)
        self.kid: str = enrolled["kid"]
        self.target = f"/rec/{self.kid}"
        payload = json.loads(unb64u(enrolled["advertisement"]["payload"]))
        self.server = next(public_key(key) for key in payload["keys"] if thumbprint(key) == self.kid)
        self._pcrs = b64u(self._attester.values(SELECTION))
        self._quote = bytearray(self._attester.attest(_MARK, SELECTION))
        self._at = self._quote.index(_MARK)
        self._clock = self._attester.clock

    def evidence(self, nonce: str, x: Blinded) -> bytes:
        """The body of the second request: X with the member ``attest``."""
        text = f"tang-attest/v1 unlock\n{nonce}\n{self.kid}\n{x.thumbprint}\n"
        quote = self.quote(hashlib.sha256(text.encode()).digest())
        signature = signed(self._private, quote)
        attest = (
            f'"nonce":"{nonce}","quote":"{b64u(quote)}","signature":"{b64u(signature)}","pcrs":"{self._pcrs}"'
        )
        return b'%s,"attest":{%s}}' % (x.jwk[:-1], attest.encode())

    def quote(self, binding: bytes) -> bytes:
        """A TPMS_ATTEST: extraData, and the clock, which is its neighbor (TPM 2.0 part 2, section 10.12.12)."""
        self._clock += 10
        self._quote[self._at : self._at + 32] = binding
        self._quote[self._at + 32 : self._at + 40] = self._clock.to_bytes(8, "big")
        return bytes(self._quote)

    def _enroll(self, port: int, name: str, token: str) -> dict[str, Any]:
        attester = self._attester
        begin = {"name": name, "token": token, "ak": b64u(attester.ak_public), "ek": b64u(attester.ek_public)}
        begun = _post(port, "/attest/enroll", begin, 200)
        blob, encrypted = unb64u(begun["credential_blob"]), unb64u(begun["encrypted_secret"])
        secret = attester.activate(blob, encrypted, parse_ak(attester.ak_public).name)
        proof = activation_proof(begun["nonce"], secret)
        evidence = attester.evidence("", enrollment_digest(begun["nonce"], name, proof), SELECTION)
        del evidence["nonce"]
        return _post(
            port, "/attest/enroll/finish", {"session": begun["session"], "proof": proof, **evidence}, 201
        )


def signed(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """A TPMT_SIGNATURE: ECDSA, SHA-256, r and s, each with its size (TPM 2.0 part 2, section 11.3.4)."""
    r, s = decode_dss_signature(private.sign(message, _ECDSA))
    return b"\x00\x18\x00\x0b\x00\x20%s\x00\x20%s" % (r.to_bytes(32, "big"), s.to_bytes(32, "big"))


def _post(port: int, target: str, body: dict[str, Any], expected: int) -> dict[str, Any]:
    answer = ask(port, "POST", target, json.dumps(body).encode())
    if answer.status != expected:
        raise RuntimeError(f"{target} answered {answer.status}: {answer.body!r}")
    value: dict[str, Any] = json.loads(answer.body)
    return value
