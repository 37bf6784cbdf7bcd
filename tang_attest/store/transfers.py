"""A device under another name, or under another policy; and the end of a policy that nothing uses.

Rules of this module:

* Locks come in the order of a decision (locks.py): the device, then policies, then states.
* A policy's row is locked FOR UPDATE before its users are counted.  A transaction that makes one holds the row FOR
  SHARE (:func:`tang_attest.store.records.policies.hold`), so no user comes between the count and the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from tang_attest.errors import Conflict, NotFound
from tang_attest.store.database import authentic, tables
from tang_attest.store.records import devices, eks, ima, policies, rollouts

_device = tables.device
_policy = tables.policy
_state = tables.reference_state
_registered = tables.registered_ek
_token = tables.token
_admin_token = tables.admin_token
_verification = tables.verification

#: Users of a policy that a sentence names.
_NAMED: Final = 3


def rename(connection: sa.Connection, name: str, new: str) -> None:
    """Give the device *name* the name *new*, wherever a row that counts has it.

    Raises ``not-found``, ``name-taken``, and ``rollout-unfinished``: a rollout chooses devices by their names.
    """
    row = _take(connection, name)
    if connection.scalar(sa.select(_device.c.id).where(_device.c.name == new)) is not None:
        raise _taken(new)
    eks.check_name(connection, new, None)
    if (rollout := rollouts.unfinished(connection, row["policy_id"])) is not None:
        sentence = f"Rollout '{rollout}' chooses the machines of its policy by their names."
        raise Conflict("rollout-unfinished", sentence)
    try:
        authentic.update(connection, _device, _device.c.name == name, devices.naming(row, new))
        used = sa.and_(_registered.c.name == name, _registered.c.used_at.is_not(None))
        authentic.update(connection, _registered, used, {"name": new})
    except IntegrityError:  # another transaction was faster
        raise _taken(new) from None
    authentic.update(connection, _policy, _policy.c.recorded_for == name, {"recorded_for": new})
    authentic.update(connection, _state, _state.c.device == name, {"device": new})
    announced = sa.and_(_state.c.created_by == f"device:{name}", _state.c.created_at >= row["enrolled_at"])
    authentic.update(connection, _state, announced, {"created_by": f"device:{new}"})
    mine = sa.and_(_verification.c.device == name, _verification.c.at >= row["enrolled_at"])
    connection.execute(_verification.update().where(mine).values(device=new))


def move(connection: sa.Connection, name: str, policy: str, expected: str) -> None:
    """Bring the device *name* from the policy *expected* under *policy*.

    A learning use and outcomes of a rollout under the policy of before end.  Raises ``not-found``, and ``policy-changed`` when
    the device is under another than *expected* meanwhile.
    """
    row = _take(connection, name)
    if row["policy_id"] != policies.find_id(connection, expected):
        raise Conflict("policy-changed", f"Device '{name}' was moved by somebody else meanwhile.")
    changes = {
        "policy_id": policies.hold(connection, policy),
        "last_state": None,
        "signed": None,
        "learning": None,
    }
    authentic.update(connection, _device, _device.c.name == name, changes)
    outcomes = tables.rollout_device
    authentic.delete(connection, outcomes, outcomes.c.device_id == row["id"])


def _take(connection: sa.Connection, name: str) -> authentic.Row:
    """The locked row of the device *name*.  Raises ``not-found``."""
    for row in authentic.load(connection, _device, _device.c.name == name, lock=True):
        return row
    raise NotFound("not-found", f"There is no device '{name}'.")


def _taken(name: str) -> Conflict:
    return Conflict("name-taken", f"There is a device '{name}' already.")


def remove_policy(connection: sa.Connection, name: str, now: datetime) -> None:
    """Remove a policy with its states and rollouts.  Raises ``not-found``, ``policy-in-use``."""
    policy_id = connection.scalar(sa.select(_policy.c.id).where(_policy.c.name == name).with_for_update())
    if policy_id is None:
        raise NotFound("not-found", f"There is no policy '{name}'.")
    users = [
        *_spell("device", _devices_under(connection, policy_id, name)),
        *_spell("token", _tokens_for(connection, name, now)),
        *_spell("registered EK", _eks_for(connection, name)),
        *_spell("admin token", _admin_tokens_for(connection, name, now)),
    ]
    if users:
        raise Conflict("policy-in-use", f"Policy '{name}' is used by {'; '.join(users)}.")
    policies.remove(connection, policy_id)
    ima.forget_unused(connection)


def _devices_under(connection: sa.Connection, policy_id: int, name: str) -> Sequence[str]:
    under = sa.or_(_device.c.policy_id == policy_id, _device.c.running_policy == name)
    return connection.scalars(sa.select(_device.c.name).where(under).order_by(_device.c.name)).all()


def _tokens_for(connection: sa.Connection, name: str, now: datetime) -> list[str]:
    """Ids, shortened as a listing shortens them, of the tokens that can still be used for the policy."""
    usable = sa.and_(
        _token.c.policy == name,
        _token.c.used_at.is_(None),
        _token.c.revoked_at.is_(None),
        _token.c.expires_at > now,
    )
    found = connection.scalars(sa.select(_token.c.digest).where(usable).order_by(_token.c.digest))
    return [digest.hex()[:16] for digest in found]


def _eks_for(connection: sa.Connection, name: str) -> Sequence[str]:
    """Names of the machines that are expected under the policy by their EK."""
    unused = sa.and_(_registered.c.policy == name, _registered.c.used_at.is_(None))
    return connection.scalars(sa.select(_registered.c.name).where(unused).order_by(_registered.c.name)).all()


def _admin_tokens_for(connection: sa.Connection, name: str, now: datetime) -> list[str]:
    """Names of the admin tokens that are limited to the policy: a later one of its name would be theirs."""
    usable = sa.and_(_admin_token.c.revoked_at.is_(None), _admin_token.c.expires_at > now)
    found = connection.execute(
        sa.select(_admin_token.c.name, _admin_token.c.policies).where(usable).order_by(_admin_token.c.name)
    )
    return [row.name for row in found if name in (row.policies or ())]


def _spell(kind: str, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return [f"{kind}{'s' if len(names) > 1 else ''} {', '.join(names[:_NAMED])}{more}"]
