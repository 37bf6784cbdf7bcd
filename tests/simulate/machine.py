"""Machines of the simulation: real AKs, real EKs and real signatures, and software that a TPM would have measured.

Keys are made from the seed, so that a run can be repeated.  EKs are on P-256, which are made a thousand times faster
than RSA ones.  TPM structures are made once for each software and patched, as in ``tests.bench.load.attester``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss.constants import TPM2_ALG
from tpm2_pytss.types import TPM2B_PUBLIC, TPMT_PUBLIC

from tang_attest.protocol.challenge import unlock_digest
from tang_attest.protocol.enrollment import activation_proof, enrollment_digest
from tang_attest.protocol.policy import DEFAULT_SELECTION
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import b64u, unb64u
from tests.attester import EK_ATTRIBUTES, Attester, recover
from tests.bench.load.attester import Blinded, public_key, signed

PCRS: Final = tuple(int(pcr) for pcr in DEFAULT_SELECTION.partition(":")[2].split(","))

_P256: Final = ec.SECP256R1()
#: The order of P-256 (SP 800-186, 3.2.1.3).
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_MARK: Final = hashlib.sha256(b"the qualifying data goes here").digest()


@dataclass(frozen=True, slots=True)
class Software:
    """A machine's boot: PCR values, and a TPMS_ATTEST over them to be patched."""

    name: str
    values: dict[int, bytes]
    quote: bytes
    mark: int

    @classmethod
    def make(cls, name: str, **measured: str) -> Software:
        """Software that is as every other in this fleet but for ``kernel`` (PCR 4, 8) and ``initrd`` (PCR 9)."""
        attester = Attester()
        texts = {4: f"kernel {measured['kernel']}", 8: measured["kernel"], 9: f"initrd {measured['initrd']}"}
        for pcr, text in texts.items():
            attester.pcrs["sha256"][pcr] = hashlib.sha256(text.encode()).digest()
        quote = attester.attest(_MARK, DEFAULT_SELECTION)
        values = {pcr: attester.pcrs["sha256"][pcr] for pcr in PCRS}
        return cls(name, values, quote, quote.index(_MARK))

    def change(self) -> dict[str, object]:
        """The document that adds this to a policy."""
        values = {str(pcr): value.hex() for pcr, value in self.values.items()}
        return {"add": [{"label": self.name, "values": values}]}


class SoftwareMachine:
    """One machine: what it is, what it boots, and how often it did."""

    def __init__(self, seed: int, number: int) -> None:
        self.name = f"m-{number:04}"
        self._ak = _key(f"{seed} ak {number}")
        self._ek = _key(f"{seed} ek {number}")
        self._resets, self._clock = 1, 1000
        self.software: Software | None = None
        self.kid = self.target = ""

    # --- enrollment ---

    def application(self, token: str) -> bytes:
        """The body of the first request."""
        self._ak_public = _ak_public(self._ak)
        return _json(name=self.name, token=token, ak=b64u(self._ak_public), ek=b64u(_ek_public(self._ek)))

    def finish(self, begun: dict[str, Any]) -> bytes:
        """The body of the second request, with the first quote, for which :meth:`boot` came before."""
        blob, encrypted = unb64u(begun["credential_blob"]), unb64u(begun["encrypted_secret"])
        secret = self._activate(blob, encrypted, parse_ak(self._ak_public).name)
        proof = activation_proof(begun["nonce"], secret)
        quote = self._quote(enrollment_digest(begun["nonce"], self.name, proof))
        return _json(session=begun["session"], proof=proof, **self._signed(quote))

    def enrolled(self, answer: dict[str, Any]) -> None:
        """Keep what the server answered."""
        self.kid = answer["kid"]
        self.target = f"/rec/{self.kid}"
        payload = json.loads(unb64u(answer["advertisement"]["payload"]))
        self.server = next(public_key(key) for key in payload["keys"] if thumbprint(key) == self.kid)

    # --- boots ---

    def boot(self, software: Software) -> None:
        """Reset the TPM and measure *software*."""
        self._resets += 1
        self.software = software

    def evidence(self, nonce: str, x: Blinded) -> bytes:
        """The body of the second request of an unlock."""
        quote = self._quote(unlock_digest(nonce, self.kid, x.thumbprint))
        attest = _json(nonce=nonce, **self._signed(quote))
        return b'%s,"attest":%s}' % (x.jwk[:-1], attest)

    def _quote(self, binding: bytes) -> bytes:
        """extraData, clock and resetCount stand one after the other (TPM 2.0 part 2, section 10.12.12)."""
        assert self.software is not None, "a machine boots first"
        self._clock += 10
        at, quote = self.software.mark, self.software.quote
        changed = binding + self._clock.to_bytes(8, "big") + self._resets.to_bytes(4, "big")
        return quote[:at] + changed + quote[at + len(changed) :]

    def _signed(self, quote: bytes) -> dict[str, str]:
        assert self.software is not None, "a machine boots first"
        values = b"".join(self.software.values[pcr] for pcr in PCRS)
        return {"quote": b64u(quote), "signature": b64u(signed(self._ak, quote)), "pcrs": b64u(values)}

    def _activate(self, credential_blob: bytes, encrypted_secret: bytes, ak_name: bytes) -> bytes:
        """The secret that TPM2_ActivateCredential recovers with an ECC key (TPM 2.0 part 1, section 24 and C.6.4)."""
        size = int.from_bytes(encrypted_secret[2:4], "big")
        x = encrypted_secret[4 : 4 + size].rjust(32, b"\0")
        y = encrypted_secret[6 + size :].rjust(32, b"\0")
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), _P256)
        shared = self._ek.exchange(ec.ECDH(), numbers.public_key())
        own = self._ek.public_key().public_numbers().x.to_bytes(32, "big")
        # KDFe (part 1, section 11.4.10.3)
        seed = hashlib.sha256((1).to_bytes(4, "big") + shared + b"IDENTITY\0" + x + own).digest()
        return recover(seed, credential_blob, ak_name)


def _key(text: str) -> ec.EllipticCurvePrivateKey:
    number = int.from_bytes(hashlib.sha512(text.encode()).digest(), "big") % (_ORDER - 1) + 1
    return ec.derive_private_key(number, _P256)


def _ak_public(private: ec.EllipticCurvePrivateKey) -> bytes:
    attester = Attester()
    attester.private = private
    return attester.ak_public


def _ek_public(private: ec.EllipticCurvePrivateKey) -> bytes:
    """An EK's TPM2B_PUBLIC after template L-2 (without its policy, which the Verifier does not look at)."""
    pem = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    area = TPMT_PUBLIC.from_pem(pem, nameAlg=TPM2_ALG.SHA256, objectAttributes=EK_ATTRIBUTES)
    area.parameters.eccDetail.symmetric.algorithm = TPM2_ALG.AES
    area.parameters.eccDetail.symmetric.keyBits.aes = 128
    area.parameters.eccDetail.symmetric.mode.aes = TPM2_ALG.CFB
    area.parameters.eccDetail.scheme.scheme = TPM2_ALG.NULL
    area.parameters.eccDetail.kdf.scheme = TPM2_ALG.NULL
    return bytes(TPM2B_PUBLIC(publicArea=area).marshal())


def _json(**members: str) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()
