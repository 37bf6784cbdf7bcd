"""The facts that a batch of decisions rests on, read once all of its locks are taken (locks.py).

On PostgreSQL they are one statement, because a round trip costs more than the rows.  On SQLite each is a call of some
microseconds, and only those that are needed are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.ports.decisions import Decision
from tang_attest.store.database import authentic, tables, versioned
from tang_attest.store.database.composed import Composed
from tang_attest.store.database.failures import Tampered
from tang_attest.store.database.sql import among
from tang_attest.store.records import keys, nonces, policies

_key = tables.sealed_key
_nonce = tables.nonce
_policy = tables.policy
_rollout = tables.rollout
_state = tables.reference_state

_IS_ASKED: Final = among(_policy.c.id, "policies")
_ROLLS: Final = _rollout.c.under_way == _policy.c.id
# Never in one statement with the lock: it would see a rollout, a key, a nonce or the version as before the wait.
_POLICIES: Final = (
    sa.select(*authentic.form(_policy).raw, _rollout.c.id.label("rollout_id"))
    .select_from(_policy.outerjoin(_rollout, _ROLLS))
    .where(_IS_ASKED)
)
_ONE_ROW: Final = sa.select(sa.literal_column("1").label("one")).subquery("one_row")
#: Every fact: policies with their states of the given labels, and beside each of these rows the same three facts.
_EVERYTHING: Final = Composed(
    sa.select(
        versioned.VERSION.label("version"),
        sa.func.array(
            sa.select(_nonce.c.digest).where(among(_nonce.c.digest, "digests")).scalar_subquery()
        ).label("used"),
        sa.func.array(
            sa.select(_key.c.kid).where(among(_key.c.kid, "kids"), keys.IS_RETIRED).scalar_subquery()
        ).label("retired"),
        _rollout.c.id.label("rollout_id"),
        *authentic.form(_policy).labelled("policy_"),
        *authentic.form(_state).labelled("state_"),
    ).select_from(
        _ONE_ROW.outerjoin(_policy, _IS_ASKED)
        .outerjoin(_rollout, _ROLLS)
        .outerjoin(
            _state,
            sa.and_(_state.c.policy_id == _policy.c.id, among(_state.c.label, "labels"), policies.COUNTS),
        )
    ),
    "digests",
    "policies",
    "labels",
    "kids",
)
_POLICY_AT: Final = 4
_STATE_AT: Final = _POLICY_AT + len(_policy.c)

#: Rows by id, or the errors about them.
Rows = dict[int, authentic.Row | Tampered]


@dataclass(slots=True)
class LockedRows:
    """Rows and facts that stay true until the transaction ends.

    ``policies`` are those of decisions that permit by rows that were read for them; ``rolling`` are the ids of those
    that have a rollout that is not over, and ``counting`` the policies and labels of the states they met, unless
    retired.  ``used`` are nonces, ``retired`` are keys.  ``version`` is the registry's; None equals no reading.
    ``changed`` are the ids of policies that a decision of the batch has changed since the look.
    """

    devices: Rows
    _: KW_ONLY
    policies: Rows = field(default_factory=dict)
    rolling: set[int] = field(default_factory=set)
    counting: set[tuple[int, str]] = field(default_factory=set)
    used: set[bytes] = field(default_factory=set)
    retired: set[str] = field(default_factory=set)
    version: int | None = None
    changed: set[int] = field(default_factory=set)

    def stands(self, decision: Decision) -> bool:
        """Return True if *decision* rests on recalled rows, and nothing has changed in them since."""
        row = self.devices.get(decision.device_id)
        if decision.reading is None or self.version is None or not isinstance(row, authentic.Row):
            return False
        if row["policy_id"] in self.changed:
            return False
        return keys.reading_of(self.version, row) == decision.reading


def policies_of(devices: Rows, decisions: Sequence[Decision]) -> list[int]:
    """Return the ids of the policies of the devices of *decisions*, in the order of their locks."""
    found = (devices.get(decision.device_id) for decision in decisions)
    return sorted({row["policy_id"] for row in found if isinstance(row, authentic.Row)})


def checked(connection: sa.Connection, table: sa.Table, values: Sequence[Any]) -> authentic.Row | Tampered:
    """Return the row that has *values*, or the error about it."""
    try:
        return authentic.check(connection, table, values)
    except Tampered as error:
        return error


def look(connection: sa.Connection, decisions: Sequence[Decision], devices: Rows) -> LockedRows:
    """Return the facts about *decisions*, whose *devices* and policies are locked."""
    # A permit by recalled rows has its reading to compare, and then nothing more to look at, unless it changes a policy.
    asking = [
        each for each in decisions if each.met is not None and (each.reading is None or each.raises_version)
    ]
    wanted: dict[str, Any] = {
        "digests": sorted({decision.nonce_digest for decision in decisions}),
        "policies": policies_of(devices, asking),
        "labels": sorted({each.met.label for each in asking if each.met is not None}),
        "kids": sorted({each.audit.kid for each in asking if each.audit.kid}),
    }
    if connection.dialect.name == "postgresql":
        return _look_at_once(connection, devices, wanted)
    found = LockedRows(devices, used=nonces.used(connection, wanted["digests"]))
    if any(decision.reading is not None for decision in decisions):
        found.version = versioned.read(connection)
    if asking:
        for values in connection.execute(_POLICIES, {"policies": wanted["policies"]}):
            _add_policy(connection, found, values[:-1], values.rollout_id)
        found.counting = policies.counting(connection, wanted["policies"], wanted["labels"])
        found.retired = keys.retired(connection, wanted["kids"])
    return found


def _look_at_once(connection: sa.Connection, devices: Rows, wanted: dict[str, Any]) -> LockedRows:
    rows = _EVERYTHING.rows(connection, **wanted)
    version, used, retired = rows[0][: _POLICY_AT - 1]
    found = LockedRows(devices, used=set(used), retired=set(retired), version=version)
    for values in rows:
        # The id is the first column of each.
        policy_id, rollout_id = values[_POLICY_AT], values[_POLICY_AT - 1]
        if policy_id is not None and policy_id not in found.policies:
            _add_policy(connection, found, values[_POLICY_AT:_STATE_AT], rollout_id)
    states = (values[_STATE_AT:] for values in rows if values[_STATE_AT] is not None)
    found.counting = policies.only_ours(connection, states)
    return found


def _add_policy(
    connection: sa.Connection, found: LockedRows, values: Sequence[Any], rollout_id: int | None
) -> None:
    policy_id = values[0]  # the id is the first column
    found.policies[policy_id] = checked(connection, _policy, values)
    if rollout_id is not None:
        found.rolling.add(policy_id)
