"""Step 2: what an Attester has to sign, and how the Verifier recognizes its own nonce without remembering it.

A nonce is a MAC over its own random part, its time, its purpose and the exchange key it was made for.  It
costs no memory and no disk, and replicas that share the secret recognize each other's.  That it is used only
once is the store's business (docs/protocol.md, section 3.4).

A nonce for a device also says which evidence of that device was the newest when the nonce was made.  A quote
over the nonce was made after that evidence, whatever the clocks of servers say, and whatever was accepted
since.  This mark is masked: a client that asks for a challenge learns nothing about the device's TPM.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final

from tang_attest.errors import Refused
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.values.base64url import b64u, unb64u
from tang_attest.protocol.values.pcr import Selection

_PLAIN: Final = b"\x01"
_MARKED: Final = b"\x02"
_RANDOM_SIZE: Final = 16
_TIME_SIZE: Final = 8
_MARK: Final = struct.Struct(">BQII")
_MAC_SIZE: Final = 32
#: Bytes of a nonce, by its first one.
_SIZES: Final = {
    _PLAIN: 1 + _TIME_SIZE + _RANDOM_SIZE + _MAC_SIZE,
    _MARKED: 1 + _TIME_SIZE + _RANDOM_SIZE + _MARK.size + _MAC_SIZE,
}

#: Revisions of docs/protocol.md that this program speaks.
VERSIONS: Final = ("1.1", "1.2")
#: A replica's clock may be ahead of ours by this much; more is refused as not ours.
CLOCK_SKEW_MS: Final = 5_000


class Purpose(StrEnum):
    """Purpose of a nonce and its evidence.  A nonce is never good for another purpose."""

    UNLOCK = "unlock"
    ENROLL = "enroll"
    ANNOUNCE = "announce"
    VERIFY = "verify"
    #: Not for evidence: what an agent that gave some shows, so that its requests are held.
    POLL = "poll"


@dataclass(frozen=True, slots=True)
class Challenge:
    """Challenge to the Attester: ``nonce`` is text, ``expires_in`` seconds.

    ``ima_offset`` is where the part of IMA's list begins that is wanted, in bytes; ``None``: none is.
    ``cap_pcr`` is the cap PCR of the policy.  In a round it asks for the texts of the cap
    (:mod:`tang_attest.protocol.cap`); ``None``: none are wanted.
    """

    nonce: str
    selection: Selection
    expires_in: int
    event_log_wanted: bool = False
    ima_offset: int | None = None
    _: KW_ONLY
    cap_pcr: int | None = None


def milliseconds(at: datetime) -> int:
    """*at*, as nonces have it: milliseconds since 1970."""
    return int(at.timestamp() * 1000)


def instant(milliseconds: int) -> datetime:
    """Return the time of *milliseconds* since 1970, in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


@dataclass(frozen=True, slots=True)
class Mark:
    """The newest evidence of a device when a nonce was made: its TPM's clock, or ``None`` when there was none
    yet.
    """

    clock: ClockInfo | None


def make_nonce(
    key: bytes, purpose: Purpose, subject: str, now_ms: int, random: bytes, mark: Mark | None = None
) -> str:
    """A nonce for *purpose* and *subject* (a ``kid`` or a device name): b64u, 76 characters; 99 with a
    *mark*.

    *key* is 32 secret bytes, *random* 16 fresh ones, *now_ms* milliseconds since 1970.
    """
    if len(random) != _RANDOM_SIZE:
        raise ValueError("a nonce needs 16 random bytes")
    head = now_ms.to_bytes(_TIME_SIZE, "big") + random
    head = _PLAIN + head if mark is None else _MARKED + head + _masked(key, random, _pack(mark))
    return b64u(head + _mac(key, purpose, subject, head))


