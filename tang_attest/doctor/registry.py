"""Checks of the database: its health, the keys, the clock, trust anchors, and each device's last evidence."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from cryptography import x509

from tang_attest import store
from tang_attest.doctor.finding import Finding, failure, problem, warning, well
from tang_attest.errors import ACTIONS, TangAttestError, action_for
from tang_attest.ports.enrollment import EkRoot
from tang_attest.ports.keys import EncryptedKey
from tang_attest.ports.machines import Device
from tang_attest.ports.store import Store
from tang_attest.protocol.policy import ReferencePolicy

#: No installation is older; a board without a battery wakes up in 1970.
_MADE: Final = datetime(2025, 1, 1, tzinfo=UTC)
#: A clock that was corrected by less does no harm.
_SKEW: Final = timedelta(seconds=5)
#: A running server seals each second.
_SEALED_WITHIN: Final = timedelta(minutes=1)
#: The most rows that are named one by one.
_NAMED: Final = 20
_ROOT_ENDS_SOON: Final = timedelta(days=90)


_COVER_IT: Final = "see 'tang-attest eventlog coverage' for the selection that covers it; a boot chain that measures it may be needed"
_REACH_IT: Final = (
    "check the setting 'database': the path, owner and mode of its file, or the address of its server"
)
_MEASURE_IT: Final = "switch Secure Boot on there; else see with 'clevis attest status' that its initrd looks before systemd does"


class Grader(Protocol):
    """Completes the grades of devices."""

    async def __call__(self, store: Store, devices: Sequence[Device], /) -> list[Device]:
        """Return the devices, in their order."""


class Opener(Protocol):
    """Decrypts keys of the database."""

    def open_signer(self, key: EncryptedKey) -> object:
        """Decrypt a signing key.  Raises ``unavailable``."""

    def open_exchange(self, key: EncryptedKey) -> object:
        """Decrypt an exchange key.  Raises ``unavailable``."""


async def look_at_database(url: str) -> tuple[Finding, ...]:
    """Return the findings about the database at *url*: it can be used, and is whole."""
    try:
        status = await store.look(url)
        if status.mark is not None:
            raise status.mark.error()
        if wrong := _schema(status.schema, status.needed):
            return (wrong,)
        damages = await store.find_damage(url)
    except TangAttestError as error:
        cause = store.describe(error)
        sentence = (
            f"{error.sentence.rstrip('.')}: {store.place_of(url)}: {cause}" if cause else error.sentence
        )
        return (problem("database", sentence, _REACH_IT if cause else error.action),)
    if damages:
        action = (
            "stop the server, keep a copy of the file, and run 'tang-attest restore' with the newest backup"
        )
        return (problem("database", f"it is damaged: {damages[0]}", action),)
    if not status.flushes:
        return (
            problem("database", "the server runs with fsync=off", "switch fsync on: it may lose decisions"),
        )
    return (well("database", f"{status.server}, schema {status.schema}, whole"),)


def _schema(found: str | None, needed: str) -> Finding | None:
    if found is None:
        return problem("database", "it has no tables yet", ACTIONS["state-missing"])
    if found < needed:
        sentence = f"the schema is {found}, this program needs {needed}"
        return problem("database", sentence, ACTIONS["schema-old"])
    if found > needed:
        sentence = f"the schema is {found}, this program knows only {needed}"
        return problem("database", sentence, ACTIONS["schema-new"])
    return None


async def look_at_rows(url: str, key: bytes) -> list[Finding]:
    """Check that rows that decide something are this server's own, and as new as the audit record says."""
    try:
        found = await store.check_rows(url, key)
    except TangAttestError as error:
        return [failure("rows", error)]
    if not found.findings:
        return [well("rows", f"{found.rows} rows are this server's own, and as new as the audit record says")]
    named = [problem("rows", each.sentence, ACTIONS["registry-tampered"]) for each in found.findings[:_NAMED]]
    if more := len(found.findings) - len(named):
        named.append(problem("rows", f"{more} more are not as they should be", ACTIONS["registry-tampered"]))
    return named


async def look_at_records(
    store: Store, opener: Opener, now: datetime, grade: Grader | None = None
) -> list[Finding]:
    """Return the findings about keys, clock, trust anchors and devices; the database can be used.

    *grade* completes grades that an older version stored.
    """
    devices = await store.devices.list_devices()
    if grade is not None:
        devices = await grade(store, devices)
    policies = {policy.name: policy for policy in await store.policies.list_policies()}
    newest = await store.audit.list_audit(limit=1)
    return [
        _keys(await store.keys.server_keys(), await store.keys.count_signing_keys(), opener),
        _clock(newest[0][1].at if newest else None, now),
        await _sealing(store, now),
        *_roots(await store.enrollment.list_ek_roots(), now),
        *_devices(devices, policies, now),
    ]


