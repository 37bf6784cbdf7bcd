"""IMA: requirements of policies, by digest, and the part of each machine's list that was read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from tang_attest.ports.policies import ImaRequirement
from tang_attest.protocol.conditions import Conditions
from tang_attest.store.database import authentic, tables
from tang_attest.store.database.failures import Tampered
from tang_attest.store.records import policies

_requirement = tables.ima_requirement
_progress = tables.ima_progress
_device = tables.device


def require(connection: sa.Connection, policy: str, required: ImaRequirement | None) -> None:
    """Set the requirement of *policy*, or remove it; delete requirements without a policy.  Raises
    ``not-found``.
    """
    conditions = policies.get(connection, policy).conditions
    digest = None if required is None else required.digest
    policies.set_conditions(connection, policy, replace(conditions, ima=digest))
    if required is not None:
        authentic.insert(connection, _requirement, {"digest": digest, "document": required.document})
    forget_unused(connection)


def forget_unused(connection: sa.Connection) -> None:
    """Delete requirements without a policy; none while a policy's row is not ours, which may need one."""
    try:
        rows = authentic.load(connection, tables.policy, tables.policy.c.conditions.is_not(None))
    except Tampered:
        return
    in_use = {Conditions.from_json(row["conditions"]).ima for row in rows}
    for known in connection.scalars(sa.select(_requirement.c.digest)).all():
        if known not in in_use:
            authentic.delete(connection, _requirement, _requirement.c.digest == known)


def find_required(connection: sa.Connection, digest: str) -> ImaRequirement | None:
    """The requirement with this digest."""
    row = authentic.one(connection, _requirement, _requirement.c.digest == digest)
    return None if row is None else ImaRequirement(digest, row["document"])


def load_progress(connection: sa.Connection, device_id: int) -> Mapping[str, Any] | None:
    """Return the position up to which the list of a device was read.  A row without a valid seal counts as
    none: the list is read from its beginning.
    """
    with suppress(Tampered):  # it is logged and counted
        if (row := authentic.one(connection, _progress, _progress.c.device_id == device_id)) is not None:
            progress: Mapping[str, Any] = row["progress"]
            return progress
    return None


def keep_progress(connection: sa.Connection, device_id: int, progress: Mapping[str, Any] | None) -> None:
    """Keep *progress* in the place of the one before it; ``None`` forgets it.  A device that is gone keeps
    none.
    """
    mine = _progress.c.device_id == device_id
    if progress is None:
        authentic.delete(connection, _progress, mine)
        return
    # Locked, so that it is not removed meanwhile.
    there = sa.select(_device.c.id).where(_device.c.id == device_id).with_for_update()
    if connection.scalar(there) is None:
        return
    authentic.delete(connection, _progress, mine)
    authentic.insert(connection, _progress, {"device_id": device_id, "progress": progress})
