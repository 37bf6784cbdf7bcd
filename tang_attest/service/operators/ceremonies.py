"""The ceremonies of WebAuthn Level 2: options for a browser, and the check of its answers.

Challenges are of this server without a memory: a time and random bytes, under an HMAC for one purpose and
subject.  So a client that only asks makes no row.  Each is used up by a row of what it leads to: the link of
a registration, the session of a sign-in.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import webauthn
from webauthn.helpers import bytes_to_base64url, options_to_json_dict
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from tang_attest.errors import Malformed, Refused
from tang_attest.ports.operators import Operator, Passkey
from tang_attest.protocol.passkeys.assertion import (
    MAX_CLIENT_DATA,
    Assertion,
    member_object,
    read_bytes,
    read_client_data,
)
from tang_attest.protocol.passkeys.cose import read_key
from tang_attest.protocol.values.base64url import unb64u
from tang_attest.service.operators.address import ConsoleAddress

#: The time in which a browser has to answer.
CHALLENGE_LIFE: Final = timedelta(minutes=5)
#: The clock of another server may be ahead of ours by this much.
CLOCK_SKEW: Final = timedelta(minutes=1)
_ALGORITHMS: Final = [COSEAlgorithmIdentifier.ECDSA_SHA_256, COSEAlgorithmIdentifier.EDDSA]
_MAX_ATTESTATION: Final = 64 * 1024
_TIME, _RANDOM, _MAC = 8, 16, 32
_TIMEOUT_MS: Final = int(CHALLENGE_LIFE.total_seconds() * 1000)


@dataclass(frozen=True, slots=True)
class ConsoleChallenges:
    """Makes and checks challenges under *key* (32 bytes)."""

    key: bytes

    def make(self, purpose: str, subject: bytes, now: datetime, random: bytes) -> bytes:
        """Return a challenge (56 bytes); *random* are 16 fresh bytes."""
        head = int(now.timestamp() * 1000).to_bytes(_TIME) + random
        return head + self._mac(purpose, subject, head)

    def check(self, purpose: str, subject: bytes, now: datetime, challenge: bytes) -> None:
        """Raise ``passkey-invalid`` unless *challenge* is ours, for this purpose and subject, and of now."""
        head, mac = challenge[:-_MAC], challenge[-_MAC:]
        if len(head) != _TIME + _RANDOM or not hmac.compare_digest(mac, self._mac(purpose, subject, head)):
            raise Refused("passkey-invalid", "The challenge is not one that this server made for this.")
        age = int(now.timestamp() * 1000) - int.from_bytes(head[:_TIME])
        if not -CLOCK_SKEW / _MS <= age < CHALLENGE_LIFE / _MS:
            raise Refused("passkey-invalid", "The answer came too late, or the server's clock was changed.")

    def _mac(self, purpose: str, subject: bytes, head: bytes) -> bytes:
        content = f"tang-attest console v1 {purpose}\n{subject.hex()}\n".encode() + head
        return hmac.digest(self.key, content, "sha256")


_MS: Final = timedelta(milliseconds=1)


def creation_options(
    address: ConsoleAddress, operator: Operator, challenge: bytes, known: Iterable[bytes]
) -> dict[str, Any]:
    """Return the options that register a passkey of *operator*; *known* are the ids of those they have."""
    return options_to_json_dict(
        webauthn.generate_registration_options(
            rp_id=address.rp_id,
            rp_name="tang-attest",
            user_id=operator.handle,
            user_name=operator.name,
            user_display_name=operator.name,
            challenge=challenge,
            timeout=_TIMEOUT_MS,
            authenticator_selection=AuthenticatorSelectionCriteria(
                resident_key=ResidentKeyRequirement.REQUIRED,
                user_verification=UserVerificationRequirement.REQUIRED,
            ),
            exclude_credentials=[PublicKeyCredentialDescriptor(id=each) for each in known],
            supported_pub_key_algs=_ALGORITHMS,
        )
    )


def request_options(
    address: ConsoleAddress, challenge: bytes, allowed: Iterable[bytes] = ()
) -> dict[str, Any]:
    """Return the options that ask for an assertion, by one of the passkeys *allowed* or by any."""
    return options_to_json_dict(
        webauthn.generate_authentication_options(
            rp_id=address.rp_id,
            challenge=challenge,
            timeout=_TIMEOUT_MS,
            allow_credentials=[PublicKeyCredentialDescriptor(id=each) for each in allowed],
            user_verification=UserVerificationRequirement.REQUIRED,
        )
    )


def challenge_in(credential: Mapping[str, object]) -> bytes:
    """Return the challenge that the browser says a new *credential* answers.

    Raises ``request-malformed``, ``passkey-invalid``.
    """
    response = member_object(member_object(credential, "The credential").get("response"), "The response")
    data = read_client_data(read_bytes(response, "clientDataJSON", MAX_CLIENT_DATA))
    try:
        return unb64u(str(data.get("challenge", "")))
    except ValueError:
        raise Refused("passkey-invalid", "The credential has no challenge that can be read.") from None


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential that was registered: its id, its COSE_Key and its counter."""

    id: bytes
    public_key: bytes
    sign_count: int


