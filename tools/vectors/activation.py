"""Vectors of credential activation, by template of the EK, and of the AK's Name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tools.conformance.primitives.encoding import b64u
from tools.conformance.primitives.texts import activation_proof, enroll_data
from tools.conformance.tpm.credential import activate, make_credential
from tools.conformance.tpm.machine import AK_P256, POLICY_A
from tools.conformance.tpm.signing import PrivateKey
from tools.conformance.tpm.structures import AK_ATTRIBUTES, EK_HIGH, EK_LOW, PublicArea
from tools.vectors.keys import ecc, octets, stored_rsa

#: Authorization policies of the high range (EK Credential Profile 2.5, B.6.5): PolicyOR of A and C.
_POLICY_B: Final = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
_POLICY_B_384: Final = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)

_HIGH_384: Final = PublicArea(EK_HIGH, name_hash="sha384", aes=256, policy=_POLICY_B_384)
TEMPLATES: Final[dict[str, tuple[PublicArea, str]]] = {
    "L-1": (PublicArea(EK_LOW, aes=128, policy=POLICY_A), "ek-rsa2048"),
    "L-2": (PublicArea(EK_LOW, aes=128, policy=POLICY_A), "P-256"),
    "H-1": (PublicArea(EK_HIGH, aes=128, policy=_POLICY_B), "ek-rsa2048"),
    "H-2": (PublicArea(EK_HIGH, aes=128, policy=_POLICY_B), "P-256"),
    "H-3": (_HIGH_384, "P-384"),
    "H-6": (_HIGH_384, "ek-rsa3072"),
    "H-7": (_HIGH_384, "ek-rsa4096"),
}
AKS: Final[dict[str, tuple[PublicArea, str]]] = {
    "ecc256:ecdsa-sha256": (AK_P256, "P-256"),
    "ecc384:ecdsa-sha384": (PublicArea(AK_ATTRIBUTES, "ecdsa-sha384"), "P-384"),
    "rsa2048:rsassa-sha256": (PublicArea(AK_ATTRIBUTES, "rsassa-sha256"), "ak-rsa2048"),
    "rsa2048:rsapss-sha256": (PublicArea(AK_ATTRIBUTES, "rsapss-sha256"), "ak-rsa2048"),
}


def key(name: str, label: str) -> PrivateKey:
    """Return a fixed key: of a curve, or one of vectors/keys.json."""
    if name == "P-256":
        return ecc(label, ec.SECP256R1())
    return ecc(label, ec.SECP384R1(), 48) if name == "P-384" else stored_rsa(name)


def _pem(private: PrivateKey) -> str:
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def activations() -> Iterator[dict[str, Any]]:
    """Yield TPM2_MakeCredential with a fixed seed for each template, and the proof that follows."""
    ak_area, _ = AKS["ecc256:ecdsa-sha256"]
    ak = key("P-256", "ak")
    ak_name, nonce, name = ak_area.name(ak.public_key()), b64u(octets("activation nonce", 32)), "pi-b"
    for template, (area, kind) in TEMPLATES.items():
        ek = key(kind, f"ek {template}")
        secret = octets(f"secret {template}", 32)
        size = 48 if area.name_hash == "sha384" else 32
        ephemeral = None
        if isinstance(ek, ec.EllipticCurvePrivateKey):
            ephemeral = ecc(f"ephemeral {template}", ek.curve, ek.key_size // 8)
        blob, encrypted, seed = make_credential(
            area, ek.public_key(), ak_name, secret, seed=octets(f"seed {template}", size), ephemeral=ephemeral
        )
        assert activate(area, ek, ak_name, blob, encrypted) == secret  # noqa: S101 - the kit's own TPM recovers it
        proof = activation_proof(nonce, secret)
        yield {
            "name": f"EK template {template}",
            "reason": f"{kind}, name algorithm {area.name_hash}, AES-{area.aes}",
            "template": template,
            "ek_public": b64u(area.tpm2b(ek.public_key())),
            "ek_private": _pem(ek),
            "ephemeral": _pem(ephemeral) if ephemeral else None,
            "seed": b64u(seed),
            "ak_public": b64u(ak_area.tpm2b(ak.public_key())),
            "ak_name": ak_name.hex(),
            "secret": b64u(secret),
            "credential_blob": b64u(blob),
            "encrypted_secret": b64u(encrypted),
            "nonce": nonce,
            "device": name,
            "proof": proof,
            "qualifying_data": enroll_data(nonce, name, proof).hex(),
        }
