"""Devices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.errors import Conflict, Malformed, NotFound
from tang_attest.ports.machines import (
    Device,
    DeviceSearch,
    Learning,
    NewDevice,
    OpenedReport,
    Reach,
    Suspension,
    VerificationStatus,
)
from tang_attest.protocol import cap
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.signed_values.signed_state import load_signed_state
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.protocol.values.labels import check_labels
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.composed import Composed
from tang_attest.store.database.sql import among
from tang_attest.store.database.types import dump_pcrs, load_pcrs
from tang_attest.store.records import policies

_device = tables.device

#: Greatest age of a device's newest evidence for each word; the rest is ``before`` or ``never``.
_AGES: Final = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
_key = tables.sealed_key
_state = tables.reference_state

#: The columns of :class:`Device` that have the same name and type in the table.
_PLAIN: Final = (
    "id",
    "name",
    "ak_public",
    "ak_name",
    "ak_spki",
    "ak_scheme",
    "ak_hash",
    "ek_spki",
    "ek_certificate",
    "ek_verified",
    "ek_issuer",
    "origin",
    "enrolled_at",
    "last_seen_at",
    "last_code",
    "opened_reset_count",
    "last_state",
    "grade",
    "evidence_digest",
    "running_policy",
    "allowed_until",
    "learned_reset_count",
)

#: The parts that a grade may name.
_PARTS: Final = frozenset(BootPart)

#: Begins the `ak_spki` of a row whose AK is in `shared_ak_spki`; no SubjectPublicKeyInfo begins so.
_NO_KEY: Final = b"shared "

_KIDS: Final = Composed(
    sa.select(_key.c.device_id, _key.c.kid)
    .where(among(_key.c.device_id, "ids"), _key.c.retired_at.is_(None))
    .order_by(_key.c.created_at.desc(), _key.c.kid),
    "ids",
)


def add(connection: sa.Connection, device: NewDevice, policy_id: int) -> int:
    """Add *device*; its id.  Raises ``name-taken`` and ``device-exists``.

    Not checked: two transactions at once may give the same AK to a device with an exchange key and to one
    without.
    """
    row = {name: getattr(device, name) for name in _PLAIN if hasattr(device, name)}
    row |= clock_columns(device.clock) | {"learning": dump_learning(device.learning), "policy_id": policy_id}
    row |= {"labels": list(device.labels)}
    if device.verified_only:
        row |= {"ak_spki": _no_key(device.name), "shared_ak_spki": device.ak_spki}
    if device.reach is not None:
        row |= {"tcti": device.reach.tcti, "ak_handle": device.reach.ak_handle}
    rival = _rival(connection, device)
    if rival is None and (inserted := authentic.insert(connection, _device, row)) is not None:
        return int(inserted["id"])
    if connection.scalar(sa.select(_device.c.id).where(_device.c.name == device.name)) is not None:
        raise Conflict("name-taken", f"There is a device '{device.name}' already.")
    raise Conflict(
        "device-exists", f"Device '{rival or _owner(connection, device)}' has this TPM key already."
    )


def naming(row: authentic.Row, name: str) -> dict[str, object]:
    """The columns that hold *name* for the device of *row*."""
    return {"name": name} if row["shared_ak_spki"] is None else {"name": name, "ak_spki": _no_key(name)}


def _no_key(name: str) -> bytes:
    """A value for `ak_spki` that no other device has."""
    return _NO_KEY + name.encode()


def load(connection: sa.Connection, *names: str) -> list[Device]:
    """The devices *names*, or all of them, by name; without rows that are not ours."""
    return _load(connection, *([_device.c.name.in_(names)] if names else []))


def search(connection: sa.Connection, wanted: DeviceSearch) -> list[Device]:
    """The devices that meet *wanted*, by name; the database chooses them."""
    where: list[sa.ColumnElement[bool]] = []
    if wanted.policies:
        where.append(tables.policy.c.name.in_(wanted.policies))
    # Labels are a JSON list of words without quotes.
    labels = sa.type_coerce(_device.c.labels, sa.Text())
    where += [labels.contains(f'"{label}"', autoescape=True) for label in wanted.labels]
    if wanted.refused:
        boot = sa.and_(_device.c.last_code.is_not(None), _device.c.last_code != "ok")
        round_ = sa.and_(_device.c.outcome.is_not(None), _device.c.outcome == RoundOutcome.REFUSED.value)
        where.append(sa.or_(boot, round_, _device.c.suspended_at.is_not(None)))
    if wanted.silent_since is not None:
        times = (_device.c.enrolled_at, _device.c.last_seen_at, _device.c.answered_at)
        where += [sa.or_(at.is_(None), at < wanted.silent_since) for at in times]
    return _load(connection, *where)


def choose(
    connection: sa.Connection,
    *where: sa.ColumnElement[bool],
    newest: sa.Column[datetime] | None = None,
    limit: int,
) -> list[Device]:
    """At most *limit* devices that meet *where*: those with the *newest* time, or else by name."""
    return _load(connection, *where, order=_device.c.name if newest is None else newest.desc(), limit=limit)


def _load(
    connection: sa.Connection,
    *where: sa.ColumnElement[bool],
    order: sa.ColumnElement[Any] = _device.c.name,
    limit: int | None = None,
) -> list[Device]:
    query = sa.select(*authentic.form(_device).raw, tables.policy.c.name.label("policy_name"))
    query = query.join(tables.policy).where(*where).order_by(order).limit(limit)
    found = authentic.ours(connection, _device, connection.execute(query).all())
    rows = [(row, values.policy_name) for row, values in found]
    kids = kids_of(connection, [row["id"] for row, _ in rows])
    return [from_row(row, policy, kids[row["id"]]) for row, policy in rows]


def get(connection: sa.Connection, name: str) -> Device:
    """The device *name*.  Raises ``not-found``, ``registry-tampered``."""
    for device in load(connection, name):
        return device
    authentic.load(connection, _device, _device.c.name == name)
    raise NotFound("not-found", f"There is no device '{name}'.")


def seen(connection: sa.Connection, now: datetime) -> dict[str, int]:
    """The number of devices by when they last gave evidence; every word is there."""
    at = _device.c.last_seen_at
    age = sa.case(
        (at.is_(None), "never"), *((at > now - span, word) for word, span in _AGES.items()), else_="before"
    ).label("age")
    rows = connection.execute(sa.select(age, sa.func.count().label("devices")).group_by(age))
    return dict.fromkeys((*_AGES, "before", "never"), 0) | {str(row.age): row.devices for row in rows}


def find_id(connection: sa.Connection, name: str) -> int:
    """The id of the device *name*.  Raises ``not-found``."""
    device_id = connection.scalar(sa.select(_device.c.id).where(_device.c.name == name))
    if device_id is None:
        raise NotFound("not-found", f"There is no device '{name}'.")
    return int(device_id)


def remove(connection: sa.Connection, name: str) -> None:
    """Remove the device *name*, its keys, its evidence, states for it alone, and the policy that it recorded.

    The audit stays.  Raises ``not-found``.
    """
    query = sa.select(_device.c.id, _device.c.policy_id).where(_device.c.name == name)
    row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise NotFound("not-found", f"There is no device '{name}'.")
    authentic.delete(connection, _key, _key.c.device_id == row.id)
    for table in (tables.observation, tables.evidence, tables.rollout_device, tables.ima_progress):
        authentic.delete(connection, table, table.c.device_id == row.id)
    # A state for this device only would meet the next device that enrolls under its name.  One that it left behind
    # when it was moved would, too.
    authentic.delete(connection, _state, _state.c.device == name)
    authentic.delete(connection, _device, _device.c.id == row.id)
    policies.remove_recorded_for(connection, name)


def arm_learning(connection: sa.Connection, name: str, learning: Learning | None) -> None:
    """Arm the one learning use, or disarm it.  Raises ``not-found``."""
    change(connection, name, learning=dump_learning(learning))


def label(
    connection: sa.Connection, names: Collection[str], add: Collection[str], remove: Collection[str]
) -> None:
    """Add and remove labels of the devices *names*.  Raises ``not-found``, ``request-malformed``."""
    for name in sorted(names):

        def labelled(row: authentic.Row) -> dict[str, object]:
            return {"labels": list(check_labels((set(row["labels"]) - set(remove)) | set(add)))}

        if authentic.update(connection, _device, _device.c.name == name, labelled) != 1:
            raise NotFound("not-found", f"There is no device '{name}'.")


def suspend(connection: sa.Connection, name: str, suspension: Suspension) -> None:
    """Suspend the device *name*.  Raises ``not-found``, ``device-suspended``."""
    free = sa.and_(_device.c.name == name, _device.c.suspended_at.is_(None))
    if authentic.update(connection, _device, free, suspension_columns(suspension)) != 1:
        find_id(connection, name)
        raise Conflict("device-suspended", f"Device '{name}' is suspended already.")


def resume(connection: sa.Connection, name: str) -> None:
    """End a suspension.  Raises ``not-found``, ``not-suspended``."""
    suspended = sa.and_(_device.c.name == name, _device.c.suspended_at.is_not(None))
    if authentic.update(connection, _device, suspended, suspension_columns(None)) != 1:
        find_id(connection, name)
        raise Conflict("not-suspended", f"Device '{name}' is not suspended.")


def change(connection: sa.Connection, name: str, **columns: object) -> None:
    """Set *columns* of the device *name*.  Raises ``not-found``."""
    if authentic.update(connection, _device, _device.c.name == name, columns) != 1:
        raise NotFound("not-found", f"There is no device '{name}'.")


def suspension_columns(suspension: Suspension | None) -> dict[str, object]:
    """The three columns that hold *suspension*."""
    if suspension is None:
        return dict.fromkeys(("suspended_at", "suspended_by", "suspended_reason"))
    return {
        "suspended_at": suspension.at,
        "suspended_by": suspension.by,
        "suspended_reason": suspension.reason,
    }


def kids_of(connection: sa.Connection, ids: Collection[int]) -> dict[int, tuple[str, ...]]:
    """The exchange keys of each of the devices *ids* that answer, newest first."""
    kids: dict[int, list[str]] = defaultdict(list)
    for device_id, kid in _KIDS.rows(connection, ids=list(ids)):
        kids[device_id].append(kid)
    return {device_id: tuple(kids[device_id]) for device_id in ids}


def _readable_grade(found: Any) -> Mapping[str, Any] | None:
    """Return *found* if it has the form of a grade, else None: its column has no seal; it is made again."""
    if found is None:
        return None
    try:
        readable = isinstance(found["grade"], str) and all(map(str.isprintable, found["reasons"]))
        if (coverage := found.get("coverage")) is not None:
            parts = {*coverage["uncovered"], *coverage["accepted"]}
            readable = readable and isinstance(coverage["line"], str) and parts <= _PARTS
    except (AttributeError, KeyError, TypeError):
        return None
    return found if readable else None


def from_row(row: authentic.Row, policy: str, kids: tuple[str, ...]) -> Device:
    """The :class:`Device` of a row, under *policy*."""
    plain = {name: row[name] for name in _PLAIN}
    if row["shared_ak_spki"] is not None:
        plain |= {"ak_spki": row["shared_ak_spki"], "verified_only": True}
    plain["grade"] = _readable_grade(row["grade"])
    learning = load_learning(row["learning"])
    return Device(
        **plain,
        policy=policy,
        labels=tuple(row["labels"]),
        clock=clock_of(row),
        learning=learning,
        kids=kids,
        reach=None if row["tcti"] is None else Reach(row["tcti"], row["ak_handle"]),
        suspension=_suspension(row),
        standing=_standing(row),
        told=load_told(row["told"]),
        signed=None if row["signed"] is None else load_signed_state(row["signed"]),
    )


def _suspension(row: authentic.Row) -> Suspension | None:
    if row["suspended_at"] is None:
        return None
    return Suspension(row["suspended_at"], row["suspended_by"], row["suspended_reason"])


def _standing(row: authentic.Row) -> VerificationStatus:
    return VerificationStatus(
        outcome=None if row["outcome"] is None else RoundOutcome(row["outcome"]),
        code=row["outcome_code"],
        since=row["outcome_since"],
        answered_at=row["answered_at"],
        verified_at=row["verified_at"],
        wanted_at=row["wanted_at"],
    )


def clock_of(row: sa.RowMapping | dict[str, Any]) -> ClockInfo | None:
    """The clock in the four columns of *row*; ``None`` until there was evidence."""
    if row["clock"] is None:
        return None
    return ClockInfo(row["clock"], row["reset_count"], row["restart_count"], row["clock_safe"])


def clock_columns(clock: ClockInfo | None) -> dict[str, object]:
    """The four columns that hold *clock*."""
    if clock is None:
        return dict.fromkeys(("clock", "reset_count", "restart_count", "clock_safe"))
    return {
        "clock": clock.clock,
        "reset_count": clock.reset_count,
        "restart_count": clock.restart_count,
        "clock_safe": clock.safe,
    }


def dump_learning(learning: Learning | None) -> dict[str, object] | None:
    """*learning*, JSON-compatible."""
    if learning is None:
        return None
    accepted = {"accepted": [part.value for part in learning.accepted]} if learning.accepted else {}
    return {"until": learning.until.isoformat(), "stable": dump_pcrs(learning.stable), **accepted}


def load_learning(fields: dict[str, Any] | None) -> Learning | None:
    """Rebuild a learning use from the output of :func:`dump_learning`."""
    if fields is None:
        return None
    accepted = tuple(BootPart(name) for name in fields.get("accepted", ()))
    return Learning(datetime.fromisoformat(fields["until"]), load_pcrs(fields["stable"]), accepted)


def dump_told(told: OpenedReport) -> dict[str, object]:
    """Return *told*, JSON-compatible; the volumes are in the texts."""
    opened = told.opened
    return {
        "at": told.at.isoformat(),
        "reset_count": told.reset_count,
        "texts": opened.texts.decode("ascii"),
        "because": opened.untold,
        "explained": opened.explained,
    }


def load_told(fields: dict[str, Any] | None) -> OpenedReport | None:
    """Rebuild a report from the output of :func:`dump_told`."""
    if fields is None:
        return None
    try:
        texts = fields["texts"].encode()
        opened = cap.tell(texts) if texts else cap.untold(fields["because"], explained=fields["explained"])
    except Malformed:
        opened = cap.untold("the database has a damaged text of its cap")
    return OpenedReport(datetime.fromisoformat(fields["at"]), fields["reset_count"], opened)


def _owner(connection: sa.Connection, device: NewDevice) -> str:
    same = sa.or_(_device.c.ak_spki == device.ak_spki, _device.c.ek_spki == device.ek_spki)
    return str(connection.scalar(sa.select(_device.c.name).where(same)))


def _rival(connection: sa.Connection, device: NewDevice) -> str | None:
    """The name of a device of the other kind with the same AK: a device that unlocks disks shares its AK with
    none.
    """
    column = _device.c.ak_spki if device.verified_only else _device.c.shared_ak_spki
    name = connection.scalar(sa.select(_device.c.name).where(column == device.ak_spki).limit(1))
    return None if name is None else str(name)
