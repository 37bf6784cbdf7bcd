"""Policies and their reference states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from itertools import count
from typing import Final

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.protocol.policy import ReferencePolicy, ReferenceState
from tang_attest.store import tables
from tang_attest.store.sql import insert_new

_policy = tables.policy
_state = tables.reference_state

_STATES: Final = (
    sa.select(_state.c.policy_id, _state.c.label, _state.c.pcr_values, _state.c.origin)
    .where(_state.c.policy_id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(_state.c.id)
)


def add(connection: sa.Connection, policy: ReferencePolicy, *, recorded_for: str | None = None) -> int:
    """Add *policy* with its states; its id.  Raises ``name-taken``."""
    row = {
        "name": policy.name,
        "selection": policy.selection,
        "cap_pcr": policy.cap_pcr,
        "recorded_for": recorded_for,
    }
    if not insert_new(connection, _policy, row):
        raise Conflict("name-taken", f"There is a policy '{policy.name}' already.")
    policy_id = find_id(connection, policy.name)
    for state in policy.states:
        add_state(connection, policy_id, policy.name, state)
    return policy_id


def find_id(connection: sa.Connection, name: str) -> int:
    """The id of the policy *name*.  Raises ``not-found``."""
    policy_id = connection.scalar(sa.select(_policy.c.id).where(_policy.c.name == name))
    if policy_id is None:
        raise NotFound("not-found", f"There is no policy '{name}'.")
    return int(policy_id)


def add_state(connection: sa.Connection, policy_id: int, policy: str, state: ReferenceState) -> None:
    """Append *state*.  Raises ``name-taken``."""
    if not insert_new(connection, _state, _state_row(policy_id, state.label, state)):
        raise Conflict("name-taken", f"Policy '{policy}' has a state '{state.label}' already.")


def add_learned_state(connection: sa.Connection, policy_id: int, state: ReferenceState) -> None:
    """Append *state* under its label, or ``LABEL-2``, ``LABEL-3``, ...: nobody is there to choose another."""
    labels = (state.label if number == 1 else f"{state.label}-{number}" for number in count(1))
    while not insert_new(connection, _state, _state_row(policy_id, next(labels), state)):
        pass


def load(connection: sa.Connection, *names: str) -> list[ReferencePolicy]:
    """The policies *names*, or all of them, by name."""
    query = sa.select(_policy).order_by(_policy.c.name)
    if names:
        query = query.where(_policy.c.name.in_(names))
    rows = connection.execute(query).all()
    states = states_of(connection, [row.id for row in rows])
    return [ReferencePolicy(row.name, row.selection, row.cap_pcr, states[row.id]) for row in rows]


def get(connection: sa.Connection, name: str) -> ReferencePolicy:
    """The policy *name*.  Raises ``not-found``."""
    for policy in load(connection, name):
        return policy
    raise NotFound("not-found", f"There is no policy '{name}'.")


def states_of(connection: sa.Connection, ids: Collection[int]) -> dict[int, tuple[ReferenceState, ...]]:
    """The states of each of the policies *ids*, oldest first."""
    states: dict[int, list[ReferenceState]] = defaultdict(list)
    for policy_id, label, values, origin in connection.execute(_STATES, {"ids": list(ids)}):
        states[policy_id].append(ReferenceState(label, values, origin))
    return {policy_id: tuple(states[policy_id]) for policy_id in ids}


def remove_if_recorded_for(connection: sa.Connection, policy_id: int, device: str) -> None:
    """Remove a policy that the enrollment of *device* recorded, unless another device came to use it."""
    others = sa.exists().where(tables.device.c.policy_id == policy_id)
    disused = sa.and_(_policy.c.id == policy_id, _policy.c.recorded_for == device, ~others)
    if connection.scalar(sa.select(_policy.c.id).where(disused)) is None:
        return
    connection.execute(_state.delete().where(_state.c.policy_id == policy_id))
    connection.execute(_policy.delete().where(disused))


def _state_row(policy_id: int, label: str, state: ReferenceState) -> dict[str, object]:
    return {"policy_id": policy_id, "label": label, "pcr_values": state.values, "origin": state.origin}
