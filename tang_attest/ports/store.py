"""The store as a whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from tang_attest.ports.admin import AdminToken
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import BoundKey, Decision
from tang_attest.ports.enrollment import EkRoot, Enrollment, Token
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device, Learning, NewDevice, Suspension
from tang_attest.ports.policies import ImaRequirement, LastEvidence, Observation, RolloutDevice
from tang_attest.ports.rounds import Notification, PastRound, RoundEffect, RoundRecord, Watched
from tang_attest.protocol.audit_chain import Row, Seal
from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.changes.rollout import Rollout, RolloutPhase
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.values.pcr import Selection


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """What a queue of the store did since the start: transactions, the items in them, items that failed; and waits now."""

    batches: int
    items: int
    failures: int
    waiting: int


class Store(Protocol):
    """The registry.  Every write is one transaction that includes its audit entries and is durable on return.

    Races are decided here by compare-and-set.  Raises :class:`~tang_attest.errors.Conflict`,
    :class:`~tang_attest.errors.NotFound`, and :class:`~tang_attest.errors.Unavailable` when the database is
    away; nothing else.
    """

    # whether it is there, and how it does
    async def check(self) -> None:
        """Raise ``unavailable``, ``schema-old``, ``schema-new`` when the database cannot be used."""

    async def seen(self, now: datetime) -> Mapping[str, int]:
        """The number of devices by when they last gave evidence: ``hour``, ``day``, ``week`` ago, ``before``, ``never``."""

    def queues(self) -> Mapping[str, QueueFigures]:
        """What each queue did, by name."""

    def tampered(self) -> Mapping[str, int]:
        """Count the reads of rows that this server did not write, by table; every table is there."""

    # the request path
    async def find_key(self, kid: str) -> BoundKey | None:
        """The exchange key with thumbprint *kid*, fresh from the database; ``None`` when there is none."""

    async def find_selection(self, kid: str) -> Selection | None:
        """What the policy of the device with the exchange key *kid* wants quoted; ``None`` when there is none."""

    async def find_clock(self, kid: str) -> ClockInfo | None:
        """The clock of the newest evidence of the device with the exchange key *kid*; ``None`` when there is none."""

    async def decide(self, decision: Decision) -> None:
        """Write *decision*.

        Raises ``nonce-used`` (nothing but an audit entry of the second use is written), ``clock-backwards``
        when newer evidence of the device was written meanwhile and this one is further behind than it may be, ``key-unknown`` when the device is gone,
        ``device-suspended`` when it was suspended meanwhile (unless the decision is a refusal anyway),
        ``pcr-mismatch`` when the one learning use was taken meanwhile, and ``state-retired`` or ``state-used-up``
        when the state it met does not count any more, and ``state-not-rolled-out`` when it counted only by a rollout
        that was stopped meanwhile, ``approval-required`` and ``device-stale`` when the policy's conditions ask for a
        person now, and ``policy-changed`` when its ``basis`` is another one now; of these the caller writes the audit.

        The refusal that passes a rollout's limit stops it here, with an audit entry of the actor ``server``.
        """

    async def audit(self, entry: AuditEntry) -> None:
        """Append one entry."""

    async def verify(self, verification: RoundRecord) -> RoundEffect | None:
        """Write the end of a round; ``None`` when evidence came since ``silent_since``.

        Raises ``nonce-used`` for evidence that was written before, ``clock-backwards`` when newer evidence was written
        meanwhile and this one is further behind than it may be, ``key-unknown`` when the device is gone.
        """

    async def find_ima_requirement(self, digest: str) -> ImaRequirement | None:
        """What a policy requires."""

    async def ima_progress(self, device_id: int) -> Mapping[str, Any] | None:
        """How far a device's list was read: :meth:`tang_attest.protocol.ima.ImaProgress.as_json`."""

    async def keep_ima_progress(self, device_id: int, progress: Mapping[str, Any] | None) -> None:
        """Keep that, or forget it."""

    async def wanted(self) -> Sequence[str]:
        """The newest kid of each device that an operator wants to have verified now."""

    async def silent(self, policy: str, before: datetime, now: datetime, limit: int) -> Sequence[Device]:
        """Devices of *policy*, not known as unreachable, whose running system gave no evidence since *before*.

        A clock that was set back makes old evidence look like that of a time after *now*; it counts as old.
        """

    async def take_notifications(self, limit: int) -> Sequence[Notification]:
        """The oldest that wait; they are taken away, so that nobody else tells them too."""

    async def list_watched(self) -> Sequence[Watched]:
        """Policies that have conditions, by name."""

    async def find_token(self, digest: bytes) -> Token | None:
        """The token whose text has this SHA-256."""

    async def enroll(self, enrollment: Enrollment) -> Device:
        """Use up the token and add device, key and (perhaps) policy.

        Raises ``token-used``, ``token-revoked``, ``name-taken`` (device or new policy), ``device-exists`` (same AK or same EK Name),
        ``not-found`` (policy).
        """

    # the operator
    async def add_token(self, token: Token, audit: AuditEntry) -> None:
        """Keep a token."""

    async def list_tokens(self) -> Sequence[Token]:
        """Every token, newest first."""

    async def revoke_token(self, digest: bytes, audit: AuditEntry) -> None:
        """Revoke an unused token for good, at the entry's time.  Raises ``not-found``, ``token-used``."""

    async def add_admin_token(self, token: AdminToken, audit: AuditEntry) -> None:
        """Keep an admin token.  Raises ``name-taken``, ``not-found`` (a policy it is limited to)."""

    async def find_admin_token(self, digest: bytes) -> AdminToken | None:
        """The admin token whose text has this SHA-256, revoked and expired ones too."""

    async def list_admin_tokens(self) -> Sequence[AdminToken]:
        """Every admin token, newest first."""

    async def revoke_admin_token(self, name: str, audit: AuditEntry) -> None:
        """Revoke an admin token for good, at the entry's time.  Raises ``not-found``, also when it was revoked before."""

    async def add_device(
        self, device: NewDevice, policy: str | ReferencePolicy, key: EncryptedKey | None, audit: AuditEntry
    ) -> Device:
        """Add a registered device with its key, under an existing policy or one that is made for it.

        *key* is ``None`` for a device that is verified only.

        Raises ``name-taken``, ``device-exists``, ``not-found`` (policy).
        """

    async def list_devices(self) -> Sequence[Device]:
        """Every device, by name."""

    async def get_device(self, name: str) -> Device:
        """One device.  Raises ``not-found``."""

    async def remove_device(self, name: str, audit: AuditEntry) -> None:
        """Forget the device and destroy its exchange keys, in the file and in the write-ahead log too."""

    async def add_policy(self, policy: ReferencePolicy, audit: AuditEntry) -> None:
        """Add a policy.  Raises ``name-taken``."""

    async def list_policies(self) -> Sequence[ReferencePolicy]:
        """Every policy, by name."""

    async def get_policy(self, name: str) -> ReferencePolicy:
        """One policy.  Raises ``not-found``."""

    async def add_state(self, policy: str, state: ReferenceState, audit: AuditEntry) -> None:
        """Append a reference state.

        Raises ``name-taken`` when the policy has that label already, and ``policy-changed`` for announced values that
        count at once, when the policy does not trust predictions any more.
        """

    async def move_state(
        self, policy: str, label: str, expected: Collection[Life], to: Life, audit: AuditEntry
    ) -> None:
        """Move a state along its life.  Raises ``not-found``, and ``state-changed`` unless it is in *expected*."""

    async def trust_predictions(self, policy: str, trusted: bool, audit: AuditEntry) -> None:
        """Whether announced values count at once.  Raises ``not-found``."""

    async def set_conditions(self, policy: str, conditions: Conditions, audit: AuditEntry) -> None:
        """Replace a policy's conditions.  Raises ``not-found``."""

    async def require_ima(self, policy: str, required: ImaRequirement | None, audit: AuditEntry) -> None:
        """What a policy requires of measurement lists, or nothing.  Raises ``not-found``."""

    async def suspend_device(self, name: str, suspension: Suspension, audit: AuditEntry) -> None:
        """Let the device's keys answer nobody.  Raises ``not-found``, ``device-suspended``."""

    async def resume_device(self, name: str, audit: AuditEntry) -> None:
        """Let them answer again.  Raises ``not-found``, ``not-suspended``."""

    async def allow_device(self, name: str, until: datetime, audit: AuditEntry) -> None:
        """A person's word that it may unlock.  Raises ``not-found``."""

    async def want_verification(self, name: str, at: datetime | None) -> None:
        """Ask (or with ``None`` no longer ask) whoever holds the device's agent for a round.  Raises ``not-found``."""

    async def set_running_policy(self, device: str, policy: str | None, audit: AuditEntry) -> None:
        """What the device is verified against while it runs.  Raises ``not-found`` (either)."""

    async def record_running(self, device: str, policy: ReferencePolicy, audit: AuditEntry) -> None:
        """Make *policy*, and verify the device against it; it goes when the device goes.  Raises ``name-taken``."""

    async def list_verifications(self, device: str, limit: int = 100) -> Sequence[PastRound]:
        """The newest first; also of a device that was removed."""

    async def change_policy(
        self, policy: str, change: PolicyChange, states: Sequence[ReferenceState], audit: AuditEntry
    ) -> None:
        """Apply *change*, whose added states are *states*, for everybody.

        Raises ``not-found`` (policy, retired state), ``name-taken`` (added state), ``state-changed`` (retired already).
        """

    async def start_rollout(
        self, rollout: Rollout, states: Sequence[ReferenceState], audit: AuditEntry
    ) -> None:
        """Add *rollout* with its *states*.

        Raises ``not-found`` (policy), ``name-taken`` (rollout, state), ``rollout-unfinished`` when the policy has one
        that is not over.
        """

    async def get_rollout(self, policy: str) -> Rollout | None:
        """The newest rollout of *policy*, over or not.  Raises ``not-found`` (policy)."""

    async def list_rollout_devices(self, rollout_id: int) -> Sequence[RolloutDevice]:
        """Who passed under a rollout or was refused, by name."""

    async def widen_rollout(self, rollout: Rollout, share: int, audit: AuditEntry) -> None:
        """Raise the share of a running rollout.  Raises ``rollout-changed`` unless it runs with a smaller one."""

    async def move_rollout(
        self, rollout: Rollout, to: RolloutPhase, why: str | None, audit: AuditEntry
    ) -> None:
        """Move *rollout* from the status it has *to* another, at the time and by the actor of *audit*.

        Running again forgets who was refused.  Finished, its change counts for everybody; abandoned, for nobody:
        its states are retired.  Raises ``rollout-changed`` when it has another status meanwhile.
        """

    async def label_devices(
        self,
        names: Sequence[str],
        add: Collection[str],
        remove: Collection[str],
        audits: Sequence[AuditEntry],
    ) -> None:
        """Add and remove labels, for all of *names* or none.  Raises ``not-found``."""

    async def list_evidence(self, policy: str, *, with_logs: bool = False) -> Sequence[LastEvidence]:
        """What each device of a policy last quoted, by name; without event logs unless asked for."""

    async def get_evidence(self, device: str, *, permitted: bool) -> LastEvidence | None:
        """What one device last quoted and was permitted or refused, with its log.  Raises ``not-found`` (the device)."""

    async def arm_learning(self, device: str, learning: Learning | None, audit: AuditEntry) -> None:
        """Arm (or with ``None`` end) the one learning use of a device.  Raises ``not-found``."""

    async def list_observations(
        self,
        device: str | None = None,
        limit: int = 100,
        before: int | None = None,
        policies: Collection[str] | None = None,
    ) -> Sequence[Observation]:
        """The newest first; perhaps only those with an id below *before*, or of devices under *policies*."""

    async def add_key(self, key: EncryptedKey, device: str | None, audit: AuditEntry) -> None:
        """Add a signing key or an exchange key (an open one, or a further one of *device*)."""

    async def list_keys(self) -> Sequence[tuple[EncryptedKey, str | None]]:
        """Every key with its device's name, newest first."""

    async def remember_versions(self) -> int:
        """From now on refuse rows that are older than the audit record says; how many it tells of.

        Reads the whole record, some at a time.
        """

    async def count_signing_keys(self) -> tuple[int, int]:
        """Return the number of rows, and of those that this server, or one with its secret, wrote."""

    async def server_keys(self) -> Sequence[EncryptedKey]:
        """The keys that belong to no device: signing keys and open exchange keys, newest first."""

    async def rotate_keys(self, kids: Sequence[str], at: datetime, audit: AuditEntry) -> None:
        """Mark keys as rotated."""

    async def add_ek_root(self, root: EkRoot, audit: AuditEntry) -> None:
        """Trust a certificate; one that is trusted already stays."""

    async def find_ek_roots(self, subject: bytes, fingerprint: str) -> Sequence[EkRoot]:
        """The trust anchors with that subject or fingerprint, and those whose subject is not known."""

    async def list_ek_roots(self) -> Sequence[EkRoot]:
        """Every trusted certificate."""

    async def remove_ek_root(self, fingerprint: str, audit: AuditEntry) -> None:
        """Trust a certificate no longer.  Raises ``not-found``."""

    async def list_audit(
        self, device: str | None = None, limit: int = 100, before: int | None = None
    ) -> Sequence[tuple[int, AuditEntry]]:
        """The newest first, with their row numbers; with *before* only those with a lower one."""

    # the chain over the audit record: protocol/audit_chain.py
    async def newest_seal(self) -> Seal | None:
        """The head of the chain.  Raises ``audit-changed`` when it is not what a seal can be."""

    async def list_seals(self, after: int, limit: int) -> Sequence[Seal]:
        """Seals with a number above *after*, in order.  Raises ``audit-changed`` for what cannot be a seal."""

    async def add_seal(self, seal: Seal) -> bool:
        """Add *seal*; false when there is one of its number."""

    async def final_audit_id(self, after: int | None) -> int | None:
        """An id above *after* up to which every row can be seen and none can come any more.

        ``None`` when there is no row above *after*, or when somebody has been writing for too long: ask again later.
        """

    async def list_audit_rows(self, after: int | None, up_to: int, limit: int) -> Sequence[Row]:
        """Rows as they are sealed, with an id above *after* and not above *up_to*, by id."""

    async def unsealed_audit(self, after: int | None) -> tuple[int, datetime | None]:
        """How many rows have an id above *after*, and the time of the oldest."""

    async def prune(self, before: datetime) -> int:
        """Forget nonces that expired before *before*; how many."""

    async def close(self) -> None:
        """Finish what is under way and release the database."""
