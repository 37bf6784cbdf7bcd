"""Enrollment tokens, from the operator's side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Final, Protocol

from tang_attest.errors import Conflict, Malformed, NotFound
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.enrollment import Token
from tang_attest.ports.store import HasDevices, HasEnrollment, HasPolicies
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.enrollment import check_name_pattern
from tang_attest.protocol.policy import check_policy_selection
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.labels import check_labels
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.audit.actors import Author
from tang_attest.service.enrollment.enroll import token_digest

#: The most machines that one token enrolls.
MAX_MACHINES: Final = 100_000
#: The least digits of a token's id, so that a typing error names none.
_LEAST_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """Terms of a token; see :class:`tang_attest.ports.enrollment.Token`.

    With *name_free* a token for the name of a device that exists is refused: nobody could enroll with it.
    """

    name: str | None
    policy: str | None
    record: bool
    selection: Selection
    cap_pcr: int
    _: KW_ONLY
    allow_unverified_ek: bool
    force: bool
    valid_for: timedelta
    learn_for: timedelta
    labels: tuple[str, ...] = ()
    accepted_uncovered: tuple[BootPart, ...] = ()
    proposes: bool = False
    machines: int = 1
    name_free: bool = False


class TokenStore(HasDevices, HasEnrollment, HasPolicies, Protocol):
    """The roles of the store that enrollment tokens need."""


class EnrollmentTokens:
    """Creates and revokes enrollment tokens; each change is one transaction with its audit entry."""

    def __init__(self, store: TokenStore, clock: Clock, random: Randomness, author: Author) -> None:
        self._store, self._clock, self._random, self._author = store, clock, random, author

    async def create(self, terms: TokenTerms) -> tuple[str, Token]:
        """Create a token; return its text (shown once, 43 characters) and its record.

        A token for several machines needs a policy that exists: the first quote of a machine that enrolls
        under one adds no reference state.  Raises ``request-malformed``, ``selection-invalid``,
        ``setting-invalid``, ``not-found`` (policy), ``name-taken``.
        """
        if not 1 <= terms.machines <= MAX_MACHINES:
            raise Malformed("setting-invalid", f"A token is for 1 to {MAX_MACHINES} machines.")
        if terms.machines > 1 and terms.record:
            raise Malformed(
                "setting-invalid",
                "A token for several machines needs --policy: no first quote is recorded for it.",
            )
        if terms.record == (terms.policy is not None):
            raise Malformed("setting-invalid", "A token either records a policy or names an existing one.")
        if terms.name is not None:
            check_name_pattern(terms.name)
        if terms.name_free and terms.name is not None:
            await self._refuse_taken(terms.name)
        if terms.policy is not None:
            await self._store.policies.get_policy(terms.policy)
        now, text = self._clock.now(), b64u(self._random.bytes(32))
        token = Token(
            digest=token_digest(text),
            created_at=now,
            created_by=self._author.actor,
            expires_at=now + terms.valid_for,
            name=terms.name,
            policy=terms.policy,
            record=terms.record,
            selection=check_policy_selection(terms.selection),
            cap_pcr=terms.cap_pcr,
            allow_unverified_ek=terms.allow_unverified_ek,
            force=terms.force,
            learn_for_s=int(terms.learn_for.total_seconds()),
            labels=check_labels(terms.labels),
            accepted_uncovered=terms.accepted_uncovered,
            proposes=terms.proposes,
            machines=terms.machines,
        )
        details: dict[str, object] = {
            "policy": terms.policy,
            "record": terms.record,
            "allow_unverified_ek": terms.allow_unverified_ek,
            "labels": sorted(terms.labels),
        }
        if terms.machines > 1:
            details["machines"] = terms.machines
        if terms.accepted_uncovered:
            details["accepted_uncovered"] = [part.value for part in terms.accepted_uncovered]
        await self._store.enrollment.add_token(token, self._entry("token create", terms.name, details))
        return text, token

    async def _refuse_taken(self, name: str) -> None:
        if all(device.name != name for device in await self._store.devices.list_devices()):
            return
        sentence = f"There is a device '{name}' already; with --again the token is made all the same."
        raise Conflict("name-taken", sentence)

    async def revoke(self, name: str) -> Token:
        """Revoke a token that can still be used; *name* is its text, its id's first 8 digits or more, or the device name in
        it.

        The devices that it enrolled stay.  Raises ``not-found``, also when several match; ``token-used``,
        ``token-used-up``.
        """
        digest, digits = token_digest(name), name.lower() if len(name) >= _LEAST_DIGITS else None
        matching = [
            token
            for token in await self._store.enrollment.list_tokens()
            if token.digest == digest
            or (digits is not None and token.digest.hex().startswith(digits))
            or (token.name == name and token.used_at is None and token.revoked_at is None)
        ]
        if len(matching) != 1:
            raise NotFound("not-found", "There is no such token, or more than one.")
        (token,) = matching
        details = {"token": token.digest.hex()}
        await self._store.enrollment.revoke_token(
            token.digest, self._entry("token revoke", token.name, details)
        )
        return token

    def _entry(self, event: str, device: str | None, details: Mapping[str, object]) -> AuditEntry:
        return self._author.entry(self._clock.now(), event, device, details)
