"""The server's own keys: signing keys, open exchange keys, and their advertisements."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import Conflict, Malformed, NotFound, Unavailable
from tang_attest.ports.audit import AuditEntry, AuditSearch
from tang_attest.ports.keys import OPEN, EncryptedKey, KeyStore
from tang_attest.ports.machines import Device
from tang_attest.ports.store import HasAudit, HasDecisions, HasDevices, HasKeys, HasPolicies
from tang_attest.ports.world import Clock
from tang_attest.protocol.challenge import VERSIONS
from tang_attest.protocol.values.advertisement import AdvertisementSigner, advertise
from tang_attest.protocol.values.points import DEFAULT_CURVE
from tang_attest.service.tang.plain import KeySet, KeySetProvider, TangKey, current_keys
from tang_attest.service.unlock.device_keys import find_device_key


class SigningKeyStore(KeyStore, Protocol):
    """A :class:`KeyStore` that also opens signing keys and encrypts keys made elsewhere."""

    def open_signer(self, key: EncryptedKey) -> AdvertisementSigner:
        """Return the signing key, ready for use."""

    def encrypt(self, use: str, private: ec.EllipticCurvePrivateKey, now: datetime) -> EncryptedKey:
        """Return an existing key, encrypted."""


class DirectoryFirst:
    """A Tang directory, advertised as tangd does, with the server's own keys behind it."""

    def __init__(self, directory: KeySetProvider, own: KeySetProvider) -> None:
        self._providers = (directory, own)
        self._parts: list[KeySet] = []
        self._key_set = KeySet(())

    async def current(self) -> KeySet:
        """Return the keys as they are now; the same object as before when nothing changed."""
        parts = [await current_keys(provider) for provider in self._providers]
        if parts != self._parts:
            self._parts, self._key_set = parts, _BesideDirectory(*parts)
        return self._key_set


class _BesideDirectory(KeySet):
    """``/adv`` is the directory's alone, with one signature where tangd has one.

    A client that names one of the server's own keys, ``/adv/{kid}``, gets the keys of both, signed by both.
    Keys of both answer ``/rec``.
    """

    def __init__(self, directory: KeySet, own: KeySet) -> None:
        super().__init__((*directory.keys, *own.keys))
        self._directory = directory

    def advertisement(self, kid: str | None = None) -> bytes:
        """Return the signed key set; raises as :meth:`KeySet.advertisement`."""
        if kid is None or self._directory.find(kid) is not None:
            return self._directory.advertisement(kid)
        return super().advertisement(kid)


class ServerKeyStore(HasAudit, HasDecisions, HasDevices, HasKeys, HasPolicies, Protocol):
    """The roles of the store that the server's keys needs."""


#: The time in which one boot opens all its disks.
_ONE_BOOT: Final = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class KeyUse:
    """Use of a key as far as the audit record knows: ``device`` is its machine, ``None`` for a key of no device.

    ``last_at`` is the time of its last permitted unlock, and ``in_use`` is true if the newest boot of the machine
    used it.  Plain Tang and advertisements leave no entry.
    """

    kid: str
    use: str
    device: str | None
    last_at: datetime | None
    in_use: bool


