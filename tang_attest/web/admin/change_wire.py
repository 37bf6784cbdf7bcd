"""The admin API's models for changes of whole policies, dry runs and rollouts; see web/admin/wire.py."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from tang_attest.ports.policies import RolloutDevice
from tang_attest.protocol.changes.dry_run import DryRun, Group
from tang_attest.protocol.changes.rollout import WHOLE
from tang_attest.service.policies.rollouts import RolloutStatus, RolloutTerms
from tang_attest.web.admin.wire import ACCEPT, Accepted, Digest, Label, Name, Pcr, View
from tang_attest.web.wire import Body

Share = Annotated[
    float, Field(ge=1 / WHOLE, le=1, description="Of the devices of the policy; 0.05 is every twentieth.")
]
Word = Annotated[str, Field(min_length=1, max_length=63)]


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("not printable")
    return value


Why = Annotated[str, AfterValidator(_printable), Field(max_length=256)]


# --- bodies -------------------------------------------------------------------------------------------------


class AddedStateBody(Body):
    """A state that the change stages."""

    label: Label
    values: dict[Pcr, Digest] = Field(description="PCR number to the hex of its value.", max_length=24)
    accept_uncovered: Accepted = Field(default_factory=list, description=ACCEPT)


class ChangeBody(Body):
    """A change of a policy: states to stage, labels of states to retire, rules over event logs."""

    add: list[AddedStateBody] = Field(default_factory=list, max_length=64, fail_fast=True)
    retire: list[Label] = Field(default_factory=list, max_length=256, fail_fast=True)
    rules: dict[str, Any] | Literal["none"] | None = Field(
        None, description="As docs/rules.md describes them, in place of those before; none takes them away."
    )

    signed: list[Label] = Field(
        default_factory=list,
        max_length=64,
        fail_fast=True,
        description="Labels of signed values that wait for the rollout; not for a change at once.",
    )

    def document(self) -> object:
        """Return the document that the command line reads from a file."""
        document = self.model_dump()
        for state in document["add"]:
            state["accept-uncovered"] = state.pop("accept_uncovered")
        return document


class Start(Body):
    """A change, and its first audience: a share of the devices, or those with a label."""

    name: Name
    change: ChangeBody
    share: Share | None = None
    label: Word | None = None
    limit: int = Field(
        0, ge=0, le=1_000_000, description="How many devices may be refused; one more stops it."
    )
    salt: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[!-~]+$")] | None = Field(
        None, description="What the share is drawn by, random by default."
    )

    def terms(self) -> RolloutTerms:
        """Return the terms of the use case."""
        share = None if self.share is None else units(self.share)
        return RolloutTerms(self.name, share, self.label, self.limit, self.salt)


class Widen(Body):
    """The new share."""

    share: Share


class ReasonBody(Body):
    """The reason, for the audit record and the status."""

    why: Why | None = None


def units(share: float) -> int:
    """Return *share* in the units of :data:`WHOLE`."""
    return round(share * WHOLE)


# --- answers ------------------------------------------------------------------------------------------------


class GroupView(View):
    """Devices that would be refused for the same reason."""

    code: str
    sentence: str
    devices: list[str]

    @classmethod
    def of(cls, group: Group) -> GroupView:
        """Return the view of *group*."""
        return cls(code=group.reason.code, sentence=group.reason.sentence, devices=list(group.devices))


class DryRunView(View):
    """The effect of a change on the devices of a policy if each booted as it did last."""

    devices: int
    would_refuse: int = Field(description="Devices that are not refused now.")
    refused: list[GroupView]
    refused_already: list[GroupView]
    permitted_again: list[str]
    unknown: list[str] = Field(description="Devices of whose boot nothing is known.")

    @classmethod
    def of(cls, result: DryRun) -> DryRunView:
        """Return the view of *result*."""
        return cls(
            devices=result.devices,
            would_refuse=len(result.refused_devices),
            refused=[GroupView.of(group) for group in result.refused],
            refused_already=[GroupView.of(group) for group in result.already],
            permitted_again=list(result.helped),
            unknown=list(result.unknown),
        )


class RolloutDeviceView(View):
    """A device that a rollout's change permitted or refused; ``about`` has the details."""

    device: str
    about: str
    at: datetime

    @classmethod
    def of(cls, entry: RolloutDevice) -> RolloutDeviceView:
        """Return the view of *entry*."""
        return cls(device=entry.device, about=entry.about, at=entry.at)


class BootedView(View):
    """The number of devices that booted a state last."""

    label: str | None = Field(description="null: they were never permitted.")
    devices: int


class RolloutView(View):
    """A rollout, and the states that its devices booted."""

    policy: str
    name: str
    status: str = Field(description="running, stopped, finished or abandoned.")
    share: float
    label: str | None
    limit: int
    salt: str
    change: dict[str, Any] = Field(description="What is added, retired, and the rules.")
    started_at: datetime
    started_by: str
    ended_at: datetime | None
    ended_by: str | None
    why: str | None
    devices: int
    passed: list[RolloutDeviceView]
    refused: list[RolloutDeviceView]
    waiting: list[str]
    states: list[BootedView]
    retirable: list[str]

    @classmethod
    def of(cls, status: RolloutStatus) -> RolloutView:
        """Return the view of *status*."""
        return cls(
            **status.rollout.as_json(),
            devices=status.devices,
            passed=[RolloutDeviceView.of(entry) for entry in status.passed],
            refused=[RolloutDeviceView.of(entry) for entry in status.refused],
            waiting=list(status.waiting),
            states=[BootedView(label=label, devices=count) for label, count in status.states],
            retirable=list(status.retirable),
        )


class RolloutList(View):
    """The rollouts that are not over, by policy."""

    rollouts: list[RolloutView]

    @classmethod
    def of(cls, found: Iterable[RolloutStatus]) -> RolloutList:
        """Return the view of *found*."""
        return cls(rollouts=[RolloutView.of(status) for status in found])
