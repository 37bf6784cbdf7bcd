"""Rollouts, and the outcomes of devices under them.

Rules of this module:

* A policy has one rollout that is not over: the unique column ``under_way`` decides, not a look before.
* A transaction that counts refusals holds the rollout's row.  Two replicas that write a refusal each
  therefore see each other's, and the one that passes the limit stops the rollout.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Final

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.decisions import RolloutResult
from tang_attest.ports.policies import RolloutDevice
from tang_attest.protocol.changes.change import PolicyChange, load_change
from tang_attest.protocol.changes.rollout import Rollout, RolloutOutcome, RolloutPhase, withdrawn
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.failures import Tampered
from tang_attest.store.database.sql import among
from tang_attest.store.records import policies

_rollout = tables.rollout
_device_outcomes = tables.rollout_device
_state = tables.reference_state
_device = tables.device

_OVER: Final = frozenset({RolloutPhase.FINISHED, RolloutPhase.ABANDONED})
#: Names that the audit entry of a stop has.
_NAMED: Final = 20

_UNDER_WAY: Final = (
    sa.select(*authentic.form(_rollout).raw, tables.policy.c.name.label("policy_name"))
    .join_from(_rollout, tables.policy, tables.policy.c.id == _rollout.c.policy_id)
    .where(among(_rollout.c.under_way, "ids"))
)
_OUTCOMES: Final = sa.select(*authentic.form(_device_outcomes).raw).where(
    among(_device_outcomes.c.rollout_id, "rollouts"),
    among(_device_outcomes.c.device_id, "devices"),
)


# --- the request path ---------------------------------------------------------------------------------------


def under_way_if_ours(
    connection: sa.Connection, policy_ids: Collection[int]
) -> dict[int, Rollout | Tampered]:
    """The rollout that is not over, for those of *policy_ids* that have one; or the error about it."""
    found: dict[int, Rollout | Tampered] = {}
    for values in connection.execute(_UNDER_WAY, {"ids": list(policy_ids)}):
        try:
            row = authentic.check(connection, _rollout, values[:-1])
            found[values.under_way] = _from_row(row, values.policy_name)
        except Tampered as error:
            found[values.under_way] = error
    return found


def outcomes_if_ours(
    connection: sa.Connection, rollouts: Collection[Rollout], device_ids: Collection[int]
) -> dict[int, RolloutOutcome | Tampered]:
    """Return the outcome of each of *device_ids* under the one of *rollouts* that is its policy's, by device;
    or the error.
    """
    bound = {"rollouts": [rollout.id for rollout in rollouts], "devices": list(device_ids)}
    found: dict[int, RolloutOutcome | Tampered] = {}
    for values in connection.execute(_OUTCOMES, bound):
        try:
            found[values.device_id] = RolloutOutcome(
                authentic.check(connection, _device_outcomes, values)["outcome"]
            )
        except Tampered as error:
            found[values.device_id] = error
    return found


def check_still_counts(connection: sa.Connection, result: RolloutResult | None) -> Conflict | Tampered | None:
    """``state-not-rolled-out`` when a device passes for the first time, and the rollout was stopped
    meanwhile.
    """
    if result is None or result.outcome is not RolloutOutcome.PASSED:
        return None
    try:
        row = authentic.one(connection, _rollout, _rollout.c.id == result.rollout.id)
    except Tampered as error:
        return error
    if row is None or row["status"] != RolloutPhase.STOPPED:
        return None
    sentence = f"Rollout '{result.rollout.name}' was stopped while this evidence was appraised."
    return Conflict("state-not-rolled-out", sentence)


def write_result(
    connection: sa.Connection, device_id: int, result: RolloutResult, entry: AuditEntry
) -> AuditEntry | None:
    """Write the outcome of a device, unless the rollout is over; return the audit entry of a stop that
    follows from it.

    *entry* is that of the appraisal.
    """
    rollout = result.rollout
    row = {
        "rollout_id": rollout.id,
        "device_id": device_id,
        "outcome": result.outcome.value,
        "about": result.about,
        "at": entry.at,
    }
    if result.outcome is RolloutOutcome.PASSED:
        mine = sa.and_(_device_outcomes.c.rollout_id == rollout.id, _device_outcomes.c.device_id == device_id)
        authentic.delete(connection, _device_outcomes, mine)
        authentic.insert(connection, _device_outcomes, row)
        return None
    running = sa.and_(_rollout.c.id == rollout.id, _rollout.c.status == RolloutPhase.RUNNING.value)
    # Takes the row, so that replicas count one after the other.
    found = authentic.load(connection, _rollout, running, lock=True)
    if not found or authentic.insert(connection, _device_outcomes, row) is None:
        return None
    limit = found[0]["refusal_limit"]
    names = _refused(connection, rollout.id)
    if len(names) <= limit:
        return None
    counted = "1 device was" if len(names) == 1 else f"{len(names)} devices were"
    why = f"{counted} refused, the limit is {limit}"
    stop = {"status": RolloutPhase.STOPPED.value, "ended_at": entry.at, "ended_by": "server", "why": why}
    authentic.update(connection, _rollout, running, stop)
    details = {
        "policy": rollout.policy,
        "rollout": rollout.name,
        "why": why,
        "limit": limit,
        "refused": names[:_NAMED],
    }
    return AuditEntry(
        entry.at, "policy rollout stop", "server", "done", request_id=entry.request_id, details=details
    )


def _refused(connection: sa.Connection, rollout_id: int) -> list[str]:
    query = sa.select(_device.c.name).join_from(_device_outcomes, _device).order_by(_device.c.name)
    mine = sa.and_(
        _device_outcomes.c.rollout_id == rollout_id,
        _device_outcomes.c.outcome == RolloutOutcome.REFUSED.value,
    )
    return list(connection.scalars(query.where(mine)))


# --- the operator -------------------------------------------------------------------------------------------


def start(connection: sa.Connection, rollout: Rollout, states: Sequence[ReferenceState]) -> None:
    """Add *rollout* and its *states*.  Raises ``not-found``, ``name-taken``, ``rollout-unfinished``."""
    policy_id = policies.take(connection, rollout.policy)
    row = {
        "policy_id": policy_id,
        "under_way": policy_id,
        "name": rollout.name,
        "change": rollout.change.dump(),
        "salt": rollout.salt,
        "share": rollout.share,
        "label": rollout.label,
        "refusal_limit": rollout.limit,
        "status": rollout.status.value,
        "started_at": rollout.started_at,
        "started_by": rollout.started_by,
    }
    if authentic.insert(connection, _rollout, row) is None:
        running = connection.scalar(sa.select(_rollout.c.name).where(_rollout.c.under_way == policy_id))
        if running is None or running == rollout.name:
            raise Conflict("name-taken", f"Policy '{rollout.policy}' has a rollout '{rollout.name}' already.")
        raise Conflict("rollout-unfinished", f"Rollout '{running}' of policy '{rollout.policy}' is not over.")
    for state in states:
        limited = replace(state, limits=replace(state.limits, rollout=rollout.name))
        policies.add_state(connection, policy_id, rollout.policy, limited)


def unfinished(connection: sa.Connection, policy_id: int) -> str | None:
    """The name of the rollout of a policy that is not over."""
    name: str | None = connection.scalar(sa.select(_rollout.c.name).where(_rollout.c.under_way == policy_id))
    return name


def newest(connection: sa.Connection, policy: str) -> Rollout | None:
    """The newest rollout of *policy*.  Raises ``not-found``."""
    query = sa.select(*authentic.form(_rollout).raw)
    query = query.where(_rollout.c.policy_id == policies.find_id(connection, policy))
    rows = authentic.rows(connection, query.order_by(_rollout.c.id.desc()).limit(1), _rollout)
    return _from_row(rows[0], policy) if rows else None


def device_outcomes(connection: sa.Connection, rollout_id: int) -> list[RolloutDevice]:
    """Return the devices that passed or were refused, by name; without rows that are not ours."""
    query = sa.select(*authentic.form(_device_outcomes).raw, _device.c.name)
    query = query.join_from(_device_outcomes, _device).where(_device_outcomes.c.rollout_id == rollout_id)
    found = connection.execute(query.order_by(_device.c.name))
    return [
        RolloutDevice(values.name, RolloutOutcome(row["outcome"]), row["about"], row["at"])
        for row, values in authentic.ours(connection, _device_outcomes, found)
    ]


def widen(connection: sa.Connection, rollout: Rollout, share: int) -> None:
    """Raise the share.  Raises ``rollout-changed`` unless it runs with a smaller one."""
    policies.take(connection, rollout.policy)
    smaller = sa.and_(
        _rollout.c.id == rollout.id, _rollout.c.status == RolloutPhase.RUNNING.value, _rollout.c.share < share
    )
    if authentic.update(connection, _rollout, smaller, {"share": share}) != 1:
        raise _changed(connection, rollout)


def move(
    connection: sa.Connection, rollout: Rollout, to: RolloutPhase, why: str | None, entry: AuditEntry
) -> None:
    """Move *rollout* from its status *to* another, and its states along with it.

    Raises ``rollout-changed``.
    """
    policy_id = policies.take(connection, rollout.policy)
    as_known = sa.and_(_rollout.c.id == rollout.id, _rollout.c.status == rollout.status.value)
    runs = to is RolloutPhase.RUNNING
    row: dict[str, object] = {
        "status": to.value,
        "ended_at": None if runs else entry.at,
        "ended_by": None if runs else entry.actor,
        "why": why,
    }
    if to in _OVER:
        row["under_way"] = None
    if authentic.update(connection, _rollout, as_known, row) != 1:
        raise _changed(connection, rollout)
    if runs:
        mine = sa.and_(
            _device_outcomes.c.rollout_id == rollout.id,
            _device_outcomes.c.outcome == RolloutOutcome.REFUSED.value,
        )
        authentic.delete(connection, _device_outcomes, mine)
    elif to is RolloutPhase.FINISHED:
        _release(connection, policy_id, rollout, {})
        _narrow(connection, policy_id, rollout.change)
    elif to is RolloutPhase.ABANDONED:
        _release(connection, policy_id, rollout, {"life": Life.RETIRED.value})
        if rollout.change.signed:
            policies.change_signers(connection, rollout.policy, lambda signers: withdrawn(signers, rollout))


def change(
    connection: sa.Connection, policy: str, wanted: PolicyChange, states: Sequence[ReferenceState]
) -> None:
    """Apply *wanted* for every device.  Raises ``not-found``, ``name-taken``, ``state-changed``."""
    policy_id = policies.take(connection, policy)
    for state in states:
        policies.add_state(connection, policy_id, policy, state)
    _narrow(connection, policy_id, wanted)


def _release(
    connection: sa.Connection, policy_id: int, rollout: Rollout, columns: Mapping[str, object]
) -> None:
    mine = sa.and_(_state.c.policy_id == policy_id, _state.c.rollout == rollout.name)
    authentic.update(connection, _state, mine, {"rollout": None, **columns})


def _narrow(connection: sa.Connection, policy_id: int, wanted: PolicyChange) -> None:
    expected = {Life.PROPOSED, Life.STAGED, Life.ACTIVE}
    for label in wanted.retire:
        policies.move_state(connection, policy_id, label, expected, Life.RETIRED)
    if wanted.rules is not None or wanted.drops_rules:
        authentic.update(connection, tables.policy, tables.policy.c.id == policy_id, {"rules": wanted.rules})


def _changed(connection: sa.Connection, rollout: Rollout) -> Conflict | NotFound:
    query = sa.select(_rollout.c.status, _rollout.c.share).where(_rollout.c.id == rollout.id)
    row = connection.execute(query).one_or_none()
    if row is None:
        return NotFound("not-found", f"There is no rollout '{rollout.name}' any more.")
    share = f"{row.share / 100:g}%"
    return Conflict("rollout-changed", f"Rollout '{rollout.name}' is {row.status}, with a share of {share}.")


def _from_row(row: authentic.Row, policy: str) -> Rollout:
    return Rollout(
        id=row["id"],
        policy=policy,
        name=row["name"],
        change=load_change(row["change"]),
        salt=row["salt"],
        share=row["share"],
        label=row["label"],
        limit=row["refusal_limit"],
        status=RolloutPhase(row["status"]),
        started_at=row["started_at"],
        started_by=row["started_by"],
        ended_at=row["ended_at"],
        ended_by=row["ended_by"],
        why=row["why"],
    )