class ServerKeys:
    """Keys that belong to no device, and the advertisements they sign.

    With *open_keys* the open exchange keys are advertised and answer without evidence (plain Tang); without,
    they are as if they were not there.  *lasts_s* are the seconds for which servers go on with open keys that
    they read (recent_keys.py).
    """

    def __init__(
        self,
        store: ServerKeyStore,
        keys: SigningKeyStore,
        clock: Clock,
        actor: str,
        *,
        open_keys: bool = False,
        lasts_s: float = 0,
    ) -> None:
        self._store, self._keys, self._clock, self._actor = store, keys, clock, actor
        self._open_keys, self._lasts_s = open_keys, lasts_s
        self._stored: Sequence[EncryptedKey] = ()
        self._key_set = KeySet(())

    async def current(self) -> KeySet:
        """Return the present keys; the same object as before when nothing changed, so nothing is signed
        again.
        """
        stored = await self._store.keys.server_keys()
        if stored != self._stored:
            used = [key for key in stored if key.use == "sign" or self._open_keys]
            self._stored, self._key_set = stored, KeySet(self._as_tang_key(key) for key in used)
        return self._key_set

    async def usable(self) -> KeySet:
        """Return the present keys, if exchange keys can be used.  Raises ``server-tpm-unavailable``."""
        await self._keys.check_tpm()
        return await self.current()

    async def device_advertisement(self, kid: str) -> bytes:
        """Return the signed advertisement of a device's newest exchange key, given any of its keys.

        It names the AK that the key answers to, so that a machine is never bound to another one's key, and the
        cap PCR, which no unauthenticated answer may choose.
        Raises ``key-unknown``.
        """
        asked = await find_device_key(self._store.decisions, kid)
        newest = (await self._store.devices.get_device(asked.device.name)).kids[0]
        bound = asked if newest == kid else await find_device_key(self._store.decisions, newest)
        signing = [key for key in (await self.current()).keys if key.signer is not None and not key.hidden]
        exchange = {"alg": "ECMR", "key_ops": ["deriveKey"], **bound.key.public}
        return advertise(
            [*(key.public for key in signing), exchange],
            [key.signer for key in signing if key.signer is not None],
            {"ak_name": bound.device.ak_name.hex(), "cap_pcr": bound.policy.cap_pcr, "versions": VERSIONS},
        )

    async def enrolled(self, device: Device) -> Mapping[str, Any]:
        """Return the answer to a finished enrollment (docs/protocol.md, 4.2)."""
        policy = await self._store.policies.get_policy(device.policy)
        kid = device.kids[0]
        return {
            "name": device.name,
            "kid": kid,
            "policy": policy.name,
            "selection": str(policy.selection),
            "cap_pcr": policy.cap_pcr,
            "ek_verified": device.ek_verified,
            "learning": device.learning is not None,
            "coverage": device.coverage if device.grade else None,
            "advertisement": json.loads(await self.device_advertisement(kid)),
            "versions": VERSIONS,
        }

    async def create_signing_key(self) -> str:
        """Make a signing key; return its thumbprint."""
        key = self._keys.create("sign", DEFAULT_CURVE, self._clock.now())
        await self._store.keys.add_key(key, None, self._entry("keys create", key.kid))
        return key.kid

    async def rotate(self) -> tuple[list[str], list[str]]:
        """Make new signing (and, if there are any, open exchange) keys; the old ones are advertised no
        longer.

        The old ones still answer and verify, so nothing that was bound breaks.  Returns new and old
        thumbprints.
        """
        old = [key for key in await self._store.keys.server_keys() if key.rotated_at is None]
        uses = sorted({key.use for key in old} | {"sign"})
        new = [await self._create(use, old, OPEN) for use in uses]
        for key in new:
            await self._store.keys.add_key(key, None, self._entry("keys create", key.kid))
        if old:
            await self._store.keys.rotate_keys(
                [key.kid for key in old],
                self._clock.now(),
                self._entry("keys rotate", None, [key.kid for key in old]),
            )
        return [key.kid for key in new], [key.kid for key in old]

    async def rotate_device(self, name: str) -> tuple[str, list[str]]:
        """Give a device a new exchange key for later bindings; the old one still answers.

        Raises ``not-found``, ``key-unknown`` for a device without an exchange key,
        ``server-tpm-unavailable``.
        """
        device = await self._store.devices.get_device(name)
        if not device.kids:
            raise NotFound("key-unknown", f"Device '{name}' has no exchange key.")
        old_keys = [await self._stored_key(kid) for kid in device.kids]
        key = await self._create("exchange", old_keys, device.holder)
        await self._store.keys.add_key(key, name, self._entry("keys create", key.kid, device=name))
        old = list(device.kids)
        await self._store.keys.rotate_keys(
            old, self._clock.now(), self._entry("keys rotate", None, old, device=name)
        )
        return key.kid, old

    async def key_use(self, kid: str) -> KeyUse:
        """Return the use of *kid* as far as it is known.  Raises ``not-found``."""
        key, device = await self._store.keys.get_key(kid)
        if device is None:
            return KeyUse(kid, key.use, None, None, in_use=False)
        last, newest = await self._last_unlock(device, kid), await self._last_unlock(device, None)
        in_use = last is not None and newest is not None and last > newest - _ONE_BOOT
        return KeyUse(kid, key.use, device, last, in_use=in_use)

    async def _last_unlock(self, device: str, kid: str | None) -> datetime | None:
        search = AuditSearch(events=("unlock",), verdict="permitted", kid=kid)
        found = await self._store.audit.list_audit(device, 1, search=search)
        return found[0][1].at if found else None

    async def retire(self, kid: str, *, force: bool = False) -> KeyUse:
        """Let a key answer no more, on every server; return its use until now.

        For an open exchange key this takes as long as a server may answer with keys that it read before.

        Raises ``not-found``, ``key-retired``, ``key-last``, and ``key-in-use`` (unless *force*) when the newest
        boot of its machine used it.
        """
        used = await self.key_use(kid)
        if used.in_use and not force:
            raise Conflict("key-in-use", f"The newest boot of '{used.device}' opened a disk with this key.")
        entry = self._entry("keys retire", kid, device=used.device)
        await self._store.keys.retire_key(kid, entry.at, entry)
        if used.device is None and used.use == "exchange":
            await asyncio.sleep(self._lasts_s)
        return used

    async def reinstate(self, kid: str) -> KeyUse:
        """Let a retired key answer again.  Raises ``not-found``, ``key-not-retired``."""
        used = await self.key_use(kid)
        await self._store.keys.reinstate_key(kid, self._entry("keys reinstate", kid, device=used.device))
        return used

    async def import_key(self, private: ec.EllipticCurvePrivateKey, use: str, *, rotated: bool) -> str:
        """Add a key of a Tang server, encrypted; it becomes a signing key or an open exchange key."""
        if use not in ("sign", "exchange"):
            raise Malformed("key-malformed", "The key is neither for signing nor for deriveKey.")
        key = self._keys.encrypt(use, private, self._clock.now())
        await self._store.keys.add_key(key, None, self._entry("keys import", key.kid))
        if rotated:
            await self._store.keys.rotate_keys(
                [key.kid], self._clock.now(), self._entry("keys rotate", key.kid)
            )
        return key.kid

    async def _create(self, use: str, old: Sequence[EncryptedKey], holder: str) -> EncryptedKey:
        """Make a key for *holder* in the place of *old* ones."""
        if use == "sign":
            return self._keys.create(use, DEFAULT_CURVE, self._clock.now())
        key = await self._keys.create_exchange(DEFAULT_CURVE, self._clock.now(), holder)
        if any(map(self._keys.is_in_tpm, old)) and not self._keys.is_in_tpm(key):
            # Otherwise a disk of this server would silently open what its TPM protected.
            raise Unavailable(
                "server-tpm-unavailable", "The old key lives in a TPM, and the new one would not."
            )
        return key

    async def _stored_key(self, kid: str) -> EncryptedKey:
        return (await find_device_key(self._store.decisions, kid)).key

    def _as_tang_key(self, key: EncryptedKey) -> TangKey:
        hidden = key.rotated_at is not None
        if key.use == "sign":
            return TangKey.for_signing(self._keys.open_signer(key), dict(key.public), hidden=hidden)
        return TangKey.for_exchange(self._keys.open_exchange(key), hidden=hidden)

    def _entry(
        self, event: str, kid: str | None, kids: Sequence[str] = (), *, device: str | None = None
    ) -> AuditEntry:
        details: dict[str, object] = {"kids": list(kids)} if kids else {}
        return AuditEntry(
            self._clock.now(), event, self._actor, "done", device=device, kid=kid, details=details
        )
