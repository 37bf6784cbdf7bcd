"""Admission to an enrollment: by a token, by an EK that the operator registered, or by both."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from tang_attest.errors import NotFound, Refused
from tang_attest.ports.enrollment import RegisteredEk, Token
from tang_attest.ports.store import HasDevices, HasEnrollment, HasPolicies
from tang_attest.protocol.endorsement.registered import ek_digest
from tang_attest.protocol.policy import DEFAULT_CAP_PCR, DEFAULT_SELECTION
from tang_attest.protocol.values.labels import check_labels
from tang_attest.protocol.values.pcr import Selection

#: The issuer of a device whose EK the operator vouches for.
REGISTERED: Final = "the operator, by registering the EK"


class AdmittingStore(HasDevices, HasEnrollment, HasPolicies, Protocol):
    """The roles of the store that an enrollment needs."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The terms of an enrollment: those of its token, or the ones that a registration without a token has.

    ``registered`` is the registration of its EK for the policy, if there is one.
    """

    token: Token
    registered: RegisteredEk | None

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of the token and of the registration.  Raises ``request-malformed``: too many."""
        known = () if self.registered is None else self.registered.labels
        return check_labels((*self.token.labels, *known))

    @property
    def unused(self) -> bytes | None:
        """Return the digest of the registered EK that the enrollment uses."""
        return None if self.registered is None else self.registered.ek_sha256


class Admissions:
    """Decides who may enroll; a later step shows that the TPM with the EK is there."""

    def __init__(self, store: AdmittingStore) -> None:
        self._store = store

    async def admit(self, token: Token | None, name: str, ek_spki: bytes, now: datetime) -> Admission:
        """Return the terms of a machine with *token*, that *name* and that EK.

        Raises ``ek-not-registered``, ``not-found`` (the token's policy).  Not checked: the token itself.
        """
        digest = ek_digest(ek_spki)
        found = await self._store.enrollment.find_registered_ek(digest)
        if token is None:
            found = _for_name(found if found is not None and found.without_token else None, name, digest)
            await self._check_use(found, ek_spki)
            return Admission(_terms(found, now), found)
        if token.policy is None:
            return Admission(token, None)
        required = (await self._store.policies.get_policy(token.policy)).conditions.registered_ek
        if found is not None and found.policy != token.policy:
            found = None
        if required or (found is not None and found.used_at is None):
            found = _for_name(found, name, digest)
            await self._check_use(found, ek_spki)
            return Admission(token, found)
        return Admission(token, None)

    async def _check_use(self, found: RegisteredEk, ek_spki: bytes) -> None:
        """Raise ``ek-not-registered`` for a registration that was used, unless its device is there."""
        if found.used_at is None:
            return
        try:
            if (await self._store.devices.get_device(found.name)).ek_spki == ek_spki:
                return
        except NotFound:
            pass
        raise Refused(
            "ek-not-registered", f"{_named(found.ek_sha256)} was registered, and has enrolled once."
        )


def check_usable(token: Token, now: datetime) -> None:
    """Raise ``token-used``, ``token-used-up``, ``token-revoked`` or ``token-expired``."""
    if token.spent is not None:
        raise Refused.because(token.spent)
    if token.revoked_at is not None:
        raise Refused("token-revoked", "The token was revoked.")
    if now >= token.expires_at:
        raise Refused("token-expired", "The token has expired.")


def _for_name(found: RegisteredEk | None, name: str, digest: bytes) -> RegisteredEk:
    """Return the registration, if there is one and it is for *name*.

    The same words for both cases: a client that shows a foreign EK does not learn the name of its machine.
    """
    if found is None or found.name != name:
        raise Refused("ek-not-registered", f"{_named(digest)} is not registered for this name and policy.")
    return found


def _named(digest: bytes) -> str:
    return f"This TPM's EK (SHA-256 {digest.hex()})"


def _terms(found: RegisteredEk, now: datetime) -> Token:
    """Return the terms of an enrollment without a token.

    They are those of a token for several machines, because the same machine may enroll again.
    """
    return Token(
        digest=b"",
        created_at=found.added_at,
        created_by=found.added_by,
        expires_at=now + timedelta(days=1),
        name=found.name,
        policy=found.policy,
        record=False,
        selection=Selection.parse(DEFAULT_SELECTION),
        cap_pcr=DEFAULT_CAP_PCR,
        allow_unverified_ek=False,
        force=False,
        learn_for_s=0,
        machines=2,
    )
