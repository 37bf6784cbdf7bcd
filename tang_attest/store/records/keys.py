"""Exchange and signing keys at rest, and the queries of the request path."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from enum import Enum, auto
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.decisions import BoundKey, PolicyPcrs, Reading
from tang_attest.ports.keys import OPEN, EncryptedKey, holder
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.store.database import authentic, tables, versioned
from tang_attest.store.database.composed import Composed
from tang_attest.store.database.failures import Tampered
from tang_attest.store.database.sql import among
from tang_attest.store.records import devices, policies, rollouts

_key = tables.sealed_key
_device = tables.device
_policy = tables.policy
_rollout = tables.rollout

_BOUND = Composed(
    sa.select(
        *authentic.form(_key).labelled("key_"),
        *authentic.form(_device).labelled("device_"),
        *authentic.form(_policy).labelled("policy_"),
        _rollout.c.id.label("rollout_id"),
        versioned.VERSION.label("registry_version"),
    )
    .select_from(
        _key.outerjoin(_device, _device.c.id == _key.c.device_id)
        .outerjoin(_policy)
        .outerjoin(_rollout, _rollout.c.under_way == _policy.c.id)
    )
    .where(among(_key.c.kid, "kids"), _key.c.use == "exchange"),
    "kids",
)

#: Places in its rows; a key's kid is the first column.
_DEVICE_AT = len(_key.c)
_POLICY_AT = _DEVICE_AT + len(_device.c)
_ROLLOUT_AT = _POLICY_AT + len(_policy.c)

#: The condition of a retired key.
IS_RETIRED: Final = _key.c.retired_at.is_not(None)
#: The version alone, and the devices whose clocks a challenge needs.
_STANDING = Composed(
    sa.select(versioned.VERSION.label("version"), *authentic.form(_device).labelled("device_")).where(
        among(_device.c.id, "ids")
    ),
    "ids",
)


def add(connection: sa.Connection, key: EncryptedKey, device_id: int | None) -> None:
    """Add *key*.  Raises ``name-taken`` when its thumbprint is here already."""
    row = {
        "kid": key.kid,
        "use": key.use,
        "curve": key.curve,
        "public": dict(key.public),
        "sealed": key.jwe,
        "created_at": key.created_at,
        "rotated_at": key.rotated_at,
        "device_id": device_id,
    }
    if authentic.insert(connection, _key, row) is None:
        raise Conflict("name-taken", f"There is a key '{key.kid}' already.")


def load(connection: sa.Connection, *kids: str) -> list[tuple[EncryptedKey, str | None]]:
    """The keys *kids*, or every key, with its device's name, newest first; without rows that are not ours."""
    query = sa.select(*authentic.form(_key).labelled("key_"), *authentic.form(_device).labelled("device_"))
    query = query.select_from(_key.outerjoin(_device)).order_by(_key.c.created_at.desc(), _key.c.kid)
    if kids:
        query = query.where(_key.c.kid.in_(kids))
    found = []
    for key, values in authentic.ours(connection, _key, connection.execute(query)):
        try:
            device = _device_of(connection, key, values)
        except Tampered:  # it is logged and counted
            continue
        found.append((_sealed(key, device), None if device is None else device["name"]))
    return found


def get(connection: sa.Connection, kid: str) -> tuple[EncryptedKey, str | None]:
    """The key *kid*, with its device's name.  Raises ``not-found``, ``registry-tampered``."""
    for found in load(connection, kid):
        return found
    for key in authentic.load(connection, _key, _key.c.kid == kid):
        authentic.load(connection, _device, _device.c.id == key["device_id"])
    raise _missing(kid)


def _missing(kid: str) -> NotFound:
    return NotFound("not-found", f"There is no key '{kid}'.")


def load_server(connection: sa.Connection) -> list[EncryptedKey]:
    """Return the keys of no device that are not retired, newest first.

    Rows without a valid seal are left out, so that they interrupt no service.
    """
    query = sa.select(*authentic.form(_key).raw)
    query = query.where(_key.c.device_id.is_(None), _key.c.retired_at.is_(None)).order_by(
        _key.c.created_at.desc(), _key.c.kid
    )
    found = []
    for values in connection.execute(query):
        with suppress(Tampered):  # it is logged and counted
            found.append(_sealed(authentic.check(connection, _key, values), None))
    return found


def count(connection: sa.Connection) -> tuple[int, int]:
    """Return the number of signing keys, and of those with a valid seal; nothing is logged."""
    found = connection.execute(sa.select(*authentic.form(_key).raw).where(_key.c.use == "sign")).all()
    return len(found), sum(authentic.is_ours(connection, _key, values) for values in found)


