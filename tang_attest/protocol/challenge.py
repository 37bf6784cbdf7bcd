"""Step 2: what an Attester has to sign, and how the Verifier recognizes its own nonce without remembering it.

A nonce is a MAC over its own random part, its time, its purpose and the exchange key it was made for.  It costs
no memory and no disk, and replicas that share the secret recognize each other's.  That it is used only once is
the store's business (docs/protocol.md, section 3.4).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from tang_attest.errors import Refused
from tang_attest.protocol.base64url import b64u, unb64u
from tang_attest.protocol.pcr import Selection

_VERSION: Final = b"\x01"
_RANDOM_SIZE: Final = 16
_TIME_SIZE: Final = 8
_MAC_SIZE: Final = 32

#: A replica's clock may be ahead of ours by this much; more is refused as not ours.
CLOCK_SKEW_MS: Final = 5_000


class Purpose(StrEnum):
    """What a nonce, and with it evidence, is for.  One for one purpose is never good for another."""

    UNLOCK = "unlock"
    ENROLL = "enroll"
    ANNOUNCE = "announce"
    VERIFY = "verify"
    #: Not for evidence: what an agent that gave some shows, so that its requests are held.
    POLL = "poll"


@dataclass(frozen=True, slots=True)
class Challenge:
    """What the Attester has to answer: ``nonce`` is text, ``expires_in`` seconds.

    ``ima_offset`` is where the part of IMA's list begins that is wanted, in bytes; ``None``: none is.
    """

    nonce: str
    selection: Selection
    expires_in: int
    event_log_wanted: bool = False
    ima_offset: int | None = None


def milliseconds(at: datetime) -> int:
    """*at*, as nonces have it: milliseconds since 1970."""
    return int(at.timestamp() * 1000)


def instant(milliseconds: int) -> datetime:
    """What :func:`milliseconds` made, back, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def make_nonce(key: bytes, purpose: Purpose, subject: str, now_ms: int, random: bytes) -> str:
    """A nonce for *purpose* and *subject* (a ``kid`` or a device name): b64u, 76 characters.

    *key* is 32 secret bytes, *random* 16 fresh ones, *now_ms* milliseconds since 1970.
    """
    if len(random) != _RANDOM_SIZE:
        raise ValueError("a nonce needs 16 random bytes")
    head = _VERSION + now_ms.to_bytes(_TIME_SIZE, "big") + random
    return b64u(head + _mac(key, purpose, subject, head))


def check_nonce(key: bytes, purpose: Purpose, subject: str, now_ms: int, ttl_s: int, nonce: str) -> int:
    """Check that *nonce* is ours, for this purpose and subject, and not too old; its expiry in ms since 1970.

    Raises :class:`Refused` ``nonce-invalid`` or ``nonce-expired``.  Not checked: whether it was used before.
    """
    raw = _decode(nonce)
    head, mac = raw[:-_MAC_SIZE], raw[-_MAC_SIZE:]
    if head[:1] != _VERSION or not hmac.compare_digest(mac, _mac(key, purpose, subject, head)):
        raise Refused("nonce-invalid", "The nonce was not made by this server for this purpose and key.")
    made = int.from_bytes(head[1 : 1 + _TIME_SIZE], "big")
    if made > now_ms + CLOCK_SKEW_MS:
        raise Refused("nonce-invalid", "The nonce was made in the future; a server's clock was set back.")
    expires = made + ttl_s * 1000
    if now_ms >= expires:
        raise Refused("nonce-expired", f"The nonce is older than {ttl_s} seconds.")
    return expires


def _decode(nonce: str) -> bytes:
    try:
        # A nonce has one spelling: another one would be the same nonce to us and a fresh one to the store.
        raw = unb64u(nonce)
    except ValueError:
        raw = b""
    if len(raw) != 1 + _TIME_SIZE + _RANDOM_SIZE + _MAC_SIZE:
        raise Refused("nonce-invalid", "The nonce was not made by this server for this purpose and key.")
    return raw


def _mac(key: bytes, purpose: Purpose, subject: str, head: bytes) -> bytes:
    label = f"tang-attest/v1 nonce\n{purpose}\n{subject}\n".encode()
    return hmac.new(key, label + head, hashlib.sha256).digest()


def unlock_digest(nonce: str, kid: str, x_thumbprint: str) -> bytes:
    """The qualifying data of an unlock quote: 32 bytes (docs/protocol.md, 3.2)."""
    return hashlib.sha256(f"tang-attest/v1 unlock\n{nonce}\n{kid}\n{x_thumbprint}\n".encode()).digest()


def announce_digest(nonce: str, kid: str, values: bytes, label: str) -> bytes:
    """The qualifying data of a quote that announces *values* for the next boot: 32 bytes (docs/protocol.md, 9)."""
    announced = hashlib.sha256(values).hexdigest()
    return hashlib.sha256(
        f"tang-attest/v1 announce\n{nonce}\n{kid}\n{announced}\n{label}\n".encode()
    ).digest()


def verify_digest(nonce: str, kid: str) -> bytes:
    """The qualifying data of a running machine's quote: 32 bytes (docs/protocol.md, 10.2)."""
    return hashlib.sha256(f"tang-attest/v1 verify\n{nonce}\n{kid}\n".encode()).digest()
