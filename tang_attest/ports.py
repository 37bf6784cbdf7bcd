"""What the use cases need from the world, as Protocols; the edges (``store``, ``keys``, ``cli``) provide it.

Records are plain frozen values.  Times are aware UTC datetimes.  Digests and public structures are bytes,
private keys only ever appear *sealed*.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Protocol

from tang_attest.protocol.audit_chain import Row, Seal
from tang_attest.protocol.cap import Opened, untold
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.exchange import Multiplier
from tang_attest.protocol.pcr import PcrValues, Selection
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.policy_change import PolicyChange
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.rollout import Rollout, RolloutOutcome, Status
from tang_attest.protocol.rules import RuleSet
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.verification import Outcome


class Clock(Protocol):
    """The time."""

    def now(self) -> datetime:
        """Now, aware, UTC."""


class Randomness(Protocol):
    """Random bytes fit for keys."""

    def bytes(self, count: int) -> bytes:
        """*count* fresh bytes."""


# --- what is stored ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One decision or change: who, when, what, about whom, and why.

    ``event`` is a short verb phrase (``unlock``, ``enroll``, ``device remove``), ``actor`` a person
    (``operator:NAME``) or a machine (``device:NAME``), ``verdict`` ``permitted``, ``refused`` or ``done``,
    ``code`` a code of :mod:`tang_attest.errors` or ``ok``, ``details`` JSON-compatible, without secrets.
    """

    at: datetime
    event: str
    actor: str
    verdict: str
    code: str = "ok"
    device: str | None = None
    kid: str | None = None
    address: str | None = None
    request_id: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a machine quoted: the values of *selection*, and the event log it sent (or nothing)."""

    selection: Selection
    values: PcrValues
    event_log: bytes = b""


@dataclass(frozen=True, slots=True)
class NewEvidence:
    """What an initrd quoted, whether the policy permitted it, and the grade of its measurements."""

    snapshot: Snapshot
    permitted: bool
    grade: Mapping[str, object] | None = None

    @property
    def digest(self) -> bytes:
        """32 bytes that tell two boots apart, except for what their logs say of PCRs that were not quoted."""
        quoted = self.snapshot
        # 2: graded with a look at what is not measured; evidence that was graded before is graded anew.
        head = f"2\n{quoted.selection}\n{bool(quoted.event_log)}\n{self.permitted}\n".encode()
        return hashlib.sha256(head + b"".join(quoted.values[pcr] for pcr in quoted.selection.pcrs)).digest()


@dataclass(frozen=True, slots=True)
class Learning:
    """One armed learning use: until when, and the values that must not differ (by PCR)."""

    until: datetime
    stable: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Suspension:
    """Why a device's exchange keys answer nobody; ``by`` is an audit actor."""

    at: datetime
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the verification of a running machine stands.

    ``since`` is when ``outcome`` and ``code`` became what they are, ``answered_at`` when the running system last gave
    authentic evidence, ``verified_at`` when evidence was last good (a permitted unlock is), ``wanted_at`` when an
    operator asked for a round that has not been.
    """

    outcome: Outcome | None = None
    code: str | None = None
    since: datetime | None = None
    answered_at: datetime | None = None
    verified_at: datetime | None = None
    wanted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """A machine's statement about the disks of one boot: the time, and the TPM's reset counter in that boot."""

    at: datetime
    reset_count: int
    opened: Opened


@dataclass(frozen=True, slots=True)
class Reach:
    """A TPM that this machine can ask itself: a TCTI, such as a virtual machine's, and the AK's handle there."""

    tcti: str
    ak_handle: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """A machine as it is added.

    ``ak_public`` is its TPM2B_PUBLIC (empty when only ``ak_spki`` is known, see ``device register --pem``),
    ``origin`` ``enrolled`` or ``registered``.  ``opened_reset_count`` is the TPM's reset counter when it last ran
    with open disks: at enrollment, and at each permitted unlock.  ``verified_only`` devices have no exchange key, and may
    share an AK with each other.
    """

    name: str
    ak_public: bytes
    ak_name: bytes
    ak_spki: bytes
    ak_scheme: str
    ak_hash: str
    ek_spki: bytes | None
    ek_certificate: bytes | None
    ek_verified: bool
    ek_issuer: str | None
    origin: str
    enrolled_at: datetime
    clock: ClockInfo | None = None
    learning: Learning | None = None
    opened_reset_count: int | None = None
    labels: tuple[str, ...] = ()
    reach: Reach | None = None
    verified_only: bool = False

    @property
    def holder(self) -> str:
        """As its exchange keys name it."""
        return holder(self.ak_name, self.ak_spki)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device(NewDevice):
    """A registered machine.

    ``kids`` are its exchange keys, newest first; ``last_state`` the label of the reference state that its last
    permitted unlock met, ``running_policy`` the policy it is verified against while it runs (none: its own, capped),
    ``allowed_until`` the end of a person's word that it may unlock, ``labels`` words that rollouts and listings choose
    by, ``grade`` what
    :mod:`tang_attest.protocol.grade` says of its newest evidence, ``evidence_digest`` that evidence's
    :attr:`NewEvidence.digest`, ``told`` what its running system told last of its disks, ``learned_reset_count`` the
    TPM's reset counter in the boot whose state was learned: that boot opens nothing.
    """

    id: int
    policy: str
    last_seen_at: datetime | None = None
    last_code: str | None = None
    last_state: str | None = None
    grade: Mapping[str, object] | None = None
    evidence_digest: bytes | None = None
    kids: tuple[str, ...] = ()
    running_policy: str | None = None
    suspension: Suspension | None = None
    allowed_until: datetime | None = None
    standing: Standing = Standing()
    told: Told | None = None
    learned_reset_count: int | None = None

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """Inputs that may steer its boot although nothing measures them, by its newest evidence."""
        found = (self.grade or {}).get("unmeasured")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def disks(self) -> Opened:
        """The way in which the newest boot opened its disks, as far as that boot told."""
        if self.told is None:
            return untold("its running system told nothing yet")
        if self.clock is not None and self.clock.reset_count != self.told.reset_count:
            return untold("it booted since it told, and told nothing of that boot yet")
        return self.told.opened


#: The holder of a key that serves no device: a signing key, or an open exchange key (plain Tang).
OPEN: Final = "open"


def holder(ak_name: bytes, ak_spki: bytes) -> str:
    """The machine that an exchange key answers, as the sealed key itself names it: its AK's Name, and its AK's key."""
    return f"{ak_name.hex()}:{hashlib.sha256(ak_spki).hexdigest()}"


@dataclass(frozen=True, slots=True)
class SealedKey:
    """An exchange or signing key at rest: ``sealed`` is a compact JWE around its PKCS #8 DER, or around what the
    server's TPM has wrapped for itself.

    ``use`` is ``exchange`` or ``sign``; ``public`` the public JWK (crv, kty, x, y).  A rotated key is still
    used for what was bound to it, and advertised no longer.  ``holder`` is whom it serves, by the device's row as it
    is now (:func:`holder`): the key opens only if it was sealed for the same.
    """

    kid: str
    use: str
    curve: str
    public: Mapping[str, str]
    sealed: str
    created_at: datetime
    rotated_at: datetime | None = None
    holder: str = OPEN


@dataclass(frozen=True, slots=True)
class BoundKey:
    """An exchange key and whom it serves: a device under its policy, or (open key, plain Tang) anybody.

    ``rollout`` is the policy's that is not over, ``outcome`` how the device fared under it.
    """

    key: SealedKey
    device: Device | None
    policy: ReferencePolicy | None
    rollout: Rollout | None = None
    outcome: RolloutOutcome | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A one-time enrollment token as the operator made it; the store knows only the SHA-256 of its text.

    Either ``policy`` names an existing policy, or ``record`` is true and a policy of ``selection`` is made from
    the first quote.  ``name`` restricts the token to one device name.
    """

    digest: bytes
    created_at: datetime
    created_by: str
    expires_at: datetime
    name: str | None
    policy: str | None
    record: bool
    selection: Selection
    cap_pcr: int
    allow_unverified_ek: bool
    force: bool
    learn_for_s: int
    labels: tuple[str, ...] = ()
    used_at: datetime | None = None
    revoked_at: datetime | None = None


