"""Exchange and signing keys at rest, and the one query of the request path."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from enum import Enum, auto
from typing import NamedTuple

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports import BoundKey, SealedKey
from tang_attest.protocol.pcr import Selection
from tang_attest.protocol.tpm import ClockInfo
from tang_attest.store import devices, policies, rollouts, tables
from tang_attest.store.sql import among, insert_new

_key = tables.sealed_key
_device = tables.device
_policy = tables.policy
_rollout = tables.rollout

_BOUND = (
    sa.select(
        *(column.label(f"key_{column.name}") for column in _key.c),
        *_device.c,
        _policy.c.name.label("policy_name"),
        _policy.c.selection,
        _policy.c.cap_pcr,
        _policy.c.trust_predictions,
        _policy.c.conditions,
        _policy.c.rules,
        _rollout.c.id.label("rollout_id"),
    )
    .select_from(
        _key.outerjoin(_device, _device.c.id == _key.c.device_id)
        .outerjoin(_policy)
        .outerjoin(_rollout, _rollout.c.under_way == _policy.c.id)
    )
    .where(among(_key.c.kid, "kids"), _key.c.use == "exchange")
)

_QUESTIONS = (
    sa.select(
        _key.c.kid,
        _policy.c.selection,
        _device.c.clock,
        _device.c.reset_count,
        _device.c.restart_count,
        _device.c.clock_safe,
    )
    .select_from(_key.join(_device, _device.c.id == _key.c.device_id).join(_policy))
    .where(among(_key.c.kid, "kids"), _key.c.use == "exchange")
)


def add(connection: sa.Connection, key: SealedKey, device_id: int | None) -> None:
    """Add *key*.  Raises ``name-taken`` when its thumbprint is here already."""
    row = {
        "kid": key.kid,
        "use": key.use,
        "curve": key.curve,
        "public": dict(key.public),
        "sealed": key.sealed,
        "created_at": key.created_at,
        "rotated_at": key.rotated_at,
        "device_id": device_id,
    }
    if not insert_new(connection, _key, row):
        raise Conflict("name-taken", f"There is a key '{key.kid}' already.")


def load(connection: sa.Connection) -> list[tuple[SealedKey, str | None]]:
    """Every key with its device's name, newest first."""
    query = sa.select(
        *(column.label(f"key_{column.name}") for column in _key.c), _device.c.name.label("device_name")
    ).select_from(_key.outerjoin(_device))
    rows = connection.execute(query.order_by(_key.c.created_at.desc(), _key.c.kid))
    return [(_sealed(row), row["device_name"]) for row in rows.mappings()]


def load_server(connection: sa.Connection) -> list[SealedKey]:
    """The keys of no device, newest first."""
    query = sa.select(*(column.label(f"key_{column.name}") for column in _key.c))
    query = query.where(_key.c.device_id.is_(None)).order_by(_key.c.created_at.desc(), _key.c.kid)
    return [_sealed(row) for row in connection.execute(query).mappings()]


def rotate(connection: sa.Connection, kids: Sequence[str], at: datetime) -> None:
    """Mark *kids* as rotated at *at*; one that is keeps its time.  Raises ``not-found``."""
    known = set(connection.scalars(sa.select(_key.c.kid).where(_key.c.kid.in_(kids))))
    if missing := sorted(set(kids) - known):
        raise NotFound("not-found", f"There is no key '{missing[0]}'.")
    unrotated = sa.and_(_key.c.kid.in_(kids), _key.c.rotated_at.is_(None))
    connection.execute(_key.update().where(unrotated).values(rotated_at=at))


class Part(Enum):
    """What is asked about an exchange key: everything, what its device has to quote, or when it last did."""

    WHOLE = auto()
    SELECTION = auto()
    CLOCK = auto()


class Wanted(NamedTuple):
    """One question about one exchange key."""

    kid: str
    part: Part = Part.WHOLE


Found = BoundKey | Selection | ClockInfo | None


def find(connection: sa.Connection, wanted: Sequence[Wanted]) -> list[Found]:
    """What is *wanted* of each key: one query for selections and clocks and three for the rest, however many there are.

    While a policy is being changed by a rollout there are two more.
    """
    narrow = {each.kid for each in wanted if each.part is not Part.WHOLE}
    whole = {each.kid for each in wanted if each.part is Part.WHOLE}
    found: dict[Wanted, Found] = {}
    if narrow:
        for row in connection.execute(_QUESTIONS, {"kids": [*narrow]}).mappings():
            found[Wanted(row["kid"], Part.SELECTION)] = row["selection"]
            found[Wanted(row["kid"], Part.CLOCK)] = devices.clock_of(row)
    if whole:
        bound = _bind(connection, connection.execute(_BOUND, {"kids": [*whole]}).mappings().all())
        found |= {Wanted(kid): key for kid, key in bound.items()}
    return [found.get(each) for each in wanted]


def _bind(connection: sa.Connection, rows: Sequence[sa.RowMapping]) -> dict[str, BoundKey]:
    """The keys of *rows* with their devices and policies, by kid."""
    bound = [row for row in rows if row["id"] is not None]
    device_kids = devices.kids_of(connection, {row["id"] for row in bound}) if bound else {}
    states = policies.states_of(connection, {row["policy_id"] for row in bound}) if bound else {}
    rolling = [row for row in bound if row["rollout_id"] is not None]
    under_way = rollouts.under_way(connection, {row["policy_id"] for row in rolling}) if rolling else {}
    outcomes = (
        rollouts.outcomes(connection, under_way.values(), {row["id"] for row in rolling}) if rolling else {}
    )
    found: dict[str, BoundKey] = {}
    for row in rows:
        key = _sealed(row)
        if row["id"] is None:
            found[key.kid] = BoundKey(key, None, None)
            continue
        device = devices.from_row(row, device_kids[row["id"]])
        policy = policies.from_row(device.policy, row, states[row["policy_id"]])
        rollout = under_way.get(row["policy_id"])
        found[key.kid] = BoundKey(key, device, policy, rollout, outcomes.get(row["id"]))
    return found


def _sealed(row: sa.RowMapping) -> SealedKey:
    return SealedKey(
        kid=row["key_kid"],
        use=row["key_use"],
        curve=row["key_curve"],
        public=row["key_public"],
        sealed=row["key_sealed"],
        created_at=row["key_created_at"],
        rotated_at=row["key_rotated_at"],
    )
