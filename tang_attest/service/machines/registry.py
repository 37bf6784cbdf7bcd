"""The operator's side of machines: tokens, registration, removal, EK roots."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from tang_attest.errors import Malformed, NotFound
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.enrollment import EkRoot, Token
from tang_attest.ports.keys import KeyStore
from tang_attest.ports.machines import Device, NewDevice, Reach, Suspension
from tang_attest.ports.policies import ImaRequirement
from tang_attest.ports.store import HasDevices, HasEnrollment, HasPolicies
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.endorsement.endorsement import parse_roots, subject_digest
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.ima import Requirement
from tang_attest.protocol.policy import (
    DEFAULT_CAP_PCR,
    DEFAULT_SELECTION,
    ReferencePolicy,
    check_policy_selection,
)
from tang_attest.protocol.tpm import AttestationKey
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.labels import check_labels
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.values.points import DEFAULT_CURVE
from tang_attest.protocol.verification import check_reach
from tang_attest.service.enrollment.enroll import token_digest

#: Of a token's id, so that a slip of the finger names none.
_LEAST_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """Terms of a token; see :class:`tang_attest.ports.enrollment.Token`."""

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


class RegistryStore(HasDevices, HasEnrollment, HasPolicies, Protocol):
    """The roles of the store that the care of machines needs."""


class DeviceAdministration:
    """Changes to who is known; each is one transaction with its audit entry."""

    def __init__(
        self, store: RegistryStore, keys: KeyStore, clock: Clock, random: Randomness, operator: str
    ) -> None:
        self._store, self._keys, self._clock, self._random = store, keys, clock, random
        self._actor = f"operator:{operator}"

    async def create_token(self, terms: TokenTerms) -> tuple[str, Token]:
        """A new token: its text (shown once, 43 characters) and its record.

        Raises ``request-malformed``, ``selection-invalid``, ``setting-invalid``, ``not-found`` (policy).
        """
        if terms.record == (terms.policy is not None):
            raise Malformed("setting-invalid", "A token either records a policy or names an existing one.")
        if terms.name is not None:
            check_name(terms.name)
        if terms.policy is not None:
            await self._store.policies.get_policy(terms.policy)
        now, text = self._clock.now(), b64u(self._random.bytes(32))
        token = Token(
            digest=token_digest(text),
            created_at=now,
            created_by=self._actor,
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
        )
        details = {
            "policy": terms.policy,
            "record": terms.record,
            "allow_unverified_ek": terms.allow_unverified_ek,
            "labels": sorted(terms.labels),
        }
        await self._store.enrollment.add_token(token, self._entry("token create", terms.name, details))
        return text, token

    async def revoke_token(self, name: str) -> Token:
        """Revoke the unused token *name*: its text, its id's first 8 digits or more, or the machine's name in it.

        Raises ``not-found``, also when it is not the only one; ``token-used`` (the device that it enrolled stays).
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

    async def register(
        self,
        name: str,
        ak: AttestationKey,
        policy: str | None,
        *,
        reach: Reach | None = None,
        selection: Selection | None = None,
        verified_only: bool = False,
    ) -> Device:
        """Add a machine whose AK an operator brings: nothing proves which TPM holds it.

        Without *policy* it gets an empty one of its own, over *selection*, which goes when it goes.  A machine that is
        *verified_only* gets no exchange key, so it unlocks nothing; it needs a *reach*, and may share its AK with
        other machines of this kind.  Raises ``name-taken``, ``device-exists``, ``not-found`` (policy),
        ``setting-invalid``.
        """
        if verified_only and reach is None:
            raise Malformed("setting-invalid", "A machine without an exchange key is asked over a TCTI only.")
        if reach is not None:
            check_reach(reach.tcti, reach.ak_handle)
        now = self._clock.now()
        device = NewDevice(
            name=check_name(name),
            ak_public=ak.public,
            ak_name=ak.name,
            ak_spki=ak.spki,
            ak_scheme=ak.scheme,
            ak_hash=ak.hash_name,
            ek_spki=None,
            ek_certificate=None,
            ek_verified=False,
            ek_issuer=None,
            origin="registered",
            enrolled_at=now,
            reach=reach,
            verified_only=verified_only,
        )
        key = None if verified_only else await self._keys.create_exchange(DEFAULT_CURVE, now, device.holder)
        under: str | ReferencePolicy
        if policy is not None:
            under = policy
        else:
            chosen = check_policy_selection(selection or Selection.parse(DEFAULT_SELECTION))
            under = ReferencePolicy(name, chosen, DEFAULT_CAP_PCR, ())
        return await self._store.devices.add_device(
            device, under, key, self._entry("device register", name, kid=key.kid if key else None)
        )

    async def sharers(self, device: Device) -> Sequence[str]:
        """The names of the other devices with the AK of *device*."""
        same = [
            other.name
            for other in await self._store.devices.list_devices()
            if other.ak_spki == device.ak_spki
        ]
        return [name for name in same if name != device.name]

    async def suspend(self, name: str, reason: str) -> None:
        """Let a machine's keys answer nobody until :meth:`resume`.  Raises ``not-found``, ``device-suspended``."""
        suspension = Suspension(self._clock.now(), self._actor, check_reason(reason))
        entry = self._entry("device suspend", name, {"reason": reason})
        await self._store.devices.suspend_device(name, suspension, entry)

    async def resume(self, name: str) -> None:
        """Let them answer again.  Raises ``not-found``, ``not-suspended``."""
        await self._store.devices.resume_device(name, self._entry("device resume", name))

    async def allow(self, name: str, window: timedelta) -> datetime:
        """A person's word that a machine may unlock, for as long as *window*; until when.  Raises ``not-found``."""
        until = self._clock.now() + window
        entry = self._entry("device allow", name, {"until": until.isoformat()})
        await self._store.devices.allow_device(name, until, entry)
        return until

    async def set_running_policy(self, name: str, policy: str | None) -> None:
        """Set the policy that a machine is verified against while it runs; ``None``: its own policy, capped.  Raises ``not-found``."""
        entry = self._entry("device running-policy", name, {"policy": policy})
        await self._store.devices.set_running_policy(name, policy, entry)

    async def set_conditions(self, policy: str, conditions: Conditions) -> None:
        """Set a policy's conditions.  Raises ``not-found``."""
        details = {"policy": policy, **conditions.as_json()}
        await self._store.policies.set_conditions(
            policy, conditions, self._entry("policy conditions", None, details)
        )

    async def require_ima(self, policy: str, requirement: Requirement | None) -> None:
        """Set a policy's requirement on the measurement lists of its machines, or remove it.  Raises ``not-found``."""
        required = None if requirement is None else ImaRequirement(requirement.digest, requirement.as_json())
        details = {"policy": policy, "ima": required and required.digest}
        await self._store.policies.require_ima(policy, required, self._entry("policy ima", None, details))

    async def label(self, names: Sequence[str], add: Sequence[str], remove: Sequence[str]) -> None:
        """Add and remove labels, on all of *names* or none.  Raises ``not-found``, ``request-malformed``."""
        added, removed = check_labels(add), check_labels(remove)
        details = {"add": list(added), "remove": list(removed)}
        distinct = sorted(set(names))
        entries = [self._entry("device label", name, details) for name in distinct]
        await self._store.devices.label_devices(distinct, added, removed, entries)

    async def remove(self, name: str) -> None:
        """Forget a machine and destroy its exchange keys: its disks open by passphrase only, for good."""
        await self._store.devices.remove_device(name, self._entry("device remove", name))

    async def add_ek_roots(self, data: bytes, label: str | None) -> list[EkRoot]:
        """Trust every certificate in *data* (PEM or DER).  Raises ``ek-malformed``."""
        added = []
        for root in parse_roots(data):
            fingerprint = hashlib.sha256(root.der).hexdigest()
            record = EkRoot(
                fingerprint, label or root.label, root.der, self._clock.now(), subject_digest(root.der)
            )
            await self._store.enrollment.add_ek_root(
                record, self._entry("ek-root add", None, {"fingerprint": fingerprint})
            )
            added.append(record)
        return added

    async def remove_ek_root(self, fingerprint: str) -> None:
        """Trust a certificate no longer.  Devices that enrolled with it stay."""
        await self._store.enrollment.remove_ek_root(
            fingerprint, self._entry("ek-root remove", None, {"fingerprint": fingerprint})
        )

    def _entry(
        self,
        event: str,
        device: str | None,
        details: Mapping[str, object] | None = None,
        *,
        kid: str | None = None,
    ) -> AuditEntry:
        return AuditEntry(
            self._clock.now(), event, self._actor, "done", device=device, kid=kid, details=details or {}
        )


def check_reason(text: str) -> str:
    """*text*, when it is a reason for the record: 1 to 200 printable characters.  Raises ``request-malformed``."""
    if not 1 <= len(text) <= 200 or not text.isprintable():
        raise Malformed("request-malformed", "A reason has 1 to 200 printable characters.")
    return text