class Scope(StrEnum):
    """What an admin token may be good for."""

    READ = "read"  # see devices, policies, observations, the audit record
    STAGE = "stage"  # add values that no machine has shown yet
    APPROVE = "approve"  # approve what a machine showed or announced, retire and restore states


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminToken:
    """A bearer token of the admin API; the store knows only the SHA-256 of its text.

    ``policies`` are the names of those it is limited to, or ``None``: every policy.
    """

    digest: bytes
    name: str
    scopes: tuple[Scope, ...]
    policies: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """Authentic evidence that the policy refused: what a person may approve.  ``code`` is why it was refused."""

    id: int
    device: str
    at: datetime
    snapshot: Snapshot
    code: str
    reset_count: int


@dataclass(frozen=True, slots=True)
class LastEvidence:
    """What a device last quoted in its initrd."""

    device: str
    at: datetime
    snapshot: Snapshot
    permitted: bool


@dataclass(frozen=True, slots=True)
class PastVerification:
    """How a round of verification ended; of rounds that end alike only the first is kept, and those asked for."""

    device: str
    at: datetime
    outcome: Outcome
    code: str
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Watched:
    """A policy whose machines are verified continuously, or that has other conditions."""

    policy: str
    conditions: Conditions


@dataclass(frozen=True, slots=True)
class EkRoot:
    """A trust anchor for EK certificates: DER, its SHA-256 in hex, and the operator's label.

    ``subject`` is :func:`tang_attest.protocol.endorsement.subject_digest` of it, by which it is looked up.
    """

    fingerprint: str
    label: str
    der: bytes
    added_at: datetime
    subject: bytes | None = field(default=None, compare=False)


