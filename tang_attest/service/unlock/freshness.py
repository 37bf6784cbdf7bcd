"""Nonces for devices that are enrolled, and the evidence that a quote over one of them has to be newer than.

Rules of this module:

* A quote is made after its nonce, so it is newer than whatever evidence was accepted before that nonce was made, and
  that is what it is compared with.  The nonce itself says what that was, so no two servers have to agree on the time.
* Nothing follows for evidence that was accepted since: two quotes of one boot may overtake each other on the way.  They
  are not further apart than a nonce lives, by the TPM's own clock.
* The store looks again: a quote of an earlier boot than the newest evidence's is refused there, however it came.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from tang_attest.ports.machines import Device
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.challenge import (
    Mark,
    Purpose,
    check_nonce,
    instant,
    make_nonce,
    milliseconds,
    read_mark,
)
from tang_attest.protocol.enrollment import EnrolledDevice
from tang_attest.protocol.tpm import AttestationKey, ClockInfo


@dataclass(frozen=True, slots=True)
class Fresh:
    """A nonce that is good: when it was made, until when it is good, and its :class:`Mark` if it has one."""

    made_at: datetime
    expires_at: datetime
    mark: Mark | None

    @property
    def behind_ms(self) -> int:
        """The distance by which its quote may be behind the newest evidence of the boot, in milliseconds of the TPM's clock.

        Nothing without a mark.  A TPM's clock may run too fast (TPM 2.0 part 1, section 36), hence twice the nonce's life.
        """
        return 0 if self.mark is None else 2 * int((self.expires_at - self.made_at).total_seconds() * 1000)

    def enrolled(self, device: Device) -> EnrolledDevice:
        """*device* as verification takes it, with the clock that a quote over this nonce is compared with."""
        key = AttestationKey(
            device.ak_public, device.ak_name, device.ak_spki, device.ak_scheme, device.ak_hash, no_da=False
        )
        return EnrolledDevice(device.name, key, device.clock if self.mark is None else self.mark.clock)


class Nonces:
    """Makes and checks nonces for one *purpose*; *subject* is what one is good for, such as a ``kid``."""

    def __init__(self, purpose: Purpose, clock: Clock, random: Randomness, key: bytes, ttl_s: int) -> None:
        self._purpose, self._clock, self._random, self._key = purpose, clock, random, key
        self.ttl_s = ttl_s

    def make(self, subject: str, newest: ClockInfo | None) -> str:
        """A nonce; *newest* is the clock of the device's newest evidence, read from the store after it was asked."""
        now_ms = milliseconds(self._clock.now())
        return make_nonce(self._key, self._purpose, subject, now_ms, self._random.bytes(16), Mark(newest))

    def check(self, subject: str, nonce: str, now: datetime) -> Fresh:
        """What *nonce* says.  Raises ``nonce-invalid``, ``nonce-expired``.  Not checked: whether it was used before."""
        expires_at = instant(
            check_nonce(self._key, self._purpose, subject, milliseconds(now), self.ttl_s, nonce)
        )
        return Fresh(expires_at - timedelta(seconds=self.ttl_s), expires_at, read_mark(self._key, nonce))
