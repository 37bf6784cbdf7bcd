"""One screen of an installation: machines that want a person, changes on their way, and the ends to come."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

from cryptography import x509

from tang_attest.errors import action_for
from tang_attest.ports.admin import AdminToken
from tang_attest.ports.enrollment import EkRoot, Token
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device
from tang_attest.ports.policies import Observation
from tang_attest.ports.store import HasAdminTokens, HasDevices, HasEnrollment, HasKeys, HasPolicies, if_ours
from tang_attest.protocol.changes.rollout import WHOLE, Rollout, RolloutPhase
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import COUNTING, Life, ReferenceState
from tang_attest.protocol.verification import RoundOutcome

#: A credential that ends sooner wants a person.
_TOKEN_SOON: Final = timedelta(days=7)
#: So does a certificate: vendors and authorities take their time.
CERTIFICATE_SOON: Final = timedelta(days=14)
_ROOT_SOON: Final = timedelta(days=90)
#: Observations that are read; older ones belong to machines that were refused again since.
_OBSERVATIONS: Final = 500


class Topic(StrEnum):
    """Part of the screen, in its order."""

    REFUSED = "refused"
    SUSPENDED = "suspended"
    SILENT = "silent"
    WAITING = "waiting"
    ROLLOUT = "rollout"
    ENDS = "ends"
    DATABASE = "database"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One line: ``name`` is a machine's, or that of the thing that ends; ``at`` is since when, or until when.

    ``attention`` is true when it wants a person, who finds the next step in ``action``.
    """

    topic: Topic
    name: str
    sentence: str
    at: datetime | None
    attention: bool
    action: str = ""


class OverviewStore(HasAdminTokens, HasDevices, HasEnrollment, HasKeys, HasPolicies, Protocol):
    """The roles of the store that the overview reads."""


async def overview(store: OverviewStore, now: datetime) -> tuple[int, list[Notice]]:
    """Return the number of machines, and the notices in the order of their topics.  Raises errors of the store."""
    devices = await store.devices.list_devices()
    policies = await store.policies.list_policies()
    rollouts = [await if_ours(store.policies.get_rollout(policy.name)) for policy in policies]
    notices = [
        *_machines(devices, await store.policies.list_observations(limit=_OBSERVATIONS)),
        *(notice for policy in policies for notice in _states(policy, now)),
        *_rollouts(rollout for rollout in rollouts if rollout is not None),
        *_tokens(await store.enrollment.list_tokens(), now),
        *_admin_tokens(await store.admin_tokens.list_admin_tokens(), now),
        *root_ends(await store.enrollment.list_ek_roots(), now),
        *_ek_certificates(devices),
        *_rotated(await store.keys.list_keys()),
    ]
    return len(devices), in_order(notices)


class CountingStore(OverviewStore, Protocol):
    """A store that counts the rows which it did not write."""

    def tampered(self) -> Mapping[str, int]:
        """Count the reads of rows that this server did not write, by table."""


async def whole_overview(store: CountingStore, now: datetime) -> tuple[int, list[Notice]]:
    """Return :func:`overview`, and a notice of each table that has rows which this server did not write.

    Those rows are in no other notice.
    """
    before = store.tampered()
    machines, notices = await overview(store, now)
    foreign = [
        Notice(
            topic=Topic.DATABASE,
            name=f"table {table}",
            sentence="has rows that this server did not write; they are left out here (registry-tampered)",
            at=None,
            attention=True,
            action="see them with 'tang-attest doctor' and 'tang-attest audit verify', and find out who wrote to the database",
        )
        for table, count in store.tampered().items()
        if count > before.get(table, 0)
    ]
    return machines, in_order([*notices, *foreign])


def in_order(notices: Iterable[Notice]) -> list[Notice]:
    """Return *notices* by topic; what wants a person comes first, then what is next in time."""
    topics = list(Topic)
    latest = datetime.max.replace(tzinfo=UTC)
    return sorted(notices, key=lambda n: (topics.index(n.topic), not n.attention, n.at or latest, n.name))


