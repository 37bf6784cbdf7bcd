"""The composition of a server: clock, randomness and settings become an opened store, keys and use cases.

``serve``, the commands and the tests compose here, and nowhere else.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from tang_attest.config import Settings
from tang_attest.errors import Malformed, Unavailable
from tang_attest.files import read_file
from tang_attest.keys.encrypted import EncryptedKeys, SessionEncryption
from tang_attest.keys.secret import ServerSecret, load_secret
from tang_attest.keys.server_tpm import ServerTpm
from tang_attest.ports.store import Store
from tang_attest.ports.world import Clock, Randomness
from tang_attest.programs.tpm2 import Tpm2Tools
from tang_attest.service.admin.administration import Administration
from tang_attest.service.admin.tokens import AdminTokens
from tang_attest.service.audit.actors import Author
from tang_attest.service.audit.refusals import Refusals
from tang_attest.service.enrollment.ek_roots import EkRoots
from tang_attest.service.enrollment.enroll import Enroll
from tang_attest.service.enrollment.registered import RegisteredEks
from tang_attest.service.enrollment.tokens import EnrollmentTokens
from tang_attest.service.machines.devices import DeviceAdministration
from tang_attest.service.machines.transfers import DeviceTransfers
from tang_attest.service.operators.accounts import Operators
from tang_attest.service.policies.announce import Announce
from tang_attest.service.policies.changes import PolicyChanges
from tang_attest.service.policies.conditions import PolicyConditions
from tang_attest.service.policies.explanation import Explanations
from tang_attest.service.policies.reference_values import ReferenceValues
from tang_attest.service.policies.rollouts import Rollouts
from tang_attest.service.policies.signers import PolicySigners
from tang_attest.service.rounds.agents import HOLD_S, Agents
from tang_attest.service.rounds.on_demand import OnDemandRounds
from tang_attest.service.rounds.polls import Polls
from tang_attest.service.rounds.verify import RoundVerifier
from tang_attest.service.tang.recent_keys import LIFE_S
from tang_attest.service.tang.server_keys import ServerKeys
from tang_attest.service.unlock.challenges import Challenges
from tang_attest.service.unlock.unlock import Unlock
from tang_attest.store import KEY_LABEL, open_store

#: Bytes; a password has at most 64 (TPM2B_AUTH of SHA-512).
_MAX_PASSWORD_FILE: Final = 256


class SystemClock:
    """The computer's clock."""

    def now(self) -> datetime:
        """Return the time now: aware, UTC."""
        return datetime.now(UTC)


class SystemRandomness:
    """The operating system's random bytes."""

    def bytes(self, count: int) -> bytes:
        """Return *count* fresh bytes."""
        return os.urandom(count)