def verify_creation(
    address: ConsoleAddress, credential: Mapping[str, object], challenge: bytes
) -> NewCredential:
    """Return the credential that *credential* registers, with user verification.

    The make of the authenticator is not asked for.  Raises ``request-malformed``, ``passkey-invalid``.
    """
    response = member_object(credential.get("response"), "The response")
    read_bytes(response, "attestationObject", _MAX_ATTESTATION)
    data = read_client_data(read_bytes(response, "clientDataJSON", MAX_CLIENT_DATA))
    if data.get("origin") != address.origin:
        shown = str(data.get("origin"))[:200]
        raise Refused("passkey-invalid", f"The passkey was made on {shown}, not on {address.origin}.")
    try:
        made = webauthn.verify_registration_response(
            credential=dict(credential),
            expected_challenge=challenge,
            expected_rp_id=address.rp_id,
            expected_origin=address.origin,
            require_user_verification=True,
            supported_pub_key_algs=_ALGORITHMS,
        )
        read_key(made.credential_public_key)  # the library stores it without a look at the point
    except Exception as error:  # parsers of foreign bytes raise many classes
        raise Refused("passkey-invalid", f"The passkey was not registered: {_why(error)}.") from error
    return NewCredential(made.credential_id, made.credential_public_key, made.sign_count)


def verify_assertion(
    address: ConsoleAddress, assertion: Assertion, passkey: Passkey, challenge: bytes
) -> None:
    """Check an assertion of *passkey*: as the audit record is checked later, and as the library does.

    Raises ``passkey-invalid``.  The counter is compared where it is stored.
    """
    assertion.check(passkey.public_key, challenge, address.origin, address.rp_id)
    text = bytes_to_base64url(assertion.credential_id)
    response = {
        "clientDataJSON": bytes_to_base64url(assertion.client_data),
        "authenticatorData": bytes_to_base64url(assertion.authenticator_data),
        "signature": bytes_to_base64url(assertion.signature),
    }
    try:
        webauthn.verify_authentication_response(
            credential={"id": text, "rawId": text, "type": "public-key", "response": response},
            expected_challenge=challenge,
            expected_rp_id=address.rp_id,
            expected_origin=address.origin,
            credential_public_key=passkey.public_key,
            credential_current_sign_count=0,
            require_user_verification=True,
        )
    except Exception as error:  # as above
        raise Refused("passkey-invalid", f"The assertion was not accepted: {_why(error)}.") from error


def _why(error: Exception) -> str:
    """Return the library's reason without its last dot, bounded."""
    return (str(error) or type(error).__name__)[:200].rstrip(".")


def require_mapping(credential: object) -> Mapping[str, object]:
    """Return *credential* if it is a JSON object.  Raises ``request-malformed``."""
    if not isinstance(credential, Mapping):
        raise Malformed("request-malformed", "The credential is not a JSON object.")
    return credential
