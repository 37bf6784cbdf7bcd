"""An assertion of a passkey: its parts, and the check of all of them (WebAuthn Level 2, 7.2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol.passkeys.cose import signed_by
from tang_attest.protocol.values.base64url import b64u, unb64u

#: Limits in bytes; what authenticators send is far smaller.
MAX_ID: Final = 1023
MAX_CLIENT_DATA: Final = 4096
MAX_AUTHENTICATOR_DATA: Final = 2048
MAX_SIGNATURE: Final = 512

_UP, _UV = 0x01, 0x04
_RP_HASH: Final = 32
_LEAST: Final = _RP_HASH + 1 + 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Assertion:
    """The parts of an assertion, as bytes; ``user_handle`` is ``None`` when the authenticator sent none."""

    credential_id: bytes
    client_data: bytes
    authenticator_data: bytes
    signature: bytes
    user_handle: bytes | None = None

    @property
    def sign_count(self) -> int:
        """The authenticator's counter; 0 is no counter."""
        return int.from_bytes(self.authenticator_data[_RP_HASH + 1 : _LEAST])

    @property
    def challenge(self) -> bytes:
        """The challenge that the browser says was signed.  Raises ``passkey-invalid``."""
        try:
            return unb64u(str(read_client_data(self.client_data).get("challenge", "")))
        except ValueError:
            raise Refused("passkey-invalid", "The assertion has no challenge that can be read.") from None

    def check(self, public_key: bytes, challenge: bytes, origin: str, rp_id: str) -> None:
        """Check everything but the counter.  *public_key* is a COSE_Key.

        Raises ``passkey-invalid``: another challenge, origin or RP ID, no user presence or verification, a
        signature of another key.
        """
        data = read_client_data(self.client_data)
        if data.get("type") != "webauthn.get":
            raise Refused("passkey-invalid", "This is not the assertion of a passkey.")
        if data.get("challenge") != b64u(challenge):
            raise Refused("passkey-invalid", "The assertion was made for another challenge.")
        if data.get("origin") != origin or data.get("crossOrigin", False) is not False:
            shown = str(data.get("origin"))[:200]
            raise Refused("passkey-invalid", f"The assertion was made on {shown}, not on {origin}.")
        if self.authenticator_data[:_RP_HASH] != hashlib.sha256(rp_id.encode()).digest():
            raise Refused("passkey-invalid", f"The passkey is not one for {rp_id}.")
        if not self.authenticator_data[_RP_HASH] & _UP:
            raise Refused("passkey-invalid", "Nobody touched the authenticator.")
        if not self.authenticator_data[_RP_HASH] & _UV:
            raise Refused("passkey-invalid", "The authenticator did not verify its user, by PIN or finger.")
        message = self.authenticator_data + hashlib.sha256(self.client_data).digest()
        try:
            genuine = signed_by(public_key, self.signature, message)
        except ValueError:
            genuine = False
        if not genuine:
            raise Refused("passkey-invalid", "The signature is not of this passkey.")


def read_assertion(credential: object) -> Assertion:
    """Return the assertion in *credential*, JSON of ``PublicKeyCredential.toJSON()``.

    Raises ``request-malformed``, also for a part over its limit.
    """
    top = member_object(credential, "The credential")
    response = member_object(top.get("response"), "The credential's response")
    handle = response.get("userHandle")
    found = Assertion(
        credential_id=read_bytes(top, "rawId", MAX_ID),
        client_data=read_bytes(response, "clientDataJSON", MAX_CLIENT_DATA),
        authenticator_data=read_bytes(response, "authenticatorData", MAX_AUTHENTICATOR_DATA),
        signature=read_bytes(response, "signature", MAX_SIGNATURE),
        user_handle=None if handle is None else read_bytes(response, "userHandle", 64),
    )
    if len(found.authenticator_data) < _LEAST:
        raise Malformed("request-malformed", "The credential's authenticatorData is too short.")
    return found


def read_client_data(data: bytes) -> Mapping[str, Any]:
    """Return the members of a clientDataJSON.  Raises ``passkey-invalid``."""
    try:
        members = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        raise Refused("passkey-invalid", "The browser's part of the assertion is not JSON.")
    return members


def member_object(value: object, name: str) -> Mapping[str, Any]:
    """Return *value* if it is a JSON object.  Raises ``request-malformed``, which calls it *name*."""
    if not isinstance(value, Mapping):
        raise Malformed("request-malformed", f"{name} is not a JSON object.")
    return value


def read_bytes(members: Mapping[str, Any], name: str, most: int) -> bytes:
    """Return a member that is base64url of 1 to *most* bytes.  Raises ``request-malformed``."""
    text = members.get(name)
    try:
        if isinstance(text, str) and 0 < len(text) <= most * 4 // 3 + 2 and (data := unb64u(text)):
            return data
    except ValueError:
        pass
    raise Malformed("request-malformed", f"The credential's {name} is not base64url of 1 to {most} bytes.")
