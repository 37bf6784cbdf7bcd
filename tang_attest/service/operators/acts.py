"""Acts that an operator signs with their passkey: what is done, to which machines, within which limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tang_attest.protocol.coverage import BootPart


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproveBoots:
    """Approve refused boots, each by its device and observation; one machine, or several that differ alike.

    ``only_this_device``, ``once`` and ``minutes`` are the limits of
    :class:`~tang_attest.service.policies.reference_values.Approval`; without them the values count for the
    policy, for good.
    """

    boots: tuple[tuple[str, int], ...]
    only_this_device: bool = False
    once: bool = False
    minutes: int | None = None
    accepted: tuple[BootPart, ...] = ()


@dataclass(frozen=True, slots=True)
class ApproveAnnounced:
    """Let an announced state of a policy count."""

    policy: str
    label: str


@dataclass(frozen=True, slots=True)
class Reinstate:
    """Let a retired state of a policy count again."""

    policy: str
    label: str


@dataclass(frozen=True, slots=True)
class ResumeDevice:
    """Let the keys of a suspended device answer again."""

    device: str


@dataclass(frozen=True, slots=True)
class RemoveDevice:
    """Forget a device and destroy its exchange keys."""

    device: str


@dataclass(frozen=True, slots=True)
class AllowUnlock:
    """Allow a device to unlock for some minutes."""

    device: str
    minutes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateToken:
    """Create an enrollment token: for the device *name*, if it is given, and under *policy*, or else with a
    policy that is recorded.
    """

    name: str | None
    policy: str | None
    minutes: int
    machines: int = 1
    labels: tuple[str, ...] = ()
    allow_unverified_ek: bool = False


@dataclass(frozen=True, slots=True)
class TrustPredictions:
    """Let values count at once that machines under a policy announce for their next boot."""

    policy: str


Act: TypeAlias = (
    ApproveBoots
    | ApproveAnnounced
    | Reinstate
    | ResumeDevice
    | RemoveDevice
    | AllowUnlock
    | CreateToken
    | TrustPredictions
)
