"""Step 1: a machine becomes an :class:`EnrolledDevice`.

Enrollment is two requests (docs/protocol.md, section 4).  The Verifier's knowledge in between travels with
the device as an encrypted *session*, so that nothing is stored for a client that only begins.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol import tpm
from tang_attest.protocol.tpm import AttestationKey, ClockInfo, EkPublic
from tang_attest.protocol.values.base64url import b64u

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
#: fnmatch knows ``[`` as well, which is not here.
_PATTERN: Final = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._*?-]{0,62}")

#: Bytes of the secret inside a credential: the digest size of the weakest acceptable name algorithm.
SECRET_SIZE: Final = 32


@dataclass(frozen=True, slots=True)
class EnrolledDevice:
    """A machine the Verifier knows: who signs its quotes, and how far its TPM's clock has come.

    ``clock`` is that of the newest authentic evidence, ``None`` before the first.
    """

    name: str
    ak: AttestationKey
    clock: ClockInfo | None = None


def check_name(name: str) -> str:
    """*name*, when it is a device or policy name.  Raises :class:`Malformed` ``request-malformed``."""
    if not _NAME.fullmatch(name):
        raise Malformed(
            "request-malformed",
            "A name has 1 to 63 letters, digits, dots, underscores and hyphens, and starts with a letter or digit.",
        )
    return name


def check_name_pattern(pattern: str) -> str:
    """Return *pattern*: a name, in which ``*`` may stand for any characters and ``?`` for one.

    Raises :class:`Malformed` ``request-malformed``.
    """
    if "*" not in pattern and "?" not in pattern:
        return check_name(pattern)
    if not _PATTERN.fullmatch(pattern):
        raise Malformed(
            "request-malformed",
            "A pattern of names has 1 to 63 letters, digits, dots, underscores, hyphens, * and ?, and starts with no sign but these two.",
        )
    return pattern


def matches(pattern: str, name: str) -> bool:
    """Return True if the device name *name* matches *pattern* (:func:`check_name_pattern`)."""
    return fnmatchcase(name, pattern)


def accept_ak(public: bytes) -> AttestationKey:
    """The AK in *public* (TPM2B_PUBLIC), when its quotes mean something.

    The checklist: restricted, sign, not decrypt, fixedTPM, fixedParent, sensitiveDataOrigin; RSA of 2048 bits
    or more, P-256 or P-384; a fixed scheme; SHA-256 or better for its signatures and its Name.

    Raises :class:`Malformed` ``evidence-malformed``, :class:`Refused` ``ak-unsuitable`` with every
    shortcoming. Not checked: that the key is in a TPM at all; credential activation does that.
    """
    key = tpm.parse_ak(public)
    if reasons := tpm.ak_shortcomings(public):
        raise Refused.because(*reasons)
    return key


@dataclass(frozen=True, slots=True)
class Activation:
    """A credential for one AK, and the secret only the TPM that holds it can recover."""

    secret: bytes
    credential_blob: bytes
    encrypted_secret: bytes


def begin_activation(ek: EkPublic, ak: AttestationKey, secret: bytes) -> Activation:
    """Wrap *secret* (:data:`SECRET_SIZE` random bytes) for the TPM with *ek*, bound to the Name of *ak*."""
    blob, encrypted = tpm.make_credential(ek, ak.name, secret)
    return Activation(secret, blob, encrypted)


def activation_proof(nonce: str, secret: bytes) -> str:
    """Return a device's proof that its TPM recovered *secret*: hex, 64 characters (docs/protocol.md, 4.2)."""
    return hashlib.sha256(f"tang-attest/v1 activate\n{nonce}\n{b64u(secret)}\n".encode()).hexdigest()


def check_activation(nonce: str, secret: bytes, proof: str) -> None:
    """Raise :class:`Refused` ``activation-failed`` unless *proof* shows knowledge of *secret*."""
    if not tpm.equal(activation_proof(nonce, secret).encode(), proof.encode()):
        raise Refused("activation-failed", "The TPM did not recover the secret of the credential.")


def enrollment_digest(nonce: str, name: str, proof: str) -> bytes:
    """The qualifying data of the first quote: 32 bytes (docs/protocol.md, 4.2)."""
    return hashlib.sha256(f"tang-attest/v1 enroll\n{nonce}\n{name}\n{proof}\n".encode()).digest()
