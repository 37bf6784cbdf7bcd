"""The page of what waits for a person: one list, most urgent first; the same difference is one entry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from tang_attest.errors import action_for
from tang_attest.ports.attention import Attention, RefusedBoot
from tang_attest.ports.machines import Device
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.service.operators.acts import AllowUnlock, ApproveBoots, RemoveDevice, ResumeDevice
from tang_attest.service.operators.signed_acts import PendingApproval
from tang_attest.service.unlock.appraisal import NOT_THE_VALUES
from tang_attest.web.console.views.common import WAITS_FOR_PERSON, counted, listed, pcrs

_EARLY: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingEntry:
    """One thing that waits: ``kind`` is a word for its badge, ``href`` the page on which it is decided.

    ``urgent`` is true while a machine stands at its prompt.  ``key`` is different for each entry.
    """

    key: str
    kind: str
    title: str
    sentence: str
    at: datetime | None
    href: str
    button: str
    urgent: bool = False
    machines: tuple[str, ...] = ()
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Alike:
    """Refused machines whose values differ from what is approved in the same way, the newest first."""

    differing: tuple[int, ...]
    approved: bool
    machines: tuple[tuple[Device, RefusedBoot], ...]


def alike(found: Attention, now: datetime) -> list[Alike]:
    """Return the refused machines with an observation, by difference: bank, PCRs and new values."""
    groups: dict[object, list[tuple[Device, RefusedBoot]]] = {}
    about: dict[object, tuple[int, ...]] = {}
    for device, boot in found.refused:
        policy = found.policies.get(device.policy)
        if boot is None or policy is None or _needs_no_values(device):
            continue
        differing = difference(policy, device.name, boot, now)
        key: object = (boot.selection.bank, tuple((pcr, boot.values[pcr]) for pcr in differing))
        if not differing:  # its values are approved: it is alike with nobody
            key = device.name
        groups.setdefault(key, []).append((device, boot))
        about[key] = differing
    return [Alike(about[key], not about[key], tuple(group)) for key, group in groups.items()]


def _needs_no_values(device: Device) -> bool:
    return device.suspension is not None or device.last_code in WAITS_FOR_PERSON


def difference(policy: ReferencePolicy, device: str, boot: RefusedBoot, now: datetime) -> tuple[int, ...]:
    """Return the PCRs in which *boot* is not the approved state that is nearest; all of them without one."""
    everything = tuple(sorted(boot.values))
    if boot.selection != policy.selection:
        return everything
    counting = policy.counting(device, now)
    return min((state.differences(boot.values) for state in counting), key=len, default=everything)


def entries(found: Attention, pending: Sequence[PendingApproval], now: datetime) -> list[WaitingEntry]:
    """Return the entries of the page: machines at their prompt first, then the newest."""
    every = [
        *(_second(each) for each in pending),
        *(_refused(group) for group in alike(found, now)),
        *_others(found),
        *(
            _announced(policy, state.label, state.created_by, state.created_at)
            for policy, state in found.announced
        ),
        *(_suspended(device) for device in found.suspended),
        *(_unwell(device) for device in found.unwell),
        *(_stopped(each.policy, each.name, each.why, each.ended_at) for each in found.stopped),
    ]
    return sorted(every, key=lambda entry: (not entry.urgent, -(entry.at or _EARLY).timestamp()))


def place_of(approval: PendingApproval) -> str:
    """Return the page on which another operator reviews and signs *approval*."""
    match approval.act:
        case ApproveBoots(boots=((_, observation), *_)):
            return f"/refusals/{observation}"
        case ResumeDevice(device=device) | RemoveDevice(device=device) | AllowUnlock(device=device):
            return f"/machines/{device}"
    return f"/policies/{approval.policies[0]}" if approval.policies else "/"


def _second(approval: PendingApproval) -> WaitingEntry:
    return WaitingEntry(
        key=f"pending-{approval.id}",
        kind="approval",
        title="A signed approval waits for another operator",
        sentence=f"Signed by {listed(approval.signed_by)}; {approval.needed} operators have to sign.",
        at=approval.signed_at,
        href=place_of(approval),
        button="Review",
        urgent=True,
        policy=approval.policies[0] if len(approval.policies) == 1 else None,
    )


def _refused(group: Alike) -> WaitingEntry:
    device, boot = group.machines[0]
    names = tuple(each.name for each, _ in group.machines)
    if group.approved:
        title, sentence = (
            f"{device.name} may boot",
            "What it booted is approved now. It waits for its next attempt.",
        )
    elif len(names) == 1:
        title, sentence = f"{device.name} was refused", f"{pcrs(group.differing)} not as approved."
    else:
        title = f"{counted(len(names), 'machine', 'machines')} were refused, with the same difference"
        sentence = f"{pcrs(group.differing)} not as approved."
    policies = {each.policy for each, _ in group.machines}
    return WaitingEntry(
        key=f"refusal-{boot.id}",
        kind="refused",
        title=title,
        sentence=sentence,
        at=boot.at,
        href=f"/refusals/{boot.id}",
        button="Watch" if group.approved else "Look",
        urgent=not group.approved,
        machines=names if len(names) > 1 else (),
        policy=next(iter(policies)) if len(policies) == 1 else None,
    )


def _others(found: Attention) -> Iterator[WaitingEntry]:
    """Yield the refused machines for which no approval of values helps; a suspended one has an entry already.

    A boot whose values were refused, and which is not kept, was dismissed.
    """
    for device, boot in found.refused:
        waits = device.last_code in WAITS_FOR_PERSON
        dismissed = boot is None and device.last_code not in NOT_THE_VALUES
        if device.suspension is not None or dismissed or (boot is not None and not waits):
            continue
        yield WaitingEntry(
            key=f"machine-{device.name}",
            kind="unlock" if waits else "refused",
            title=f"{device.name} asks to unlock"
            if waits
            else f"{device.name} was refused: {device.last_code}",
            sentence="Its policy asks a person before it opens."
            if waits
            else action_for(device.last_code, device.name),
            at=device.last_seen_at,
            href=f"/machines/{device.name}",
            button="Look",
            urgent=True,
            policy=device.policy,
        )


def _announced(policy: str, label: str, by: str | None, at: datetime | None) -> WaitingEntry:
    return WaitingEntry(
        key=f"announced-{policy}-{label}",
        kind="announced",
        title=f"{(by or 'A machine').removeprefix('device:')} announced its next boot",
        sentence=f"The state '{label}' waits for an approval.",
        at=at,
        href=f"/policies/{policy}",
        button="Look",
        policy=policy,
    )


def _suspended(device: Device) -> WaitingEntry:
    suspension = device.suspension
    return WaitingEntry(
        key=f"suspended-{device.name}",
        kind="suspended",
        title=f"{device.name} is suspended",
        sentence=f"By {suspension.by}: {suspension.reason}" if suspension else "",
        at=suspension.at if suspension else None,
        href=f"/machines/{device.name}",
        button="Look",
        policy=device.policy,
    )


def _unwell(device: Device) -> WaitingEntry:
    silent = device.standing.outcome is RoundOutcome.UNREACHABLE
    code = device.standing.code
    return WaitingEntry(
        key=f"unwell-{device.name}",
        kind="silent" if silent else "refused",
        title=f"{device.name} is silent" if silent else f"{device.name} runs, and was refused: {code}",
        sentence=action_for(code, device.name),
        at=device.standing.since,
        href=f"/machines/{device.name}",
        button="Look",
        policy=device.policy,
    )


def _stopped(policy: str, name: str, why: str | None, at: datetime | None) -> WaitingEntry:
    return WaitingEntry(
        key=f"rollout-{policy}-{name}",
        kind="rollout",
        title=f"Rollout {name} of policy {policy} stopped",
        sentence=why or "No reason was given.",
        at=at,
        href=f"/policies/{policy}",
        button="Look",
        policy=policy,
    )
