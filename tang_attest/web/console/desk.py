"""Everything that the console's handlers need: settings, reads, and use cases by their author."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tang_attest.ports.store import HasAttention, HasAudit, HasDevices, HasEnrollment, HasPolicies, HasRounds
from tang_attest.ports.world import Clock
from tang_attest.service.audit.actors import Author
from tang_attest.service.audit.check import AuditCheck
from tang_attest.service.machines.devices import DeviceAdministration
from tang_attest.service.operators.accounts import Operators
from tang_attest.service.operators.sign_in import SignIn
from tang_attest.service.operators.signed_acts import SignedActs
from tang_attest.service.policies.changes import PolicyChanges
from tang_attest.service.policies.explanation import Explanations
from tang_attest.service.policies.reference_values import ReferenceValues
from tang_attest.service.policies.rollouts import Rollouts


class ConsoleStore(HasAttention, HasAudit, HasDevices, HasEnrollment, HasPolicies, HasRounds, Protocol):
    """The roles of the store that pages read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UseCases:
    """Use cases whose audit entries name their author."""

    devices: Callable[[Author], DeviceAdministration]
    reference_values: Callable[[Author], ReferenceValues]
    policy_changes: Callable[[Author], PolicyChanges]
    rollouts: Callable[[Author], Rollouts]
    operators: Callable[[Author], Operators]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """The console of one worker.

    ``origin`` is the address that browsers see (``https://HOST[:PORT]``), ``machines`` the one that machines use.
    ``forwarded``: the proxy before it names browsers' addresses.  ``thumbprints`` are those of the signing keys.  ``checking`` is held while the audit record is checked.
    """

    origin: str
    machines: str
    store: ConsoleStore
    clock: Clock
    sign_in: SignIn
    acts: SignedActs
    explanations: Explanations
    use: UseCases
    thumbprints: Callable[[], Awaitable[Sequence[str]]]
    check_audit: Callable[[], Awaitable[AuditCheck]]
    forwarded: bool = False
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)