def operator_name() -> str:
    """Return the operator's name for the audit record: the user behind sudo, else the process's user."""
    name = os.environ.get("SUDO_USER")
    if name:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def password_in_file(settings: Settings) -> bytes | None:
    """Return the first line of ``owner_auth_file``, or ``None`` when no file is set.

    Raises ``file-unreadable``, ``request-too-large``.
    """
    if settings.owner_auth_file is None:
        return None
    return read_file(settings.owner_auth_file, _MAX_PASSWORD_FILE).split(b"\n", 1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that a composition takes from outside; the real things by default.

    ``operator`` is the name in the audit record.  ``owner_auth`` returns the password of the TPM's owner
    hierarchy; it is called only when the TPM wants one.  A request of an agent is held for ``hold_s`` seconds
    at most, and the keys of plain Tang are read again after ``keys_last_s``.
    """

    clock: Clock = field(default_factory=SystemClock)
    random: Randomness = field(default_factory=SystemRandomness)
    operator: str = field(default_factory=operator_name)
    owner_auth: Callable[[Settings], bytes | None] = password_in_file
    hold_s: float = HOLD_S
    keys_last_s: float = LIFE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """The use cases that answer machines."""

    unlock: Unlock
    enroll: Enroll
    announce: Announce
    verify: RoundVerifier
    agents: Agents


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """An initialized server, opened: its store, its keys, and the operator's use cases over them."""

    settings: Settings
    world: World
    store: Store
    secret: ServerSecret
    private_keys: EncryptedKeys
    tokens: EnrollmentTokens
    ek_roots: EkRoots
    registered_eks: RegisteredEks
    devices: DeviceAdministration
    transfers: DeviceTransfers
    conditions: PolicyConditions
    reference_values: ReferenceValues
    signers: PolicySigners
    policy_changes: PolicyChanges
    explanations: Explanations
    rollouts: Rollouts
    admin_tokens: AdminTokens
    operators: Operators
    keys: ServerKeys

    def attestation(
        self,
        polls: Polls,
        *,
        refusals: Refusals | None = None,
    ) -> Attestation:
        """Return the use cases that answer machines.

        Requests of agents wait in *polls*.  Refusals are counted in *refusals*, or else written one by one.
        """
        store, challenges, verify = self.store, self.challenges(), self.verifier()
        refusals = refusals or Refusals(store.audit, self.world.clock)
        return Attestation(
            unlock=Unlock(store, self.private_keys, challenges, refusals),
            enroll=Enroll(
                store,
                self.private_keys,
                SessionEncryption(self.secret),
                replace(challenges, ttl_s=self.settings.enroll_ttl),
                refusals,
            ),
            announce=Announce(store, challenges, refusals),
            verify=verify,
            agents=Agents(store.decisions, verify, polls, challenges, hold_s=self.world.hold_s),
        )

    def verifier(self) -> RoundVerifier:
        """Return the use case that appraises the evidence of running systems."""
        return RoundVerifier(self.store, self.challenges())

    def challenges(self) -> Challenges:
        """Return the means to make and check challenges for an enrolled machine."""
        world, key = self.world, self.secret.derive("nonce")
        return Challenges(world.clock, world.random, key, self.settings.challenge_ttl)

    def rounds(self, cap_events: bytes | None = None) -> OnDemandRounds:
        """Return the use case that holds rounds on demand; *cap_events* are the cap's texts for a TPM asked
        directly.
        """
        return OnDemandRounds(self.store, self.verifier(), Tpm2Tools(cap_events=cap_events), self.world.clock)

    def administration(self) -> Administration:
        """Return the use cases behind the admin API."""
        return Administration(self.store, self.private_keys, self.world.clock, self.world.random)

    def served_keys(self) -> ServerKeys:
        """Return the keys that a server shows; open keys count only with the setting ``plain_tang``."""
        open_keys = self.settings.plain_tang
        return ServerKeys(self.store, self.private_keys, self.world.clock, "server", open_keys=open_keys)


@asynccontextmanager
async def opened(settings: Settings, world: World | None = None) -> AsyncIterator[Installation]:
    """Open the installation that *settings* name, and close it after the block.

    Raises ``state-missing`` before anything is made, and ``setting-invalid`` when the key-encryption key is
    not the database's: a key made under it could never be opened again.
    """
    secret = load_secret(settings.state)
    store = await open_store(settings.database_url, secret.derive(KEY_LABEL))
    try:
        async with composed(store, secret, settings, world) as installation:
            await _check_secret(installation)
            yield installation
    finally:
        await store.close()


@asynccontextmanager
async def composed(
    store: Store, secret: ServerSecret, settings: Settings, world: World | None = None
) -> AsyncIterator[Installation]:
    """Compose the use cases over an open *store*; the connection to the TPM, if any, is closed after the
    block.
    """
    installation = _compose(store, secret, settings, world or World())
    try:
        yield installation
    finally:
        installation.private_keys.tpm.shutdown()


def _compose(store: Store, secret: ServerSecret, settings: Settings, world: World) -> Installation:
    clock, random, author = world.clock, world.random, Author.operator(world.operator)
    tpm = ServerTpm(settings.server_tpm, lambda: world.owner_auth(settings))
    private_keys = EncryptedKeys(secret, tpm)
    return Installation(
        settings=settings,
        world=world,
        store=store,
        secret=secret,
        private_keys=private_keys,
        tokens=EnrollmentTokens(store, clock, random, author),
        ek_roots=EkRoots(store.enrollment, clock, author),
        registered_eks=RegisteredEks(store, clock, author),
        devices=DeviceAdministration(store.devices, private_keys, clock, author),
        transfers=DeviceTransfers(store, clock, author),
        conditions=PolicyConditions(store.policies, clock, author),
        reference_values=ReferenceValues(store, clock, author),
        signers=PolicySigners(store, clock, author),
        policy_changes=PolicyChanges(store, clock, author),
        explanations=Explanations(store, clock),
        rollouts=Rollouts(store, clock, random, author),
        admin_tokens=AdminTokens(store.admin_tokens, clock, random, author),
        operators=Operators(store.operators, clock, random, author),
        keys=ServerKeys(store, private_keys, clock, author.actor, lasts_s=world.keys_last_s),
    )


async def _check_secret(installation: Installation) -> None:
    there, ours = await installation.store.keys.count_signing_keys()
    if there and not ours:
        raise wrong_secret()
    for key in (key for key in await installation.store.keys.server_keys() if key.use == "sign"):
        try:
            installation.private_keys.open_signer(key)
        except Unavailable:
            raise wrong_secret() from None
        return


def wrong_secret() -> Malformed:
    """Return the error for a key-encryption key that is not the database's."""
    return Malformed(
        "setting-invalid",
        "Setting state: its key-encryption key is not the one that the database was made with.",
    )