def rotate(connection: sa.Connection, kids: Sequence[str], at: datetime) -> None:
    """Mark *kids* as rotated at *at*; one that is keeps its time.  Raises ``not-found``."""
    known = set(connection.scalars(sa.select(_key.c.kid).where(_key.c.kid.in_(kids))))
    if missing := sorted(set(kids) - known):
        raise _missing(missing[0])
    unrotated = sa.and_(_key.c.kid.in_(kids), _key.c.rotated_at.is_(None))
    authentic.update(connection, _key, unrotated, {"rotated_at": at})


def retire(connection: sa.Connection, kid: str, at: datetime) -> None:
    """Let *kid* answer no more.  Raises as :meth:`tang_attest.ports.keys.EncryptedKeyStore.retire_key`.

    The row of its device, or the rows of all keys without one, are locked first: decisions and other
    retirements take turns with it.
    """
    found = connection.execute(sa.select(_key.c.device_id, _key.c.use).where(_key.c.kid == kid)).one_or_none()
    if found is None:
        raise _missing(kid)
    if found.device_id is None:
        mine = sa.and_(_key.c.device_id.is_(None), _key.c.use == found.use)
        connection.execute(sa.select(_key.c.kid).where(mine).order_by(_key.c.kid).with_for_update()).all()
    else:
        mine = _key.c.device_id == found.device_id
        connection.execute(sa.select(_device.c.id).where(_device.c.id == found.device_id).with_for_update())
    advertised = sa.and_(mine, _key.c.rotated_at.is_(None), _key.c.retired_at.is_(None))
    if list(connection.scalars(sa.select(_key.c.kid).where(advertised))) == [kid]:
        raise Conflict("key-last", f"Key '{kid}' is the last of its kind that is advertised.")
    answering = sa.and_(_key.c.kid == kid, _key.c.retired_at.is_(None))
    if authentic.update(connection, _key, answering, {"retired_at": at}) != 1:
        raise Conflict("key-retired", f"Key '{kid}' is retired already.")


def reinstate(connection: sa.Connection, kid: str) -> None:
    """Let a retired key answer again.  Raises ``not-found``, ``key-not-retired``."""
    retired = sa.and_(_key.c.kid == kid, _key.c.retired_at.is_not(None))
    if authentic.update(connection, _key, retired, {"retired_at": None}) == 1:
        return
    if connection.scalar(sa.select(_key.c.kid).where(_key.c.kid == kid)) is None:
        raise _missing(kid)
    raise Conflict("key-not-retired", f"Key '{kid}' is not retired.")


def retired(connection: sa.Connection, kids: Collection[str]) -> set[str]:
    """Those of *kids* that are retired."""
    query = sa.select(_key.c.kid).where(among(_key.c.kid, "kids"), IS_RETIRED)
    return set(connection.scalars(query, {"kids": sorted(kids)}))


class Part(Enum):
    """A question about an exchange key: everything, or the PCRs of its policy and the clock of the newest
    evidence.
    """

    WHOLE = auto()
    QUESTION = auto()


class Wanted(NamedTuple):
    """One question about one exchange key."""

    kid: str
    part: Part = Part.WHOLE


#: The PCRs that a challenge names, and the clock of the newest evidence, which a new device does not have.
Question = tuple[PolicyPcrs, ClockInfo | None]
Found = BoundKey | Question | Tampered | None


class Kept(NamedTuple):
    """An answer of a moment ago: the device behind a key, the PCRs of its policy, and when they were read."""

    device_id: int
    pcrs: PolicyPcrs
    reading: Reading


#: Keys that were read now, by kid.
Read = dict[str, tuple[BoundKey, Reading]]


def find(
    connection: sa.Connection, wanted: Sequence[Wanted], kept: Mapping[str, Kept]
) -> tuple[list[Found], Read]:
    """Return the *wanted* facts of each key, and the keys with a device that were read for them.

    One query for PCRs and clocks of keys that are *kept* and that nothing changed since, and three for the rest,
    however many there are.  While a policy is being changed by a rollout there are two more.  A key that rests on
    a row without a valid seal is ``registry-tampered``, and the others are found.
    """
    narrow = {each.kid for each in wanted if each.part is Part.QUESTION}
    asked = ask(connection, {kid: kept[kid] for kid in narrow if kid in kept})
    found: dict[Wanted, Found] = {Wanted(kid, Part.QUESTION): question for kid, question in asked.items()}
    whole = {each.kid for each in wanted if each not in found}
    read: Read = {}
    if whole:
        bound, read = _bind(connection, _BOUND.rows(connection, kids=sorted(whole)))
        for kid, key in bound.items():
            found[Wanted(kid)] = key
            found.setdefault(Wanted(kid, Part.QUESTION), _question(key))
    return [found.get(each) for each in wanted], read


