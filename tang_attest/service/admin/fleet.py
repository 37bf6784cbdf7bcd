"""Enrollment and machines, for the holder of an admin token (see service/admin/administration.py).

As there, nothing can be forced.  Acts that change nothing more when they are repeated may be repeated: a lost
answer is no reason for a person to look.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Protocol

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.enrollment import EkRoot, RegisteredEk, Token
from tang_attest.ports.keys import KeyStore
from tang_attest.ports.machines import Device
from tang_attest.ports.policies import Observation
from tang_attest.ports.store import HasDecisions
from tang_attest.ports.world import Clock, Randomness
from tang_attest.protocol.endorsement.registered import EkEntry
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.admin.tokens import AdminClient
from tang_attest.service.enrollment.ek_roots import EkRoots
from tang_attest.service.enrollment.registered import RegisteredEks
from tang_attest.service.enrollment.tokens import EnrollmentTokens, TokenTerms
from tang_attest.service.machines.devices import DeviceAdministration
from tang_attest.service.machines.overview import CountingStore, Notice, whole_overview
from tang_attest.service.machines.transfers import DeviceTransfers
from tang_attest.service.policies.explanation import Explanations
from tang_attest.service.policies.reference_values import ReferenceValues


class FleetStore(CountingStore, HasDecisions, Protocol):
    """The roles of the store that these operations need."""


class AdministeredFleet:
    """Tokens, registered EKs, devices and empty policies.

    Every method raises ``policy-not-granted`` or ``not-found`` for what the grant does not cover.
    """

    def __init__(self, store: FleetStore, keys: KeyStore, clock: Clock, random: Randomness) -> None:
        self._store, self._keys, self._clock, self._random = store, keys, clock, random

    async def status(self, asker: AdminClient) -> tuple[int, list[Notice]]:
        """Return what wants a person, and what ends when; it is about every policy."""
        asker.grant.require_every_policy()
        return await whole_overview(self._store, self._clock.now())

    # --- tokens ---------------------------------------------------------------------------------------------

    async def tokens(self, asker: AdminClient) -> list[Token]:
        """Return the enrollment tokens, newest first."""
        return [token for token in await self._store.enrollment.list_tokens() if _covers(asker, token.policy)]

    async def create_token(self, asker: AdminClient, terms: TokenTerms) -> tuple[str, Token]:
        """Create a token; one that records makes a policy, so it takes a grant for every policy.

        With ``name_free`` the name of a device is refused.  Raises as :meth:`EnrollmentTokens.create`.
        """
        if terms.policy is None:
            asker.grant.require_every_policy()
        else:
            asker.grant.require_policy(terms.policy)
        if terms.name_free and terms.name is not None:
            await self._refuse_taken(asker, terms.name)
        return await self._tokens(asker).create(replace(terms, name_free=False))

    async def _refuse_taken(self, asker: AdminClient, name: str) -> None:
        """Raise ``name-taken`` for the name of a device; one that the grant does not cover does not exist here."""
        with suppress(NotFound):
            await self._device(asker, name)
            sentence = f"There is a device '{name}' already; with `again` the token is made all the same."
            raise Conflict("name-taken", sentence)

    async def revoke_token(self, asker: AdminClient, named: str) -> Token:
        """Revoke a token by its id, at least 8 digits of it; one that is revoked stays so.

        Raises ``not-found``, ``token-used``, ``token-used-up``.
        """
        matching = [
            token for token in await self.tokens(asker) if token.digest.hex().startswith(named.lower())
        ]
        if len(matching) != 1:
            raise NotFound("not-found", "There is no such token, or more than one.")
        if matching[0].revoked_at is None:
            await self._tokens(asker).revoke(matching[0].digest.hex())
        (revoked,) = [t for t in await self.tokens(asker) if t.digest == matching[0].digest]
        return revoked

    def _tokens(self, asker: AdminClient) -> EnrollmentTokens:
        return EnrollmentTokens(self._store, self._clock, self._random, asker.author)

    # --- registered EKs -------------------------------------------------------------------------------------

    async def registered_eks(self, asker: AdminClient) -> list[RegisteredEk]:
        """Return the registered EKs, by name."""
        return [
            each
            for each in await self._store.enrollment.list_registered_eks()
            if asker.grant.covers(each.policy)
        ]

    async def register_eks(
        self, asker: AdminClient, entries: Sequence[EkEntry]
    ) -> tuple[list[RegisteredEk], int]:
        """Register EKs, all or none; return all of *entries* as they are registered, and the number of new ones.

        Raises as :meth:`RegisteredEks.register`.
        """
        for entry in entries:
            asker.grant.require_policy(entry.policy)
        new = await self._registered(asker).register(entries)
        names = {entry.name for entry in entries}
        return [each for each in await self.registered_eks(asker) if each.name in names], len(new)

    async def unregister_ek(self, asker: AdminClient, name: str) -> RegisteredEk:
        """Take the registration for the device *name* back.  Raises ``not-found``."""
        if name not in {each.name for each in await self.registered_eks(asker)}:
            raise NotFound("not-found", f"No EK is registered for '{name}'.")
        return await self._registered(asker).unregister(name)

    def _registered(self, asker: AdminClient) -> RegisteredEks:
        return RegisteredEks(self._store, self._clock, asker.author, shown=asker.grant.covers)

    # --- trust anchors --------------------------------------------------------------------------------------

    async def ek_roots(self, asker: AdminClient) -> Sequence[EkRoot]:
        """Return the trust anchors of EK certificates, by label; every policy trusts them."""
        asker.grant.require_every_policy()
        return await self._store.enrollment.list_ek_roots()

    async def add_ek_roots(
        self, asker: AdminClient, data: bytes, label: str | None
    ) -> tuple[list[EkRoot], int]:
        """Trust every certificate in *data* (PEM or DER); return them as they are trusted, and the number of new ones.

        One that is trusted keeps its label.  Raises ``certificate-malformed``.
        """
        asker.grant.require_every_policy()
        before = {root.fingerprint for root in await self._store.enrollment.list_ek_roots()}
        given = {root.fingerprint for root in await self._ek_roots(asker).add(data, label, known=before)}
        kept = [root for root in await self._store.enrollment.list_ek_roots() if root.fingerprint in given]
        return kept, len(given - before)

    async def remove_ek_root(self, asker: AdminClient, fingerprint: str) -> EkRoot:
        """Trust a certificate no longer; return it.  Raises ``not-found``."""
        asker.grant.require_every_policy()
        for root in await self._store.enrollment.list_ek_roots():
            if root.fingerprint == fingerprint.lower():
                await self._ek_roots(asker).remove(root.fingerprint)
                return root
        raise NotFound("not-found", f"There is no root {fingerprint}.")

    def _ek_roots(self, asker: AdminClient) -> EkRoots:
        return EkRoots(self._store.enrollment, self._clock, asker.author)

    # --- devices --------------------------------------------------------------------------------------------

    async def set_labels(self, asker: AdminClient, name: str, labels: Sequence[str]) -> Device:
        """Give a device exactly these labels.  Raises ``not-found``, ``request-malformed``."""
        device = await self._device(asker, name)
        surplus = sorted(set(device.labels) - set(labels))
        missing = sorted(set(labels) - set(device.labels))
        if surplus or missing:
            await self._devices(asker).label([name], missing, surplus)
        return await self._device(asker, name)

    async def suspend(self, asker: AdminClient, name: str, reason: str) -> Device:
        """Suspend a device; one that is suspended keeps its reason.  Raises ``not-found``."""
        device = await self._device(asker, name)
        if device.suspension is None:
            with suppress(Conflict):  # another client was faster
                await self._devices(asker).suspend(name, reason)
        return await self._device(asker, name)

    async def resume(self, asker: AdminClient, name: str) -> Device:
        """End a suspension, if there is one.  Raises ``not-found``."""
        device = await self._device(asker, name)
        if device.suspension is not None:
            with suppress(Conflict):  # another client was faster
                await self._devices(asker).resume(name)
        return await self._device(asker, name)

    async def allow(self, asker: AdminClient, name: str, window: timedelta) -> Device:
        """Allow a machine to unlock for *window*.  Raises ``not-found``."""
        await self._device(asker, name)
        await self._devices(asker).allow(name, window)
        return await self._device(asker, name)

    async def rename(self, asker: AdminClient, name: str, new: str) -> Device:
        """Give a device another name.  Raises as :meth:`DeviceTransfers.rename`."""
        await self._device(asker, name)
        return await self._transfers(asker).rename(name, new)

    async def move(self, asker: AdminClient, name: str, policy: str) -> Device:
        """Bring a device under another policy; one that is under it stays.  Raises as
        :meth:`DeviceTransfers.move`.
        """
        device = await self._device(asker, name)
        asker.grant.require_policy(policy)
        if device.policy != policy:
            await self._transfers(asker).move(name, policy)
        return await self._device(asker, name)

    async def remove(self, asker: AdminClient, name: str) -> Device:
        """Remove a device and destroy its keys; return the device that it was.  Raises ``not-found``."""
        device = await self._device(asker, name)
        await self._devices(asker).remove(name)
        return device

    async def _device(self, asker: AdminClient, name: str) -> Device:
        device = await self._store.devices.get_device(name)
        if not asker.grant.covers(device.policy):
            raise NotFound("not-found", f"There is no device '{name}'.")
        return device

    def _devices(self, asker: AdminClient) -> DeviceAdministration:
        return DeviceAdministration(self._store.devices, self._keys, self._clock, asker.author)

    def _transfers(self, asker: AdminClient) -> DeviceTransfers:
        return DeviceTransfers(self._store, self._clock, asker.author)

    # --- policies -------------------------------------------------------------------------------------------

    async def create_policy(
        self, asker: AdminClient, name: str, selection: Selection, cap_pcr: int
    ) -> tuple[ReferencePolicy, bool]:
        """Return the policy, and True if it is new: a policy over these PCRs that is there stays as it is.

        Raises ``selection-invalid``, ``name-taken`` (over other PCRs).
        """
        asker.grant.require_policy(name)
        try:
            return await self._policies(asker).create_policy(name, selection, cap_pcr), True
        except Conflict:
            known = await self._store.policies.get_policy(name)
            if (known.selection, known.cap_pcr) != (selection, cap_pcr):
                raise
            return known, False

    async def remove_policy(self, asker: AdminClient, name: str) -> ReferencePolicy:
        """Remove a policy that nothing uses; return what it was.  Raises ``not-found``, ``policy-in-use``."""
        asker.grant.require_policy(name)
        policy = await self._store.policies.get_policy(name)
        try:
            await self._policies(asker).remove_policy(name)
        except Conflict as used:
            if asker.grant.policies is None or used.code != "policy-in-use":
                raise
            # A machine under another policy may run by this one, and its name is not for a limited token.
            raise Conflict("policy-in-use", f"Policy '{name}' is used.") from None
        return policy

    async def dismiss(self, asker: AdminClient, number: int) -> Observation:
        """Forget an observation that nobody is going to approve; return it.  Raises ``observation-missing``."""
        found = await Explanations(self._store, self._clock).find(number, asker.grant.policies)
        await self._policies(asker).dismiss([found])
        return found

    def _policies(self, asker: AdminClient) -> ReferenceValues:
        return ReferenceValues(self._store, self._clock, asker.author)


def _covers(asker: AdminClient, policy: str | None) -> bool:
    """A token that records has no policy yet, so only a grant for every policy covers it."""
    return asker.grant.policies is None if policy is None else asker.grant.covers(policy)