def ends(name: str, what: str, until: datetime, now: datetime, *, soon: timedelta, action: str) -> Notice:
    """Return the notice of *what*, which is good *until* then; it wants a person when that is *soon* or past."""
    over = until <= now
    attention = until - now < soon
    sentence = f"{what} has expired" if over else f"{what} expires"
    return Notice(
        topic=Topic.ENDS,
        name=name,
        sentence=sentence,
        at=until,
        attention=attention,
        action=action if attention else "",
    )


# --- machines -----------------------------------------------------------------------------------------------


def _machines(devices: Sequence[Device], observations: Sequence[Observation]) -> Iterator[Notice]:
    newest: dict[str, Observation] = {}
    for observation in observations:  # newest first
        newest.setdefault(observation.device, observation)
    for device in devices:
        yield from _machine(device, newest.get(device.name))


def _machine(device: Device, observation: Observation | None) -> Iterator[Notice]:
    if device.suspension is not None:
        yield Notice(
            topic=Topic.SUSPENDED,
            name=device.name,
            sentence=f"suspended by {device.suspension.by}: {device.suspension.reason}",
            at=device.suspension.at,
            attention=True,
            action=_hint("device-suspended", device),
        )
    if device.last_code not in (None, "ok"):
        code = str(device.last_code)
        yield _refused(device, f"its last boot was refused: {code}", code, device.last_seen_at)
        if observation is not None:
            yield Notice(
                topic=Topic.WAITING,
                name=device.name,
                sentence=f"observation {observation.id} waits for an approval: {observation.code}",
                at=observation.at,
                attention=True,
                action=f"see it with 'tang-attest observation show {observation.id}', then run 'tang-attest approve {device.name}'",
            )
    standing = device.standing
    if standing.outcome is RoundOutcome.REFUSED:
        code = standing.code or "pcr-mismatch"
        refused = _refused(device, f"its running system was refused: {code}", code, standing.since)
        # An approval of values helps only some of these refusals; the history has every reason.
        yield replace(refused, action=f"see the reasons with 'tang-attest device history {device.name}'")
    if standing.outcome is RoundOutcome.UNREACHABLE:
        yield Notice(
            topic=Topic.SILENT,
            name=device.name,
            sentence="its running system gives no evidence",
            at=standing.since,
            attention=True,
            action=_hint("device-unreachable", device),
        )
    if device.last_seen_at is None:
        yield _waits(device.name, "was never seen: it opens nothing with this server yet", None)
    if device.learning is not None:
        yield _waits(device.name, "its next boot is learned", device.learning.until)
    if device.standing.wanted_at is not None:
        yield _waits(device.name, "a round was asked for and not held yet", device.standing.wanted_at)


def _refused(device: Device, sentence: str, code: str, at: datetime | None) -> Notice:
    action = _hint(code, device)
    return Notice(
        topic=Topic.REFUSED, name=device.name, sentence=sentence, at=at, attention=True, action=action
    )


def _hint(code: str, device: Device) -> str:
    """Return the action of *code* as a hint about *device*."""
    named = action_for(code, device.name, device.policy).rstrip(".")
    return named[:1].lower() + named[1:]


def _waits(name: str, sentence: str, at: datetime | None) -> Notice:
    return Notice(topic=Topic.WAITING, name=name, sentence=sentence, at=at, attention=False)


# --- policies -----------------------------------------------------------------------------------------------


def _states(policy: ReferencePolicy, now: datetime) -> Iterator[Notice]:
    for state in policy.states:
        subject = f"policy {policy.name}"
        if state.life is Life.PROPOSED:
            yield Notice(
                topic=Topic.WAITING,
                name=subject,
                sentence=f"announcement '{state.label}' waits for an approval",
                at=state.created_at,
                attention=True,
                action=f"see it with 'tang-attest policy staged', then run 'tang-attest policy stage {policy.name} --announced {shlex.quote(state.label)}'",
            )
        elif state.life is Life.STAGED:
            yield _waits(subject, f"state '{state.label}' is staged, and no machine booted it yet", None)
        if state.life in COUNTING:
            yield from _limits(policy.name, state, now)


