"""Bounded reads for a person who looks at a page: each answers in the same time with ten devices and with ten thousand.

A count says at most :data:`MOST_COUNTED`; a list has a limit, and a next page where it needs one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from tang_attest.ports.machines import Device
from tang_attest.protocol.changes.rollout import Rollout
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import ReferenceState
from tang_attest.protocol.values.pcr import PcrValues, Selection

#: A larger number of rows is not counted further.
MOST_COUNTED: Final = 1000


@dataclass(frozen=True, slots=True)
class RefusedBoot:
    """The newest observation of a device, without its event log.

    Not checked: the row's seal, which covers the log.  It groups and orders a page; an approval reads the whole row.
    """

    id: int
    at: datetime
    code: str
    selection: Selection
    values: PcrValues


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Everything that waits for a person, the newest of each kind; ``counts`` by the name of the field.

    * ``refused``: devices whose last boot was refused, each with its newest observation if one is kept;
    * ``policies``: the policies of those devices, by name;
    * ``suspended``: suspended devices;
    * ``unwell``: running devices that were refused or are unreachable;
    * ``announced``: states that wait for an approval, each with its policy's name;
    * ``stopped``: rollouts that were stopped and are not over.
    """

    refused: tuple[tuple[Device, RefusedBoot | None], ...]
    policies: Mapping[str, ReferencePolicy]
    suspended: tuple[Device, ...]
    unwell: tuple[Device, ...]
    announced: tuple[tuple[str, ReferenceState], ...]
    stopped: tuple[Rollout, ...]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class StateUsers:
    """The devices of a policy whose last permitted boot met one state: their number, and the first names."""

    count: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChangeMark:
    """The newest rows of the tables that a page shows; a mark that differs is a reason to look again."""

    audit: int
    observation: int
    verification: int


class AttentionStore(Protocol):
    """Reads for the console; none of them writes, and none grows with the number of devices."""

    async def attention(self, limit: int) -> Attention:
        """Return what waits for a person, at most *limit* of each kind."""

    async def page_devices(self, after: str, limit: int, beginning: str = "") -> Sequence[Device]:
        """Return devices whose names come after *after*, by name, with names *beginning* so."""

    async def page_policies(self, after: str, limit: int, beginning: str = "") -> Sequence[ReferencePolicy]:
        """Return policies as :meth:`page_devices` does devices."""

    async def state_users(
        self, policy: str, labels: Sequence[str], names: int
    ) -> Mapping[str | None, StateUsers]:
        """Return the users of the states *labels* of *policy*, at most *names* names of each.

        ``None`` stands for the devices that were never permitted.  Raises ``not-found``.
        """

    async def rollout_counts(self, rollout_id: int) -> Mapping[str, int]:
        """Count the devices of a rollout by outcome; every outcome is there."""

    async def change_mark(self) -> ChangeMark:
        """Return the newest rows."""

    async def changed_devices(self, since: ChangeMark, limit: int) -> frozenset[str | None]:
        """Return the devices of the entries after *since* (``None``: of none), of the oldest *limit* entries."""
