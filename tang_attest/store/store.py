"""The registry: :class:`SqlStore` says what is one transaction; the modules beside it say what is in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from tang_attest.ports.admin import AdminToken
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import BoundKey, Decision
from tang_attest.ports.enrollment import EkRoot, Enrollment, Token
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device, Learning, NewDevice, Suspension
from tang_attest.ports.policies import ImaRequirement, LastEvidence, Observation, RolloutDevice
from tang_attest.ports.rounds import Notification, PastRound, RoundEffect, RoundRecord, Watched
from tang_attest.ports.store import QueueFigures
from tang_attest.protocol.audit_chain import Row, Seal
from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.changes.rollout import Rollout, RolloutPhase
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.values.pcr import Selection
from tang_attest.store import decisions, verifications
from tang_attest.store.database import schema
from tang_attest.store.database.authentic import Authenticity
from tang_attest.store.database.batch import Batcher
from tang_attest.store.database.engine import AuthenticDatabase, Database, connect, parse_url
from tang_attest.store.database.failures import is_away
from tang_attest.store.maintenance import row_check
from tang_attest.store.maintenance.operations import upgrade
from tang_attest.store.records import (
    admin_tokens,
    audit_chain,
    audit_log,
    devices,
    evidence,
    ima,
    keys,
    nonces,
    observations,
    policies,
    rollouts,
    roots,
    tokens,
)

T = TypeVar("T")
Written = Decision | AuditEntry

#: How often, and with what pause, those that write the audit record are waited for; a commit takes milliseconds.
_WRITERS_ASKED: Final = 10
_WRITERS_PAUSE_S: Final = 0.02


async def open_store(url: str, key: bytes, *, create: bool = False) -> SqlStore:
    """The registry in the database at *url* (``sqlite:///PATH``, ``postgresql://...``).

    *key* (32 bytes, of the server's secret under :data:`tang_attest.store.database.authentic.KEY_LABEL`) seals rows and checks
    their seals.  With *create* the database is made.  Raises ``state-missing`` when there is none, ``schema-old``,
    ``schema-new``, ``setting-invalid`` (the URL, or a server that does not flush).
    """
    if create:
        await upgrade(url, key)
    authenticity = Authenticity(key)
    database = AuthenticDatabase(connect(parse_url(url)), authenticity)
    try:
        await database.read(schema.check)
    except BaseException:
        await database.close()
        raise
    return SqlStore(database, authenticity)


class SqlStore:
    """:class:`tang_attest.ports.store.Store` over SQLAlchemy Core.

    ``find_key``, ``find_selection`` and ``find_clock`` calls that meet share a read transaction, so do ``server_keys`` calls; ``decide`` and ``audit``
    calls share a write transaction and its flush to the disk.  Every other call has its own.
    """

    def __init__(self, database: Database, authenticity: Authenticity) -> None:
        self._database, self._authenticity = database, authenticity
        self._finds: Batcher[keys.Wanted, keys.Found] = Batcher(self._find_keys)
        self._server_keys: Batcher[None, Sequence[EncryptedKey]] = Batcher(self._load_server_keys)
        self._writes: Batcher[Written, None] = Batcher(self._write_items)
        self._rounds: Batcher[RoundRecord, RoundEffect | None] = Batcher(self._write_rounds)

    # --- whether it is there, and how it does -------------------------------------------------------------------

    async def check(self) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._database.read(schema.check)

    async def seen(self, now: datetime) -> Mapping[str, int]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: devices.seen(connection, now))

    def queues(self) -> Mapping[str, QueueFigures]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return {
            "find": self._finds.figures(),
            "keys": self._server_keys.figures(),
            "write": self._writes.figures(),
            "verify": self._rounds.figures(),
        }

    def tampered(self) -> Mapping[str, int]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return self._authenticity.found()

    # --- the request path ---------------------------------------------------------------------------------------

    async def find_key(self, kid: str) -> BoundKey | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        found = await self._finds.submit(keys.Wanted(kid))
        return found if isinstance(found, BoundKey) else None

    async def find_selection(self, kid: str) -> Selection | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        found = await self._finds.submit(keys.Wanted(kid, keys.Part.SELECTION))
        return found if isinstance(found, Selection) else None

    async def find_clock(self, kid: str) -> ClockInfo | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        found = await self._finds.submit(keys.Wanted(kid, keys.Part.CLOCK))
        return found if isinstance(found, ClockInfo) else None

    async def decide(self, decision: Decision) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._writes.submit(decision)

    async def audit(self, entry: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._writes.submit(entry)

    async def find_token(self, digest: bytes) -> Token | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: tokens.find(connection, digest))

    async def enroll(self, enrollment: Enrollment) -> Device:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.write(lambda connection: tokens.enroll(connection, enrollment))

    # --- verification of running machines -----------------------------------------------------------------------

    async def verify(self, verification: RoundRecord) -> RoundEffect | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._rounds.submit(verification)

    async def find_ima_requirement(self, digest: str) -> ImaRequirement | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: ima.find_required(connection, digest))

    async def ima_progress(self, device_id: int) -> Mapping[str, Any] | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: ima.load_progress(connection, device_id))

    async def keep_ima_progress(self, device_id: int, progress: Mapping[str, Any] | None) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._database.write(lambda connection: ima.keep_progress(connection, device_id, progress))

    async def require_ima(self, policy: str, required: ImaRequirement | None, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: ima.require(connection, policy, required), audit)

    async def wanted(self) -> Sequence[str]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(verifications.wanted)

    async def silent(self, policy: str, before: datetime, now: datetime, limit: int) -> Sequence[Device]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(
            lambda connection: verifications.silent(connection, policy, before, now, limit)
        )

    async def take_notifications(self, limit: int) -> Sequence[Notification]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.write(
            lambda connection: verifications.take_notifications(connection, limit)
        )

    async def list_watched(self) -> Sequence[Watched]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(policies.load_conditions)

    async def set_conditions(self, policy: str, conditions: Conditions, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: policies.set_conditions(connection, policy, conditions), audit)

    async def suspend_device(self, name: str, suspension: Suspension, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: devices.suspend(connection, name, suspension), audit)

    async def resume_device(self, name: str, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: devices.resume(connection, name), audit)

    async def allow_device(self, name: str, until: datetime, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: devices.change(connection, name, allowed_until=until), audit)

    async def want_verification(self, name: str, at: datetime | None) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._database.write(lambda connection: devices.change(connection, name, wanted_at=at))

    async def set_running_policy(self, device: str, policy: str | None, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""

        def work(connection: sa.Connection) -> None:
            if policy is not None:
                policies.find_id(connection, policy)
            devices.change(connection, device, running_policy=policy)

        await self._change(work, audit)

    async def record_running(self, device: str, policy: ReferencePolicy, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""

        def work(connection: sa.Connection) -> None:
            policies.add(connection, policy, recorded_for=device)
            devices.change(connection, device, running_policy=policy.name)

        await self._change(work, audit)

    async def list_verifications(self, device: str, limit: int = 100) -> Sequence[PastRound]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: verifications.newest(connection, device, limit))

    # --- tokens and devices -------------------------------------------------------------------------------------

    async def add_token(self, token: Token, audit: AuditEntry) -> None:
        """Add a token.  Raises ``not-found`` (its policy)."""
        await self._change(lambda connection: tokens.add(connection, token), audit)

    async def list_tokens(self) -> Sequence[Token]:
        """Every token, newest first."""
        return await self._database.read(tokens.load)

    async def revoke_token(self, digest: bytes, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: tokens.revoke(connection, digest, audit.at), audit)

    async def add_admin_token(self, token: AdminToken, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: admin_tokens.add(connection, token), audit)

    async def find_admin_token(self, digest: bytes) -> AdminToken | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: admin_tokens.find(connection, digest))

    async def list_admin_tokens(self) -> Sequence[AdminToken]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(admin_tokens.load)

    async def revoke_admin_token(self, name: str, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: admin_tokens.revoke(connection, name, audit.at), audit)

    async def add_device(
        self, device: NewDevice, policy: str | ReferencePolicy, key: EncryptedKey | None, audit: AuditEntry
    ) -> Device:
        """See :class:`~tang_attest.ports.store.Store`."""

        def work(connection: sa.Connection) -> Device:
            if isinstance(policy, str):
                policy_id = policies.find_id(connection, policy)
            else:
                policy_id = policies.add(connection, policy, recorded_for=device.name)
            device_id = devices.add(connection, device, policy_id)
            if key is not None:
                keys.add(connection, key, device_id)
            return devices.get(connection, device.name)

        return await self._change(work, audit)

    async def list_devices(self) -> Sequence[Device]:
        """Every device, by name."""
        return await self._database.read(devices.load)

    async def get_device(self, name: str) -> Device:
        """The device *name*.  Raises ``not-found``."""
        return await self._database.read(lambda connection: devices.get(connection, name))

    async def remove_device(self, name: str, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`.

        Its observations go too, and the policy that its enrollment recorded unless another device uses it: so
        it can be enrolled again under its name.  The audit stays.
        """
        await self._change(lambda connection: devices.remove(connection, name), audit)
        await self._database.erase_log()

    async def arm_learning(self, device: str, learning: Learning | None, audit: AuditEntry) -> None:
        """Arm the one learning use, or disarm it.  Raises ``not-found``."""
        await self._change(lambda connection: devices.arm_learning(connection, device, learning), audit)

    # --- policies -----------------------------------------------------------------------------------------------

    async def add_policy(self, policy: ReferencePolicy, audit: AuditEntry) -> None:
        """Add a policy with its states.  Raises ``name-taken``."""
        await self._change(lambda connection: policies.add(connection, policy), audit)

    async def list_policies(self) -> Sequence[ReferencePolicy]:
        """Every policy, by name."""
        return await self._database.read(policies.load)

    async def get_policy(self, name: str) -> ReferencePolicy:
        """The policy *name*.  Raises ``not-found``."""
        return await self._database.read(lambda connection: policies.get(connection, name))

    async def add_state(self, policy: str, state: ReferenceState, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""

        def work(connection: sa.Connection) -> None:
            policy_id = policies.find_id(connection, policy)
            if state.origin == "predicted" and state.life is Life.STAGED:
                policies.require_trust(connection, policy)
            policies.add_state(connection, policy_id, policy, state)

        await self._change(work, audit)

    async def move_state(
        self, policy: str, label: str, expected: Collection[Life], to: Life, audit: AuditEntry
    ) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""

        def work(connection: sa.Connection) -> None:
            policies.move_state(connection, policies.take(connection, policy), label, expected, to)

        await self._change(work, audit)

    async def trust_predictions(self, policy: str, trusted: bool, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: policies.trust_predictions(connection, policy, trusted), audit)

    async def change_policy(
        self, policy: str, change: PolicyChange, states: Sequence[ReferenceState], audit: AuditEntry
    ) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: rollouts.change(connection, policy, change, states), audit)

    # --- rollouts -----------------------------------------------------------------------------------------------

    async def start_rollout(
        self, rollout: Rollout, states: Sequence[ReferenceState], audit: AuditEntry
    ) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: rollouts.start(connection, rollout, states), audit)

    async def get_rollout(self, policy: str) -> Rollout | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: rollouts.newest(connection, policy))

    async def list_rollout_devices(self, rollout_id: int) -> Sequence[RolloutDevice]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: rollouts.fared(connection, rollout_id))

    async def widen_rollout(self, rollout: Rollout, share: int, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: rollouts.widen(connection, rollout, share), audit)

    async def move_rollout(
        self, rollout: Rollout, to: RolloutPhase, why: str | None, audit: AuditEntry
    ) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._change(lambda connection: rollouts.move(connection, rollout, to, why, audit), audit)

    async def label_devices(
        self,
        names: Sequence[str],
        add: Collection[str],
        remove: Collection[str],
        audits: Sequence[AuditEntry],
    ) -> None:
        """See :class:`~tang_attest.ports.store.Store`.  Raises ``request-malformed`` for too many labels."""

        def work(connection: sa.Connection) -> None:
            devices.label(connection, names, add, remove)
            audit_log.append(connection, *audits)

        await self._database.write(work)

    # --- evidence -----------------------------------------------------------------------------------------------

    async def list_evidence(self, policy: str, *, with_logs: bool = False) -> Sequence[LastEvidence]:
        """See :class:`~tang_attest.ports.store.Store`.  Raises ``not-found``."""
        return await self._database.read(
            lambda connection: evidence.load(connection, policy, with_logs=with_logs)
        )

    async def get_evidence(self, device: str, *, permitted: bool) -> LastEvidence | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(
            lambda connection: evidence.get(connection, device, permitted=permitted)
        )

    async def list_observations(
        self,
        device: str | None = None,
        limit: int = 100,
        before: int | None = None,
        policies: Collection[str] | None = None,
    ) -> Sequence[Observation]:
        """See :class:`~tang_attest.ports.store.Store`.  Raises ``not-found`` (the device)."""
        return await self._database.read(
            lambda connection: observations.load(connection, device, limit, before, policies)
        )

    # --- keys and trust anchors ---------------------------------------------------------------------------------

    async def add_key(self, key: EncryptedKey, device: str | None, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`.  Raises ``not-found`` (the device), ``name-taken`` (the key)."""

        def work(connection: sa.Connection) -> None:
            keys.add(connection, key, None if device is None else devices.find_id(connection, device))

        await self._change(work, audit)

    async def list_keys(self) -> Sequence[tuple[EncryptedKey, str | None]]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(keys.load)

    async def remember_versions(self) -> int:
        """See :class:`~tang_attest.ports.store.Store`."""
        after: int | None = None
        count = 0
        while page := await self._database.read(
            lambda connection, after=after: row_check.page_of(connection, after)  # type: ignore[misc]
        ):
            for serial, known in row_check.read_page(page).items():
                self._authenticity.saw(bytes.fromhex(serial), known.version)
                count += 1
            after = page[-1].id
        return count

    async def count_signing_keys(self) -> tuple[int, int]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(keys.count)

    async def server_keys(self) -> Sequence[EncryptedKey]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._server_keys.submit(None)

    async def rotate_keys(self, kids: Sequence[str], at: datetime, audit: AuditEntry) -> None:
        """See :class:`~tang_attest.ports.store.Store`.  Raises ``not-found``; then none is rotated."""
        await self._change(lambda connection: keys.rotate(connection, kids, at), audit)

    async def add_ek_root(self, root: EkRoot, audit: AuditEntry) -> None:
        """Add a trust anchor; one that is here already stays as it is."""
        await self._change(lambda connection: roots.add(connection, root), audit)

    async def find_ek_roots(self, subject: bytes, fingerprint: str) -> Sequence[EkRoot]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: roots.find(connection, subject, fingerprint))

    async def list_ek_roots(self) -> Sequence[EkRoot]:
        """Every trust anchor, by label."""
        return await self._database.read(roots.load)

    async def remove_ek_root(self, fingerprint: str, audit: AuditEntry) -> None:
        """Remove a trust anchor.  Raises ``not-found``."""
        await self._change(lambda connection: roots.remove(connection, fingerprint), audit)

    # --- the rest -----------------------------------------------------------------------------------------------

    async def list_audit(
        self, device: str | None = None, limit: int = 100, before: int | None = None
    ) -> Sequence[tuple[int, AuditEntry]]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(
            lambda connection: audit_log.newest(connection, device, limit, before)
        )

    # --- the chain over the audit record ------------------------------------------------------------------------

    async def newest_seal(self) -> Seal | None:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(audit_chain.newest_seal)

    async def list_seals(self, after: int, limit: int) -> Sequence[Seal]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: audit_chain.seals(connection, after, limit))

    async def add_seal(self, seal: Seal) -> bool:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.write(lambda connection: audit_chain.add_seal(connection, seal))

    async def final_audit_id(self, after: int | None) -> int | None:
        """See :class:`~tang_attest.ports.store.Store`."""

        def look(connection: sa.Connection) -> tuple[int | None, frozenset[str]]:
            newest = audit_chain.newest_id(connection)
            # In this order: whoever begins after the look draws a higher id.
            return newest, audit_chain.writers(connection)

        newest, writing = await self._database.read(look)
        if newest is None or (after is not None and newest <= after):
            return None
        for _ in range(_WRITERS_ASKED):
            if not writing:
                return newest
            await asyncio.sleep(_WRITERS_PAUSE_S)
            writing &= await self._database.read(audit_chain.writers)
        return None if writing else newest

    async def list_audit_rows(self, after: int | None, up_to: int, limit: int) -> Sequence[Row]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: audit_chain.rows(connection, after, up_to, limit))

    async def unsealed_audit(self, after: int | None) -> tuple[int, datetime | None]:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.read(lambda connection: audit_chain.unsealed(connection, after))

    # --- the end ------------------------------------------------------------------------------------------------

    async def prune(self, before: datetime) -> int:
        """See :class:`~tang_attest.ports.store.Store`."""
        return await self._database.write(lambda connection: nonces.prune(connection, before))

    async def close(self) -> None:
        """See :class:`~tang_attest.ports.store.Store`."""
        await self._finds.close()
        await self._server_keys.close()
        await self._writes.close()
        await self._rounds.close()
        await self._database.close()

    async def _change(self, work: Callable[[sa.Connection], T], entry: AuditEntry) -> T:
        """Run *work* and append *entry* in one transaction."""

        def both(connection: sa.Connection) -> T:
            result = work(connection)
            audit_log.append(connection, entry)
            return result

        return await self._database.write(both)

    async def _find_keys(self, wanted: Sequence[keys.Wanted]) -> Sequence[keys.Found | Exception]:
        return await self._database.read(lambda connection: keys.find(connection, wanted))

    async def _load_server_keys(self, callers: Sequence[None]) -> Sequence[Sequence[EncryptedKey]]:
        """One answer, for every caller the same."""
        return [await self._database.read(keys.load_server)] * len(callers)

    async def _write_items(self, items: Sequence[Written]) -> Sequence[Exception | None]:
        """Write *items* in one transaction, or each in its own when one of them spoils it for all."""
        try:
            return await self._write_together(items)
        except Exception as error:
            if is_away(error) or len(items) == 1:
                raise
        return [await self._write_alone(item) for item in items]

    async def _write_rounds(self, items: Sequence[RoundRecord]) -> Sequence[RoundEffect | Exception | None]:
        return await self._database.write(lambda connection: verifications.write(connection, items))

    async def _write_together(self, items: Sequence[Written]) -> Sequence[Exception | None]:
        return await self._database.write(lambda connection: decisions.write(connection, items))

    async def _write_alone(self, item: Written) -> Exception | None:
        try:
            return (await self._write_together([item]))[0]
        except Exception as error:  # noqa: BLE001 - the caller of this item gets it
            return error