# --- what changes together ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """How one device fared under a rollout: ``about`` is the state that permitted, or the code of the refusal."""

    rollout: Rollout
    outcome: RolloutOutcome
    about: str


@dataclass(frozen=True, slots=True)
class RolloutDevice:
    """A device that passed under a rollout or was refused; see :class:`RolloutResult`."""

    device: str
    outcome: RolloutOutcome
    about: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Basis:
    """The basis of a permit beside a reference state and the policy's conditions; compared again when it is written."""

    rules: RuleSet | None
    rollout: Rollout | None
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """Everything one appraisal writes, in one transaction.

    ``nonce_digest`` is the SHA-256 of the nonce's text; ``clock`` the clock of the (authentic) quote; ``behind_ms`` is
    how far that may be behind the newest evidence of the same boot: the quote was compared with what was accepted before
    its nonce was made; ``met`` the
    state that permitted it; ``observation`` a refused quote; ``learned`` the state that an armed learning use made;
    ``evidence`` what was quoted, when it is not what the store has of this device already; ``rollout`` what this says
    about the rollout of its policy, when it says something new; ``basis`` what a permit was given by.
    ``replay_in_full`` is false when so many refusals about the key were written that a further use of a nonce is only
    counted, by whoever made this.
    """

    device_id: int
    nonce_digest: bytes
    nonce_expires_at: datetime
    clock: ClockInfo
    audit: AuditEntry
    met: ReferenceState | None = None
    observation: Snapshot | None = None
    learned: ReferenceState | None = None
    evidence: NewEvidence | None = None
    rollout: RolloutResult | None = None
    behind_ms: int = 0
    basis: Basis | None = None
    replay_in_full: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """Everything one round of verification writes, in one transaction.

    ``clock`` is that of the authentic quote, and ``None`` without one that may move the device's; then the round is
    written only if nothing authentic came since ``silent_since``.  ``behind_ms`` is as in :class:`Decision`.
    ``answer_digest`` is the SHA-256 by which the same evidence is known again until ``answer_expires_at``, ``None`` of a
    round without evidence.  ``suspend`` is what the policy wants to happen now,
    ``notify`` the ``hook:NAME`` and ``webhook:URL`` to tell when this changes how the device stands.  ``told`` is what
    the machine told of its disks; ``None`` without an authentic quote.
    """

    device_id: int
    at: datetime
    outcome: Outcome
    code: str
    details: Mapping[str, object]
    clock: ClockInfo | None = None
    silent_since: datetime | None = None
    behind_ms: int = 0
    answer_digest: bytes | None = None
    answer_expires_at: datetime | None = None
    suspend: Suspension | None = None
    notify: tuple[str, ...] = ()
    told: Told | None = None