def _keys(keys: Sequence[EncryptedKey], signing: tuple[int, int], opener: Opener) -> Finding:
    there, ours = signing
    try:
        for key in keys:
            (opener.open_signer if key.use == "sign" else opener.open_exchange)(key)
        foreign = bool(there) and not ours
    except TangAttestError:
        foreign = True
    if foreign:
        return problem(
            "server keys",
            "a key does not open: the key-encryption key is another one than the database's",
            "put the kek of this database into the state directory; backups of both belong together",
        )
    if not any(key.use == "sign" and key.rotated_at is None for key in keys):
        return problem("server keys", "there is no signing key", "run 'tang-attest keys rotate'")
    return well("server keys", f"{len(keys)} open")


def _clock(newest: datetime | None, now: datetime) -> Finding:
    action = "correct the clock, and let it be kept (systemd-timesyncd, chrony)"
    if now < _MADE:
        return problem("clock", f"it says {now:%Y-%m-%d}", action)
    if newest is not None and newest > now + _SKEW:
        sentence = f"it is {newest - now} behind the newest entry of the audit record"
        return problem("clock", sentence.split(".", maxsplit=1)[0], action)
    return well("clock", "it is not behind the audit record")


async def _sealing(store: Store, now: datetime) -> Finding:
    """Check that the audit record is sealed up to its newest rows; verifying the seals would take long."""
    try:
        head = await store.audit.newest_seal()
    except TangAttestError as error:
        return failure("audit record", error)
    count, oldest = await store.audit.unsealed_audit(head.last_id if head else None)
    if oldest is not None and now - oldest > _SEALED_WITHIN:
        sentence = f"its newest {count} rows are not sealed, the oldest since {oldest:%Y-%m-%d %H:%M:%S} UTC"
        return warning("audit record", sentence, ACTIONS["audit-unsealed"])
    return well(
        "audit record", "no row has waited for its seal for long; 'tang-attest audit verify' checks the seals"
    )


def _roots(roots: Sequence[EkRoot], now: datetime) -> Iterator[Finding]:
    for root in roots:
        until = x509.load_der_x509_certificate(root.der).not_valid_after_utc
        subject = f"ek-root {root.label}"
        action = "add the vendor's newer certificate with 'tang-attest ek-root add'"
        if until <= now:
            yield warning(
                subject, f"it has expired on {until:%Y-%m-%d}: no TPM of it can be enrolled", action
            )
        elif until - now < _ROOT_ENDS_SOON:
            yield warning(subject, f"it ends on {until:%Y-%m-%d}", action)
        else:
            yield well(subject, f"it is good until {until:%Y-%m-%d}")


def _devices(
    devices: Sequence[Device], policies: Mapping[str, ReferencePolicy], now: datetime
) -> Iterator[Finding]:
    healthy = 0
    for device in devices:
        policy = policies.get(device.policy)
        # Rows of the policy that are not ours have findings of their own.
        found = [] if policy is None else list(_device(device, policy, now))
        healthy += policy is not None and not found
        yield from found
    yield well("devices", f"{healthy} of {len(devices)} are well" if devices else "there is none yet")


def _device(device: Device, policy: ReferencePolicy, now: datetime) -> Iterator[Finding]:
    subject = f"device {device.name}"
    mine = [state for state in policy.states if state.concerns(device.name)]
    if (
        policy.rules is None
        and not any(state.obstacle(now) is None for state in mine)
        and not device.learning
    ):
        yield problem(subject, f"policy '{policy.name}' permits it nothing", ACTIONS["policy-empty"])
    for state in mine:
        if (obstacle := state.obstacle(now)) is not None and obstacle.code in (
            "state-expired",
            "state-used-up",
        ):
            action = (
                f"run: tang-attest policy retire {policy.name} {shlex.quote(state.label)}; or approve again"
            )
            yield warning(subject, obstacle.sentence, action)
    if device.suspension is not None:
        action = action_for("device-suspended", device.name)
        yield warning(subject, f"it is suspended: {device.suspension.reason}", action)
    if device.last_seen_at is None:
        yield warning(
            subject, "it was never seen", "bind a disk and boot it once, while a passphrase is at hand"
        )
    elif device.last_code not in (None, "ok"):
        when = f"{device.last_seen_at:%Y-%m-%d %H:%M:%S} UTC"
        action = action_for(device.last_code, device.name, device.policy)
        yield warning(subject, f"it was refused last, {when}: {device.last_code}", action)
    yield from _unmeasured(subject, device)
    if not device.ek_verified:
        sentence = "no certificate proves that its TPM is one"
        yield warning(subject, sentence, "enroll it again with its EK certificate, if its TPM has one")


def _unmeasured(subject: str, device: Device) -> Iterator[Finding]:
    """Software that may be another without a change of any value; accepted gaps are in ``device list``."""
    for part in device.uncovered:
        if part not in device.accepted_uncovered:
            sentence = f"nothing covers the {part.words} of its boot, so another one opens its disks ({device.coverage})"
            yield warning(subject, sentence, _COVER_IT)
    for sentence in device.unmeasured:
        yield warning(subject, sentence, _MEASURE_IT)
