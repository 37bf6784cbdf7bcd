"""An Attester in software: real keys, real signatures, real TPM structures, and every way to get them wrong.

A TPM refuses to make most of the evidence that an attacker would like to send; this makes it.  Tests that
use swtpm cover a real TPM.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from tpm2_pytss.constants import TPM2_ALG, TPM2_GENERATED, TPM2_ST, TPMA_OBJECT
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_DIGEST,
    TPM2B_ECC_PARAMETER,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_PUBLIC_KEY_RSA,
    TPML_PCR_SELECTION,
    TPMS_ATTEST,
    TPMS_CLOCK_INFO,
    TPMS_PCR_SELECTION,
    TPMS_SIGNATURE_ECC,
    TPMS_SIGNATURE_RSA,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
    TPMU_SIGNATURE,
)

from tang_attest.protocol.eventlog import parse, replay
from tang_attest.protocol.values.base64url import b64u
from tests.keys import rsa_keys

BANKS = {
    "sha1": TPM2_ALG.SHA1,
    "sha256": TPM2_ALG.SHA256,
    "sha384": TPM2_ALG.SHA384,
    "sha512": TPM2_ALG.SHA512,
}
SCHEMES = {"rsassa": TPM2_ALG.RSASSA, "rsapss": TPM2_ALG.RSAPSS, "ecdsa": TPM2_ALG.ECDSA}

AK_ATTRIBUTES = (
    TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.SIGN_ENCRYPT
    | TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
)
EK_ATTRIBUTES = (
    TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.DECRYPT
    | TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.ADMINWITHPOLICY
)


@dataclass
class Attester:
    """A machine: an AK, an EK, PCRs and a clock.  *kind* is ``ecc256:ecdsa-sha256``, ``rsa2048:rsapss-sha256`` ..."""

    kind: str = "ecc256:ecdsa-sha256"
    attributes: int = int(AK_ATTRIBUTES)
    pcrs: dict[str, dict[int, bytes]] = field(default_factory=dict)
    clock: int = 1000
    reset_count: int = 1
    _: KW_ONLY
    restart_count: int = 0
    event_log: bytes = b""

    def __post_init__(self) -> None:
        size, _, scheme = self.kind.partition(":")
        self.scheme, _, self.hash_name = scheme.partition("-")
        self.private: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
        if size.startswith("rsa"):
            self.private = rsa_keys.draw(int(size[3:]))
        else:
            self.private = ec.generate_private_key({"ecc256": ec.SECP256R1(), "ecc384": ec.SECP384R1()}[size])
        self._ek: rsa.RSAPrivateKey | None = None
        for bank, width in (("sha1", 20), ("sha256", 32), ("sha384", 48), ("sha512", 64)):
            values = {pcr: hashlib.sha512(f"{bank}{pcr}".encode()).digest()[:width] for pcr in range(24)}
            values[15] = bytes(width)
            self.pcrs.setdefault(bank, values)

    # --- public areas ---

    @property
    def ak_public(self) -> bytes:
        """TPM2B_PUBLIC."""
        pem = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        area = TPMT_PUBLIC.from_pem(pem, nameAlg=TPM2_ALG.SHA256, objectAttributes=self.attributes)
        details = area.parameters.rsaDetail if self.scheme.startswith("rsa") else area.parameters.eccDetail
        details.scheme.scheme = SCHEMES[self.scheme]
        getattr(details.scheme.details, self.scheme).hashAlg = BANKS[self.hash_name]
        details.symmetric.algorithm = TPM2_ALG.NULL
        return bytes(TPM2B_PUBLIC(publicArea=area).marshal())

    @property
    def ek(self) -> rsa.RSAPrivateKey:
        """The endorsement key, made when first needed."""
        if self._ek is None:
            self._ek = rsa_keys.draw(2048)
        return self._ek

    @property
    def ek_public(self) -> bytes:
        """TPM2B_PUBLIC."""
        return public_ek(self.ek.public_key())

    def activate(self, credential_blob: bytes, encrypted_secret: bytes, ak_name: bytes) -> bytes:
        """The secret that TPM2_ActivateCredential would recover (TPM 2.0 part 1, section 24)."""
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), b"IDENTITY\0")
        return recover(self.ek.decrypt(encrypted_secret[2:], oaep), credential_blob, ak_name)

    # --- quotes ---

    def attest(self, binding: bytes, selection: str = "sha256:0,2,4,7", **changes: Any) -> bytes:
        """A TPMS_ATTEST as a TPM would make it, except for *changes*.

        ``magic``, ``type``, ``banks`` (list of ``bank:pcrs``), ``pcr_digest``, ``trailing``.
        """
        self.clock += 10
        attest = TPMS_ATTEST(
            magic=changes.get("magic", TPM2_GENERATED.VALUE),
            type=TPM2_ST.ATTEST_QUOTE,
            extraData=TPM2B_DATA(binding),
            clockInfo=TPMS_CLOCK_INFO(
                clock=self.clock, resetCount=self.reset_count, restartCount=self.restart_count, safe=1
            ),
            firmwareVersion=0x20240101,
        )
        banks = changes.get("banks", [selection])
        attest.attested.quote.pcrSelect = TPML_PCR_SELECTION([_selection(bank) for bank in banks])
        digest = changes.get("pcr_digest", self.pcr_digest(selection))
        attest.attested.quote.pcrDigest = TPM2B_DIGEST(digest)
        data = bytearray(attest.marshal())
        if "type" in changes:
            data[4:6] = int(changes["type"]).to_bytes(2, "big")
        return bytes(data + changes.get("trailing", b""))

    def values(self, selection: str = "sha256:0,2,4,7") -> bytes:
        """The values of *selection*, one after the other."""
        bank, _, pcrs = selection.partition(":")
        return b"".join(self.pcrs[bank][int(pcr)] for pcr in pcrs.split(",") if pcr)

    def pcr_digest(self, selection: str) -> bytes:
        """The digest a quote of *selection* signs."""
        return hashlib.new(self.hash_name, self.values(selection)).digest()

    def sign(
        self,
        message: bytes,
        *,
        scheme: str | None = None,
        hash_name: str | None = None,
        claim: tuple[str, str] | None = None,
    ) -> bytes:
        """A TPMT_SIGNATURE over *message*; *claim* is what it says it is, whatever it is."""
        scheme, hash_name = scheme or self.scheme, hash_name or self.hash_name
        algorithm = getattr(hashes, hash_name.upper())()
        if isinstance(self.private, ec.EllipticCurvePrivateKey):
            raw = self.private.sign(message, ec.ECDSA(algorithm))
        else:
            pss = padding.PSS(padding.MGF1(algorithm), algorithm.digest_size)
            raw = self.private.sign(message, pss if scheme == "rsapss" else padding.PKCS1v15(), algorithm)
        said_scheme, said_hash = claim or (scheme, hash_name)
        return tpmt_signature(
            raw, said_scheme, said_hash, ecdsa=isinstance(self.private, ec.EllipticCurvePrivateKey)
        )

    def extend(self, pcr: int, data: bytes) -> None:
        """Extend *pcr* in every bank."""
        for bank, values in self.pcrs.items():
            values[pcr] = hashlib.new(bank, values[pcr] + hashlib.new(bank, data).digest()).digest()

    def evidence(
        self, nonce: str, binding: bytes, selection: str = "sha256:0,2,4,7", **changes: Any
    ) -> dict[str, str]:
        """Member ``attest`` of an unlock request."""
        quote = self.attest(binding, selection, **changes)
        log = {"event_log": b64u(self.event_log)} if self.event_log else {}
        return {
            "nonce": nonce,
            "quote": b64u(quote),
            "signature": b64u(self.sign(quote)),
            "pcrs": b64u(self.values(selection)),
            **log,
        }

    def boot(self, vector: str) -> None:
        """Be as a real machine was after the boot that tests/vectors/eventlogs/*vector* recorded: SHA-256 and log."""
        directory = Path(__file__).parent / "vectors" / "eventlogs"
        recorded = json.loads((directory / "pcrs" / f"{vector}-pcrs.json").read_text())["sha256"]
        self.pcrs["sha256"].update({int(pcr): bytes.fromhex(value) for pcr, value in recorded.items()})
        self.pcrs["sha256"][15] = bytes(32)
        self.event_log = (directory / f"{vector}.bin").read_bytes()
        self.reset_count += 1

    def boot_log(self, log: bytes) -> None:
        """Be as a machine is after the boot of *log*, in the SHA-256 bank."""
        self.pcrs["sha256"] = {pcr: bytes(32) for pcr in range(24)} | replay(parse(log), "sha256")
        self.event_log = log
        self.reset_count += 1


def recover(seed: bytes, credential_blob: bytes, ak_name: bytes) -> bytes:
    """The secret in a credential for *ak_name*, once the EK gave its *seed* (TPM 2.0 part 1, section 24)."""
    blob, _ = TPM2B_ID_OBJECT.unmarshal(credential_blob)
    integrity, encrypted = bytes(blob.credential)[2:34], bytes(blob.credential)[34:]
    mac = hmac.new(_kdfa(seed, b"INTEGRITY", b"", 256), encrypted + ak_name, hashlib.sha256).digest()
    if not hmac.compare_digest(mac, integrity):
        raise ValueError("the credential is for another key")
    decryptor = Cipher(algorithms.AES(_kdfa(seed, b"STORAGE", ak_name, 128)), CFB(bytes(16))).decryptor()
    return bytes(decryptor.update(encrypted) + decryptor.finalize())[2:]


def public_ek(public: rsa.RSAPublicKey) -> bytes:
    """An EK's TPM2B_PUBLIC after template L-1 (without its policy, which the Verifier does not look at)."""
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    area = TPMT_PUBLIC.from_pem(pem, nameAlg=TPM2_ALG.SHA256, objectAttributes=EK_ATTRIBUTES)
    area.parameters.rsaDetail.symmetric.algorithm = TPM2_ALG.AES
    area.parameters.rsaDetail.symmetric.keyBits.aes = 128
    area.parameters.rsaDetail.symmetric.mode.aes = TPM2_ALG.CFB
    area.parameters.rsaDetail.scheme.scheme = TPM2_ALG.NULL
    return bytes(TPM2B_PUBLIC(publicArea=area).marshal())


def tpmt_signature(raw: bytes, scheme: str, hash_name: str, *, ecdsa: bool) -> bytes:
    """A TPMT_SIGNATURE that claims *scheme* and *hash_name*."""
    algorithm = BANKS[hash_name]
    if ecdsa and scheme == "ecdsa":
        r, s = decode_dss_signature(raw)
        body = TPMU_SIGNATURE(
            ecdsa=TPMS_SIGNATURE_ECC(
                hash=algorithm,
                signatureR=TPM2B_ECC_PARAMETER(r.to_bytes((r.bit_length() + 7) // 8, "big")),
                signatureS=TPM2B_ECC_PARAMETER(s.to_bytes((s.bit_length() + 7) // 8, "big")),
            )
        )
    else:
        body = TPMU_SIGNATURE(**{scheme: TPMS_SIGNATURE_RSA(hash=algorithm, sig=TPM2B_PUBLIC_KEY_RSA(raw))})
    return bytes(TPMT_SIGNATURE(sigAlg=SCHEMES[scheme], signature=body).marshal())


def _selection(text: str) -> TPMS_PCR_SELECTION:
    bank, _, pcrs = text.partition(":")
    bitmap = bytearray(3)
    for pcr in filter(None, pcrs.split(",")):
        bitmap[int(pcr) // 8] |= 1 << int(pcr) % 8
    return TPMS_PCR_SELECTION(hash=BANKS[bank], sizeofSelect=3, pcrSelect=bytes(bitmap))


def _kdfa(key: bytes, label: bytes, context: bytes, bits: int) -> bytes:
    """KDFa (TPM 2.0 part 1, section 11.4.10.2) with SHA-256, for at most 256 bits."""
    message = (1).to_bytes(4, "big") + label + b"\0" + context + bits.to_bytes(4, "big")
    return hmac.new(key, message, hashlib.sha256).digest()[: bits // 8]


def members(key: ec.EllipticCurvePrivateKey) -> Mapping[str, str]:
    """The public JWK of a client's X, as a stock client sends it."""
    numbers = key.public_key().public_numbers()
    name, size = {"secp256r1": ("P-256", 32), "secp384r1": ("P-384", 48), "secp521r1": ("P-521", 66)}[
        key.curve.name
    ]
    return {
        "alg": "ECMR",
        "crv": name,
        "kty": "EC",
        "x": b64u(numbers.x.to_bytes(size, "big")),
        "y": b64u(numbers.y.to_bytes(size, "big")),
    }