@dataclass(frozen=True, slots=True)
class ImaRequirement:
    """What :meth:`tang_attest.protocol.ima.Requirement.as_json` made, and its digest."""

    digest: str
    document: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Notification:
    """Somebody to tell: ``action`` is ``hook:NAME`` or ``webhook:URL``, ``body`` JSON-compatible."""

    id: int
    action: str
    body: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Change:
    """What a :class:`Verification` changed: the outcome or its code, and whether the device was suspended now."""

    outcome: bool
    suspended: bool


@dataclass(frozen=True, slots=True)
class Enrollment:
    """Everything one enrollment writes, in one transaction.  Exactly one of ``new_policy``, ``policy`` is given.

    ``evidence`` is what the initrd would have quoted before this first quote.
    """

    token_digest: bytes
    device: NewDevice
    key: SealedKey
    audit: AuditEntry
    new_policy: ReferencePolicy | None = None
    policy: str | None = None
    evidence: NewEvidence | None = None


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

    async def verify(self, verification: Verification) -> Change | None:
        """Write the end of a round; ``None`` when evidence came since ``silent_since``.

        Raises ``nonce-used`` for evidence that was written before, ``clock-backwards`` when newer evidence was written
        meanwhile and this one is further behind than it may be, ``key-unknown`` when the device is gone.
        """

    async def find_ima_requirement(self, digest: str) -> ImaRequirement | None:
        """What a policy requires."""

    async def ima_progress(self, device_id: int) -> Mapping[str, Any] | None:
        """How far a device's list was read: :meth:`tang_attest.protocol.ima.Progress.as_json`."""

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
        self, device: NewDevice, policy: str | ReferencePolicy, key: SealedKey | None, audit: AuditEntry
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

    async def list_verifications(self, device: str, limit: int = 100) -> Sequence[PastVerification]:
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

    async def move_rollout(self, rollout: Rollout, to: Status, why: str | None, audit: AuditEntry) -> None:
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

    async def add_key(self, key: SealedKey, device: str | None, audit: AuditEntry) -> None:
        """Add a signing key or an exchange key (an open one, or a further one of *device*)."""

    async def list_keys(self) -> Sequence[tuple[SealedKey, str | None]]:
        """Every key with its device's name, newest first."""

    async def remember_versions(self) -> int:
        """From now on refuse rows that are older than the audit record says; how many it tells of.

        Reads the whole record, some at a time.
        """

    async def count_signing_keys(self) -> tuple[int, int]:
        """Return the number of rows, and of those that this server, or one with its secret, wrote."""

    async def server_keys(self) -> Sequence[SealedKey]:
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


class Courier(Protocol):
    """Tells programs and web servers."""

    async def deliver(self, action: str, body: bytes) -> None:
        """Give *body* (JSON) to *action* (``hook:NAME``, ``webhook:URL``).  Raises :class:`Unavailable`."""


class KeyStore(Protocol):
    """Private keys: made, sealed and opened."""

    def create(self, use: str, curve: str, now: datetime) -> SealedKey:
        """A new key of *curve* (``P-256``, ``P-384``, ``P-521``), made in this process."""

    async def create_exchange(self, curve: str, now: datetime, holder: str) -> SealedKey:
        """A new exchange key for *holder*: in the server's TPM, if it uses one, on the TPM's strongest curve; else on *curve*.

        Raises ``server-tpm-unavailable``.
        """

    async def check_tpm(self) -> None:
        """Raise ``server-tpm-unavailable`` when the server uses a TPM and that does not answer."""

    def is_in_tpm(self, key: SealedKey) -> bool:
        """Whether only a TPM can use *key*; told without opening it."""

    def open_exchange(self, key: SealedKey) -> Multiplier:
        """The exchange key, ready for use.

        Raises ``internal`` when it was sealed under another secret, ``registry-tampered`` when for another holder.
        """