def ask(connection: sa.Connection, kept: Mapping[str, Kept]) -> dict[str, Question | Tampered]:
    """Return the questions about those of the *kept* keys that nothing changed since they were read.

    It is one query, which needs no transaction.
    """
    if not kept:
        return {}
    ids = sorted({each.device_id for each in kept.values()})
    rows = _STANDING.rows(connection, ids=ids)
    devices_now: dict[int, authentic.Row | Tampered] = {}
    for values in rows:
        try:
            devices_now[values[1]] = authentic.check(connection, _device, values[1:])  # the id is its first
        except Tampered as error:
            devices_now[values[1]] = error
    found: dict[str, Question | Tampered] = {}
    for kid, each in kept.items():
        row = devices_now.get(each.device_id)
        if isinstance(row, Tampered):
            found[kid] = row
        elif row is not None and reading_of(rows[0][0], row) == each.reading:
            found[kid] = each.pcrs, devices.clock_of(row)
    return found


def _question(key: BoundKey | Tampered) -> Question | Tampered | None:
    """The question about a key that was read as a whole."""
    if isinstance(key, Tampered):
        return key
    if key.policy is None or key.device is None:
        return None
    return PolicyPcrs(key.policy.selection, key.policy.cap_pcr), key.device.clock


def reading_of(version: int, device: authentic.Row) -> Reading:
    """The reading of a key of *device* while the registry has *version*."""
    return Reading(version, device.serial, device.version, device["evidence_digest"])


class _Found(NamedTuple):
    """The rows behind a key; a key of no device has the first only."""

    key: authentic.Row
    device: authentic.Row | None
    policy: authentic.Row | None
    rolls: bool
    version: int | None


def _bind(connection: sa.Connection, rows: Sequence[Any]) -> tuple[dict[str, BoundKey | Tampered], Read]:
    """The keys of *rows* with their devices and policies, by kid; and those with a device, with their readings."""
    found: dict[str, _Found] = {}
    read: Read = {}
    bound: dict[str, BoundKey | Tampered] = {}
    for values in rows:
        try:
            found[values[0]] = _check(connection, values)
        except Tampered as error:
            bound[values[0]] = error
    ids = {each.device["id"] for each in found.values() if each.device is not None}
    policy_ids = {each.policy["id"] for each in found.values() if each.policy is not None}
    rolling = {each.policy["id"] for each in found.values() if each.policy is not None and each.rolls}
    device_kids = devices.kids_of(connection, ids) if ids else {}
    states = policies.states_if_ours(connection, policy_ids) if policy_ids else {}
    under_way = rollouts.under_way_if_ours(connection, rolling) if rolling else {}
    ours = [rollout for rollout in under_way.values() if not isinstance(rollout, Tampered)]
    outcomes = rollouts.outcomes_if_ours(connection, ours, ids) if ours else {}
    for kid, (key, device, policy, _, version) in found.items():
        if device is None or policy is None:
            bound[kid] = BoundKey(_sealed(key, None), None, None)
            continue
        parts = states[policy["id"]], under_way.get(policy["id"]), outcomes.get(device["id"])
        if foreign := next((part for part in parts if isinstance(part, Tampered)), None):
            bound[kid] = foreign
            continue
        known, rollout, outcome = parts
        bound[kid] = whole = BoundKey(
            _sealed(key, device),
            devices.from_row(device, policy["name"], device_kids[device["id"]]),
            policies.from_row(policy, known),  # type: ignore[arg-type]  # what is foreign has left above
            rollout,  # type: ignore[arg-type]
            outcome,  # type: ignore[arg-type]
        )
        if version is not None:
            read[kid] = whole, reading_of(version, device)
    return bound, read


def _check(connection: sa.Connection, values: Any) -> _Found:
    """The rows of one row of :data:`_BOUND`.  Raises ``registry-tampered``."""
    key = authentic.check(connection, _key, values[:_DEVICE_AT])
    device = _device_of(connection, key, values)
    if device is None:
        return _Found(key, None, None, rolls=False, version=None)
    policy = authentic.check(connection, _policy, values[_POLICY_AT:_ROLLOUT_AT])
    rollout_id, version = values[_ROLLOUT_AT:]
    return _Found(key, device, policy, rolls=rollout_id is not None, version=version)


def _device_of(connection: sa.Connection, key: authentic.Row, values: Any) -> authentic.Row | None:
    """Return the device of *key*.  Raises ``registry-tampered``, also when the row was taken away."""
    if key["device_id"] is None:
        return None
    return authentic.check(connection, _device, values[_DEVICE_AT:_POLICY_AT])


def _sealed(row: authentic.Row, device: authentic.Row | None) -> EncryptedKey:
    return EncryptedKey(
        kid=row["kid"],
        use=row["use"],
        curve=row["curve"],
        public=row["public"],
        jwe=row["sealed"],
        created_at=row["created_at"],
        rotated_at=row["rotated_at"],
        holder=OPEN if device is None else holder(device["ak_name"], device["ak_spki"]),
        retired_at=row["retired_at"],
    )
