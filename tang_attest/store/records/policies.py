"""Policies and their reference states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.errors import Conflict, NotFound
from tang_attest.ports.rounds import Watched
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import COUNTING, Life, ReferenceState, StateLimits
from tang_attest.protocol.signed_values.signer import Signers
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.composed import Composed
from tang_attest.store.database.failures import Tampered
from tang_attest.store.database.sql import among

_policy = tables.policy
_state = tables.reference_state

_STATES: Final = Composed(
    sa.select(*authentic.form(_state).raw).where(among(_state.c.policy_id, "ids")).order_by(_state.c.id),
    "ids",
)
_POLICY_ID_AT: Final = authentic.form(_state).names.index("policy_id")
#: The condition of a state that is not retired.
COUNTS: Final = sa.or_(*(_state.c.life == life for life in sorted(COUNTING)))
_COUNTING: Final = sa.select(*authentic.form(_state).raw).where(
    among(_state.c.policy_id, "ids"), among(_state.c.label, "labels"), COUNTS
)


def add(connection: sa.Connection, policy: ReferencePolicy, *, recorded_for: str | None = None) -> int:
    """Add *policy* with its states; its id.  Raises ``name-taken``."""
    row = {
        "name": policy.name,
        "selection": policy.selection,
        "cap_pcr": policy.cap_pcr,
        "recorded_for": recorded_for,
        "trust_predictions": policy.trust_predictions,
        "rules": policy.rules,
        "conditions": None if policy.conditions == Conditions() else policy.conditions.as_json(),
        "signers": policy.signers,
    }
    inserted = authentic.insert(connection, _policy, row)
    if inserted is None:
        raise Conflict("name-taken", f"There is a policy '{policy.name}' already.")
    for state in policy.states:
        add_state(connection, inserted["id"], policy.name, state)
    return int(inserted["id"])


def take(connection: sa.Connection, name: str) -> int:
    """Return the id of the policy *name*, and lock its row until the transaction ends.  Raises ``not-found``.

    Every change of a policy, of its states' lives or of its rollout begins so: no decision that rests on the
    old values is committed after it (locks.py).
    """
    query = sa.select(_policy.c.id).where(_policy.c.name == name).with_for_update(key_share=True)
    policy_id = connection.scalar(query)
    if policy_id is None:
        raise NotFound("not-found", f"There is no policy '{name}'.")
    return int(policy_id)


def find_id(connection: sa.Connection, name: str) -> int:
    """The id of the policy *name*.  Raises ``not-found``."""
    policy_id = connection.scalar(sa.select(_policy.c.id).where(_policy.c.name == name))
    if policy_id is None:
        raise NotFound("not-found", f"There is no policy '{name}'.")
    return int(policy_id)


def hold(connection: sa.Connection, name: str) -> int:
    """Return the id of the policy *name*, which nobody removes until the transaction ends.  Raises
    ``not-found``.
    """
    query = sa.select(_policy.c.id).where(_policy.c.name == name).with_for_update(read=True)
    policy_id = connection.scalar(query)
    if policy_id is None:
        raise NotFound("not-found", f"There is no policy '{name}'.")
    return int(policy_id)


def add_state(connection: sa.Connection, policy_id: int, policy: str, state: ReferenceState) -> None:
    """Append *state*.  Raises ``name-taken``."""
    if authentic.insert(connection, _state, _state_row(policy_id, state.label, state)) is None:
        raise Conflict("name-taken", f"Policy '{policy}' has a state '{state.label}' already.")


def add_learned_state(connection: sa.Connection, policy_id: int, state: ReferenceState) -> None:
    """Append *state* under its label, or ``LABEL-2``, ``LABEL-3``, ...: no operator is there to choose
    another.
    """
    labels = (state.label if number == 1 else f"{state.label}-{number}" for number in count(1))
    while authentic.insert(connection, _state, _state_row(policy_id, next(labels), state)) is None:
        pass


def load(connection: sa.Connection, *names: str) -> list[ReferencePolicy]:
    """The policies *names*, or all of them, by name; without those that have a row which is not ours."""
    where = [_policy.c.name.in_(names)] if names else []
    rows = authentic.load_ours(connection, _policy, *where, order_by=[_policy.c.name])
    found = states_if_ours(connection, [row["id"] for row in rows])
    return [from_row(row, states) for row in rows if not isinstance(states := found[row["id"]], Tampered)]


def from_row(row: authentic.Row, states: tuple[ReferenceState, ...]) -> ReferencePolicy:
    """The policy of a row, with its *states*."""
    return ReferencePolicy(
        row["name"],
        row["selection"],
        row["cap_pcr"],
        states,
        row["trust_predictions"],
        conditions=Conditions.from_json(row["conditions"]),
        rules=row["rules"],
        signers=row["signers"] or Signers(),
    )


def get(connection: sa.Connection, name: str) -> ReferencePolicy:
    """The policy *name*.  Raises ``not-found``, ``registry-tampered``."""
    for row in authentic.load(connection, _policy, _policy.c.name == name):
        return from_row(row, states_of(connection, [row["id"]])[row["id"]])
    raise NotFound("not-found", f"There is no policy '{name}'.")


def states_of(connection: sa.Connection, ids: Collection[int]) -> dict[int, tuple[ReferenceState, ...]]:
    """The states of each of the policies *ids*, oldest first.  Raises ``registry-tampered``."""
    found: dict[int, tuple[ReferenceState, ...]] = {}
    for policy_id, states in states_if_ours(connection, ids).items():
        if isinstance(states, Tampered):
            raise states
        found[policy_id] = states
    return found


def states_if_ours(
    connection: sa.Connection, ids: Collection[int]
) -> dict[int, tuple[ReferenceState, ...] | Tampered]:
    """The states of each of the policies *ids*, oldest first, or the error about one of them.

    A state without a valid seal spoils its whole policy: without it, another one could permit what it
    forbids.
    """
    states: dict[int, list[ReferenceState]] = defaultdict(list)
    spoiled: dict[int, Tampered] = {}
    for values in _STATES.rows(connection, ids=list(ids)):
        policy_id = values[_POLICY_ID_AT]
        try:
            states[policy_id].append(state_from(authentic.check(connection, _state, values)))
        except Tampered as error:
            spoiled[policy_id] = error
    return {policy_id: spoiled.get(policy_id) or tuple(states[policy_id]) for policy_id in ids}


def remove_recorded_for(connection: sa.Connection, device: str) -> None:
    """Remove the policies that were recorded for *device*, unless another device came to use them."""
    used = sa.or_(tables.device.c.policy_id == _policy.c.id, tables.device.c.running_policy == _policy.c.name)
    disused = sa.and_(_policy.c.recorded_for == device, ~sa.exists().where(used))
    for policy_id in connection.scalars(sa.select(_policy.c.id).where(disused)).all():
        remove(connection, policy_id)


def remove(connection: sa.Connection, policy_id: int) -> None:
    """Remove the policy *policy_id*, which no device uses, with its rollouts and states."""
    _remove_rollouts(connection, policy_id)
    authentic.delete(connection, _state, _state.c.policy_id == policy_id)
    authentic.delete(connection, _policy, _policy.c.id == policy_id)


def _remove_rollouts(connection: sa.Connection, policy_id: int) -> None:
    rollout, device_outcomes = tables.rollout, tables.rollout_device
    mine = sa.select(rollout.c.id).where(rollout.c.policy_id == policy_id)
    authentic.delete(connection, device_outcomes, device_outcomes.c.rollout_id.in_(mine))
    authentic.delete(connection, rollout, rollout.c.policy_id == policy_id)


def move_state(
    connection: sa.Connection,
    policy_id: int,
    label: str,
    expected: Collection[Life],
    to: Life,
    *,
    accepted: Collection[BootPart] = (),
) -> None:
    """Move the state *label* from one of *expected* *to* another part of its life.

    *accepted*, unless empty, takes the place of the parts that were accepted before.  Raises ``not-found``, ``state-changed``.
    """
    named = sa.and_(_state.c.policy_id == policy_id, _state.c.label == label)
    movable = sa.and_(named, _state.c.life.in_(sorted(expected)))
    acceptance = {"accepted_uncovered": dump_parts(accepted)} if accepted else {}
    if authentic.update(connection, _state, movable, {"life": to.value, **acceptance}) == 1:
        return
    life = connection.scalar(sa.select(_state.c.life).where(named))
    if life is None:
        raise NotFound("not-found", f"The policy has no state '{label}'.")
    raise Conflict("state-changed", f"State '{label}' is {life}, not {' or '.join(sorted(expected))}.")


def counting(
    connection: sa.Connection, ids: Collection[int], labels: Collection[str]
) -> set[tuple[int, str]]:
    """Policy and label of the states with one of *labels*, in one of the policies *ids*, that are not
    retired.

    A state without a valid seal does not count.
    """
    return only_ours(connection, connection.execute(_COUNTING, {"ids": list(ids), "labels": list(labels)}))


def only_ours(connection: sa.Connection, rows: Iterable[Sequence[Any]]) -> set[tuple[int, str]]:
    """Policy and label of each state of *rows*, their columns as stored, that has a valid seal."""
    found = set()
    for values in rows:
        with suppress(Tampered):  # it is logged and counted
            row = authentic.check(connection, _state, values)
            found.add((row["policy_id"], row["label"]))
    return found


def meet(connection: sa.Connection, policy_id: int, state: ReferenceState) -> None:
    """Write that *state* permitted once: it is active from now on, and has a use less where uses are counted.

    Raises ``state-retired``, ``state-used-up`` when another transaction was faster.
    """
    named = sa.and_(_state.c.policy_id == policy_id, _state.c.label == state.label)
    counts = sa.and_(COUNTS, sa.or_(_state.c.uses_left.is_(None), _state.c.uses_left > 0))

    def spent(row: authentic.Row) -> dict[str, object]:
        left = row["uses_left"]
        return {"life": Life.ACTIVE.value, "uses_left": None if left is None else left - 1}

    if authentic.update(connection, _state, sa.and_(named, counts), spent) == 1:
        return
    if connection.scalar(sa.select(_state.c.uses_left).where(named)) == 0:
        raise Conflict("state-used-up", f"State '{state.label}' was used by another boot meanwhile.")
    raise Conflict("state-retired", f"State '{state.label}' was retired while this evidence was appraised.")


def trust_predictions(connection: sa.Connection, name: str, trusted: bool) -> None:
    """Set whether announced values count at once.  Raises ``not-found``."""
    if authentic.update(connection, _policy, _policy.c.name == name, {"trust_predictions": trusted}) != 1:
        raise NotFound("not-found", f"There is no policy '{name}'.")


def require_trust(connection: sa.Connection, name: str) -> None:
    """Raise ``policy-changed`` unless announced values count at once, now and until the transaction ends.

    They do under a policy that trusts them and does not require several operators.
    """
    query = sa.select(_policy.c.trust_predictions, _policy.c.conditions).where(_policy.c.name == name)
    row = connection.execute(query.with_for_update(read=True)).mappings().one_or_none()
    if row is None or not row["trust_predictions"] or Conditions.from_json(row["conditions"]).operators > 1:
        sentence = f"Policy '{name}' was changed while this evidence was appraised."
        raise Conflict("policy-changed", sentence)


def set_conditions(connection: sa.Connection, name: str, conditions: Conditions) -> None:
    """Replace the conditions.  Raises ``not-found``."""
    row = None if conditions == Conditions() else conditions.as_json()
    if authentic.update(connection, _policy, _policy.c.name == name, {"conditions": row}) != 1:
        raise NotFound("not-found", f"There is no policy '{name}'.")


def change_signers(connection: sa.Connection, name: str, change: Callable[[Signers], Signers]) -> None:
    """Replace the signers of the policy *name* by *change* of them.  Raises ``not-found``, and as *change*."""
    policy_id = take(connection, name)
    wanted = _policy.c.id == policy_id
    authentic.update(
        connection, _policy, wanted, lambda row: {"signers": change(row["signers"] or Signers())}
    )


def write_signers(connection: sa.Connection, policy_id: int, signers: Signers) -> authentic.Row:
    """Write *signers* into the policy *policy_id*, which is locked for it; the row as it is then."""
    authentic.update(connection, _policy, _policy.c.id == policy_id, {"signers": signers})
    [row] = authentic.load(connection, _policy, _policy.c.id == policy_id)
    return row


def load_conditions(connection: sa.Connection) -> list[Watched]:
    """The policies that have conditions, by name; without their states, and without rows that are not ours."""
    has_some = _policy.c.conditions.is_not(None)
    rows = authentic.load_ours(connection, _policy, has_some, order_by=[_policy.c.name])
    return [Watched(row["name"], Conditions.from_json(row["conditions"])) for row in rows]


def _state_row(policy_id: int, label: str, state: ReferenceState) -> dict[str, object]:
    limits = state.limits
    return {
        "policy_id": policy_id,
        "label": label,
        "pcr_values": state.values,
        "origin": state.origin,
        "life": state.life.value,
        "device": limits.device,
        "expires_at": limits.expires_at,
        "uses_left": limits.uses_left,
        "rollout": limits.rollout,
        "created_at": state.created_at,
        "created_by": state.created_by,
        "notes": list(state.notes) or None,
        "accepted_uncovered": dump_parts(state.accepted),
    }


def state_from(row: authentic.Row) -> ReferenceState:
    """The reference state of a row."""
    return ReferenceState(
        label=row["label"],
        values=row["pcr_values"],
        origin=row["origin"],
        life=Life(row["life"]),
        limits=StateLimits(
            device=row["device"],
            expires_at=row["expires_at"],
            uses_left=row["uses_left"],
            rollout=row["rollout"],
        ),
        created_at=row["created_at"],
        created_by=row["created_by"],
        notes=tuple(row["notes"] or ()),
        accepted=load_parts(row["accepted_uncovered"]),
    )


def dump_parts(parts: Iterable[BootPart]) -> list[str] | None:
    """Return *parts*, JSON-compatible; None for none, which changes no seal."""
    return [part.value for part in parts] or None


def load_parts(names: Iterable[str] | None) -> tuple[BootPart, ...]:
    """Return what :func:`dump_parts` made, back."""
    return tuple(BootPart(name) for name in names or ())