def _limits(policy: str, state: ReferenceState, now: datetime) -> Iterator[Notice]:
    """Yield the ends of an approval with a limit; one that is over leaves a state that nothing boots by."""
    subject, action = (
        f"policy {policy}",
        f"run 'tang-attest policy retire {policy} {shlex.quote(state.label)}', or approve again",
    )
    until, uses = state.limits.expires_at, state.limits.uses_left
    if until is not None:
        # Its end is intended: only afterwards there is something to clean up.
        yield ends(subject, f"state '{state.label}'", until, now, soon=timedelta(0), action=action)
    if uses is not None:
        boots = "1 boot" if uses == 1 else f"{uses} boots"
        used_up = uses == 0
        yield Notice(
            topic=Topic.ENDS,
            name=subject,
            sentence=f"state '{state.label}' is used up"
            if used_up
            else f"state '{state.label}' has {boots} left",
            at=None,
            attention=used_up,
            action=action if used_up else "",
        )


def _rollouts(rollouts: Iterable[Rollout]) -> Iterator[Notice]:
    for rollout in rollouts:
        if rollout.over:
            continue
        stopped = rollout.status is RolloutPhase.STOPPED
        share = f"{rollout.share * 100 / WHOLE:g} % of the machines"
        audience = share if rollout.label is None else f"{share} and label '{rollout.label}'"
        why = f": {rollout.why}" if stopped and rollout.why else ""
        yield Notice(
            topic=Topic.ROLLOUT,
            name=f"policy {rollout.policy}",
            sentence=f"'{rollout.name}' {'was stopped' if stopped else 'runs'} at {audience}{why}",
            at=rollout.ended_at if stopped else rollout.started_at,
            attention=stopped,
            action=f"see 'tang-attest policy rollout status {rollout.policy}'" if stopped else "",
        )


# --- what ends ----------------------------------------------------------------------------------------------


def _tokens(tokens: Sequence[Token], now: datetime) -> Iterator[Notice]:
    """Yield the tokens that can still be used; one that is never used is no fault."""
    for token in tokens:
        if token.spent is None and token.revoked_at is None and token.expires_at > now:
            what = "a token to enroll with"
            if token.machines > 1:
                what += f" ({token.uses} of {token.machines} machines have)"
            yield ends(token.name or "any name", what, token.expires_at, now, soon=timedelta(0), action="")


def _admin_tokens(tokens: Sequence[AdminToken], now: datetime) -> Iterator[Notice]:
    for token in tokens:
        if token.revoked_at is None:
            action = "create another with 'tang-attest admin-token create', then revoke this one"
            yield ends(token.name, "admin token", token.expires_at, now, soon=_TOKEN_SOON, action=action)


def root_ends(roots: Sequence[EkRoot], now: datetime) -> Iterator[Notice]:
    """Yield the ends of the trust anchors of EK certificates."""
    for root in roots:
        until = x509.load_der_x509_certificate(root.der).not_valid_after_utc
        action = "add the vendor's newer certificate with 'tang-attest ek-root add'"
        yield ends(root.label, "trust anchor of EKs", until, now, soon=_ROOT_SOON, action=action)


def _ek_certificates(devices: Sequence[Device]) -> Iterator[Notice]:
    """Yield the ends of EK certificates: needed to enroll again, and for nothing else."""
    for device in devices:
        if device.ek_certificate:
            try:
                until = x509.load_der_x509_certificate(device.ek_certificate).not_valid_after_utc
            except ValueError:  # vendors' certificates are not all DER that this library reads
                continue
            yield Notice(
                topic=Topic.ENDS, name=device.name, sentence="EK certificate", at=until, attention=False
            )


def _rotated(keys: Sequence[tuple[EncryptedKey, str | None]]) -> Iterator[Notice]:
    for key, device in keys:
        if key.rotated_at is not None:
            yield Notice(
                topic=Topic.ENDS,
                name=device or "server",
                sentence=f"{key.use} key {key.kid} was rotated, and is not retired",
                at=key.rotated_at,
                attention=False,
            )
