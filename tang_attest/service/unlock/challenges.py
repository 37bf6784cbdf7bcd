"""Challenges: nonces, and the evidence that a quote over one of them has to be newer than.

Rules of this module:

* A quote is made after its nonce, so it must be newer than any evidence that was accepted before the nonce
  was made.  The nonce itself carries the clock of that evidence, so servers need not agree on the time.
* Evidence that was accepted since does not count: two quotes of one boot may overtake each other on the way.
  They are not further apart than a nonce lives, by the TPM's own clock.
* The store checks again: it refuses a quote of an earlier boot than that of the newest evidence.
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
from tang_attest.protocol.tpm import AttestationKey


@dataclass(frozen=True, slots=True)
class Fresh:
    """A valid nonce: the times when it was made and when it expires, and its :class:`Mark` if it has one."""

    made_at: datetime
    expires_at: datetime
    mark: Mark | None

    @property
    def behind_ms(self) -> int:
        """The distance by which its quote may be behind the newest evidence of the boot, in milliseconds of
        the TPM's clock.

        It is zero without a mark.  A TPM's clock may run too fast (TPM 2.0 part 1, section 36), hence twice
        the nonce's life.
        """
        return 0 if self.mark is None else 2 * int((self.expires_at - self.made_at).total_seconds() * 1000)

    def enrolled(self, device: Device) -> EnrolledDevice:
        """Return *device* for verification, with the clock that a quote over this nonce is compared with."""
        key = AttestationKey(
            device.ak_public, device.ak_name, device.ak_spki, device.ak_scheme, device.ak_hash, no_da=False
        )
        return EnrolledDevice(device.name, key, device.clock if self.mark is None else self.mark.clock)


@dataclass(frozen=True, slots=True)
class Challenges:
    """The means to make and check nonces: time, randomness, the key of their HMAC, and their life in seconds.

    A *subject* is the text that a nonce is good for, such as a ``kid``.
    """

    clock: Clock
    random: Randomness
    key: bytes
    ttl_s: int

    def now(self) -> datetime:
        """Return the time, aware, UTC."""
        return self.clock.now()

    def make(self, purpose: Purpose, subject: str, mark: Mark | None = None) -> str:
        """Return a nonce; *mark* has the clock of the device's newest evidence, read from the store after it
        was asked.
        """
        return make_nonce(self.key, purpose, subject, milliseconds(self.now()), self.random.bytes(16), mark)

    def check(
        self, purpose: Purpose, subject: str, nonce: str, now: datetime, ttl_s: int | None = None
    ) -> Fresh:
        """Return the contents of *nonce*, which lives for *ttl_s* seconds (by default, those of the
        challenges).

        Raises ``nonce-invalid``, ``nonce-expired``.  Not checked: use of the nonce before.
        """
        life_s = self.ttl_s if ttl_s is None else ttl_s
        expires_at = instant(check_nonce(self.key, purpose, subject, milliseconds(now), life_s, nonce))
        return Fresh(expires_at - timedelta(seconds=life_s), expires_at, read_mark(self.key, nonce))