def check_nonce(key: bytes, purpose: Purpose, subject: str, now_ms: int, ttl_s: int, nonce: str) -> int:
    """Check that *nonce* is ours, for this purpose and subject, and not too old; its expiry in ms since 1970.

    Raises :class:`Refused` ``nonce-invalid`` or ``nonce-expired``.  Not checked: whether it was used before.
    """
    raw = _decode(nonce)
    head, mac = raw[:-_MAC_SIZE], raw[-_MAC_SIZE:]
    if not hmac.compare_digest(mac, _mac(key, purpose, subject, head)):
        raise _not_ours()
    made = int.from_bytes(head[1 : 1 + _TIME_SIZE], "big")
    if made > now_ms + CLOCK_SKEW_MS:
        raise Refused("nonce-invalid", "The nonce was made in the future; a server's clock was set back.")
    expires = made + ttl_s * 1000
    if now_ms >= expires:
        raise Refused("nonce-expired", f"The nonce is older than {ttl_s} seconds.")
    return expires


def read_mark(key: bytes, nonce: str) -> Mark | None:
    """The mark of a *nonce* that :func:`check_nonce` accepted; ``None`` when it was made without one."""
    raw = _decode(nonce)
    if raw[:1] != _MARKED:
        return None
    start = 1 + _TIME_SIZE
    random, masked = raw[start : start + _RANDOM_SIZE], raw[start + _RANDOM_SIZE : -_MAC_SIZE]
    known, clock, reset_count, restart_count = _MARK.unpack(_masked(key, random, masked))
    return Mark(ClockInfo(clock, reset_count, restart_count, safe=True) if known else None)


def _pack(mark: Mark) -> bytes:
    clock = mark.clock
    if clock is None:
        return bytes(_MARK.size)
    return _MARK.pack(1, clock.clock, clock.reset_count, clock.restart_count)


def _masked(key: bytes, random: bytes, data: bytes) -> bytes:
    """*data* with a pad that *random*, used once, gives; applied twice, it is *data* again."""
    pad = _hmac(key, b"tang-attest/v1 nonce mark\n" + random)
    size = len(data)
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad[:size], "big")).to_bytes(size, "big")


def _decode(nonce: str) -> bytes:
    try:
        # A nonce has one spelling: another one would be the same nonce to us and a fresh one to the store.
        raw = unb64u(nonce)
    except ValueError:
        raw = b""
    if len(raw) != _SIZES.get(raw[:1]):
        raise _not_ours()
    return raw


def _not_ours() -> Refused:
    return Refused("nonce-invalid", "The nonce was not made by this server for this purpose and key.")


def _mac(key: bytes, purpose: Purpose, subject: str, head: bytes) -> bytes:
    label = f"tang-attest/v1 nonce\n{purpose}\n{subject}\n".encode()
    return _hmac(key, label + head)


def _hmac(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA-256; a copy of what is kept for *key* takes half the time of a new one."""
    made = _keyed(key).copy()
    made.update(message)
    return made.digest()


@lru_cache(maxsize=8)
def _keyed(key: bytes) -> hmac.HMAC:
    return hmac.new(key, digestmod=hashlib.sha256)


def unlock_digest(nonce: str, kid: str, x_thumbprint: str) -> bytes:
    """The qualifying data of an unlock quote: 32 bytes (docs/protocol.md, 3.2)."""
    return hashlib.sha256(f"tang-attest/v1 unlock\n{nonce}\n{kid}\n{x_thumbprint}\n".encode()).digest()


def announce_digest(nonce: str, kid: str, values: bytes, label: str) -> bytes:
    """The qualifying data of a quote that announces *values* for the next boot: 32 bytes (docs/protocol.md,
    9).
    """
    announced = hashlib.sha256(values).hexdigest()
    return hashlib.sha256(
        f"tang-attest/v1 announce\n{nonce}\n{kid}\n{announced}\n{label}\n".encode()
    ).digest()


def verify_digest(nonce: str, kid: str) -> bytes:
    """The qualifying data of a running machine's quote: 32 bytes (docs/protocol.md, 10.2)."""
    return hashlib.sha256(f"tang-attest/v1 verify\n{nonce}\n{kid}\n".encode()).digest()
