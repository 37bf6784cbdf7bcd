"""A dry run: how the devices would fare under another policy, judged by what each of them quoted last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime

from tang_attest.errors import Reason, Refused
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.signed_values.examine import Brought
from tang_attest.protocol.signed_values.signed_state import SignedState
from tang_attest.protocol.values.pcr import PcrValues, Selection


@dataclass(frozen=True, slots=True)
class Trial:
    """One device, what it quoted last in its initrd (``None``: unknown), and the policies it comes under.

    ``signed`` vouched for its last permitted boot.
    """

    device: str
    selection: Selection | None
    values: PcrValues
    event_log: bytes
    now: ReferencePolicy
    _: KW_ONLY
    then: ReferencePolicy
    signed: SignedState | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Devices, by name, that would be refused for the same reason."""

    reason: Reason
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DryRun:
    """Effect of a change on ``devices`` devices.

    ``refused``: permitted now, refused then.  ``already``: refused now and then.  ``helped``: refused now,
    permitted then.  ``unknown``: nothing is known of their boot.  Groups have the largest first.
    """

    devices: int
    refused: tuple[Group, ...]
    already: tuple[Group, ...]
    helped: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def refused_devices(self) -> list[str]:
        """Every device that would be refused and is not now, by name."""
        return sorted(name for group in self.refused for name in group.devices)

    def without_details(self) -> DryRun:
        """The same, with nothing of what was quoted and logged: of each reason only its code."""
        return replace(self, refused=_by_code(self.refused), already=_by_code(self.already))


def dry_run(trials: Iterable[Trial], at: datetime) -> DryRun:
    """Judge every one of *trials* as if it booted the same at *at*."""
    refused: dict[Reason, list[str]] = defaultdict(list)
    already: dict[Reason, list[str]] = defaultdict(list)
    helped, unknown, count = [], [], 0
    for trial in trials:
        count += 1
        if trial.selection != trial.then.selection:
            unknown.append(trial.device)
            continue
        before, after = _refusal(trial, trial.now, at), _refusal(trial, trial.then, at)
        if after is not None:
            (refused if before is None else already)[after].append(trial.device)
        elif before is not None:
            helped.append(trial.device)
    return DryRun(count, _groups(refused), _groups(already), tuple(helped), tuple(unknown))


def _refusal(trial: Trial, policy: ReferencePolicy, at: datetime) -> Reason | None:
    """The first reason of a refusal: it names every PCR that differs, and no value."""
    try:
        policy.judge(
            trial.device, trial.values, at, trial.event_log, brought=Brought(remembered=trial.signed)
        )
    except Refused as refusal:
        return Reason(refusal.code, refusal.sentence)
    return None


def _groups(by_reason: Mapping[Reason, list[str]]) -> tuple[Group, ...]:
    groups = [Group(reason, tuple(sorted(names))) for reason, names in by_reason.items()]
    return tuple(sorted(groups, key=lambda group: (-len(group.devices), group.reason.sentence)))


def _by_code(groups: Iterable[Group]) -> tuple[Group, ...]:
    merged: dict[Reason, list[str]] = defaultdict(list)
    for group in groups:
        merged[Reason(group.reason.code, "The scope 'read' shows why.")] += group.devices
    return _groups(merged)
