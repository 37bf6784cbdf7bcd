"""``tang-attest policy rollout``."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.cli.policies.change import RENAMED, change_option, describe, read_change, some
from tang_attest.cli.policies.states import hint_retire
from tang_attest.cli.renamed import Command
from tang_attest.cli.types import Share
from tang_attest.protocol.changes.rollout import WHOLE, Rollout, RolloutPhase
from tang_attest.service.policies.rollouts import RolloutStatus, RolloutTerms

if TYPE_CHECKING:
    from tang_attest.ports.policies import RolloutDevice
    from tang_attest.server.compose import Installation

_FORCE_HELP: Final = "Even if machines would be refused."
#: Seconds between two looks of --watch.
_PAUSE_S: Final = 2


@click.group()
def rollout() -> None:
    """Let a change reach some devices first.

    A rollout stops by itself when more devices are refused than its limit allows.
    """


@rollout.command(cls=Command, renamed=RENAMED)
@click.argument("policy")
@change_option
@click.option("--name", required=True, help="What the rollout is called, such as kernel-6.12.")
@click.option("--share", type=Share(), help="This share of the machines first, such as 10%.")
@click.option("--label", help="The machines that have this label first.")
@click.option(
    "--limit",
    type=click.IntRange(0, 1_000_000),
    default=0,
    show_default=True,
    help="How many machines may be refused; one more stops the rollout.",
)
@click.option(
    "--salt",
    help="What the share is drawn by, random by default; that of another rollout draws the same machines.",
)
@click.option("--force", is_flag=True, help=_FORCE_HELP)
@output.json_option
def start(
    policy: str,
    file: Path,
    name: str,
    share: int | None,
    label: str | None,
    limit: int,
    salt: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Start a rollout to a share or a label.

    \b
    tang-attest policy rollout start webservers --file image-42.yaml --name image-42 --share 5% --limit 3
    """
    if (share is None) == (label is None):
        raise click.UsageError("Say --share or --label.")
    document = read_change(file)

    async def begin(installation: Installation) -> RolloutStatus:
        change = await installation.policy_changes.parse(policy, document)
        terms = RolloutTerms(name, share, label, limit, salt)
        await installation.rollouts.start(policy, change, terms, force=force)
        return await installation.rollouts.status(policy)

    status = run(begin)
    if as_json:
        output.print_json(_as_json(status))
        return
    output.say(f"rollout {name} of policy {policy} runs: {describe(status.rollout.change)}")
    output.say(
        f"it reaches {len(status.waiting):,} of {status.devices:,} machines, {_audience(status.rollout)}"
    )


@rollout.command()
@click.argument("policy", required=False)
@click.option("--watch", is_flag=True, help="Print a line for each change until the rollout runs no more.")
@output.json_option
def status(policy: str | None, watch: bool, as_json: bool) -> None:
    """Show which devices a rollout has reached.

    Without POLICY, show every rollout that is not over, else the newest rollout of the policy.
    """
    if watch:
        if policy is None:
            raise click.UsageError("--watch needs a policy.")
        run(lambda state: _watch(state, policy, as_json))
        return
    found = run(lambda state: _load(state, policy))
    if as_json:
        output.print_json(_as_json(found[0]) if policy else [_as_json(each) for each in found])
        return
    if not found:
        output.say("no rollout is under way")
    for each in found:
        _show(each)


@rollout.command()
@click.argument("policy")
@click.option("--share", type=Share(), required=True, help="The share of the machines from now on.")
@click.option("--force", is_flag=True, help=_FORCE_HELP)
@output.json_option
def widen(policy: str, share: int, force: bool, as_json: bool) -> None:
    """Let the change reach a larger share of the devices."""

    async def more(installation: Installation) -> RolloutStatus:
        await installation.rollouts.widen(policy, share, force=force)
        return await installation.rollouts.status(policy)

    wider = run(more)
    if as_json:
        output.print_json(_as_json(wider))
        return
    output.say(f"rollout {wider.rollout.name} of policy {policy} reaches {_audience(wider.rollout)}")
    output.say(f"passed: {len(wider.passed):,}, not booted yet: {len(wider.waiting):,}")


_reason_option: Callable[[Any], Any] = click.option(
    "--reason", help="For the audit record, and for operators who look at the status."
)
#: The old name of that option.
_WHY: Final = {"--why": "--reason"}


@rollout.command(cls=Command, renamed=_WHY)
@click.argument("policy")
@_reason_option
@output.json_option
def stop(policy: str, reason: str | None, as_json: bool) -> None:
    """Reach no further device.

    Devices that passed keep the change.
    """
    _move(policy, as_json, lambda state: state.rollouts.stop(policy, reason))


@rollout.command()
@click.argument("policy")
@output.json_option
def resume(policy: str, as_json: bool) -> None:
    """Let a stopped rollout run again.

    Refused devices are counted anew.
    """
    _move(policy, as_json, lambda state: state.rollouts.resume(policy))


@rollout.command()
@click.argument("policy")
@click.option("--force", is_flag=True, help=_FORCE_HELP)
@output.json_option
def finish(policy: str, force: bool, as_json: bool) -> None:
    """Let the change count for every device of the policy.

    The rollout is over then.
    """
    _move(policy, as_json, lambda state: state.rollouts.finish(policy, force=force))
    if not as_json:
        _hint_retirable(run(lambda state: state.rollouts.status(policy)))


@rollout.command(cls=Command, renamed=_WHY)
@click.argument("policy")
@_reason_option
@click.option("--force", is_flag=True, help="Even if machines that passed will be refused.")
@output.json_option
def abandon(policy: str, reason: str | None, force: bool, as_json: bool) -> None:
    """Take the change back, and retire its states.

    The rollout is over then.
    """
    _move(policy, as_json, lambda state: state.rollouts.abandon(policy, reason, force=force))


def _move(policy: str, as_json: bool, move: Callable[[Installation], Awaitable[Rollout]]) -> None:
    moved = run(move)
    if as_json:
        output.print_json(_as_json(run(lambda state: state.rollouts.status(policy))))
        return
    output.say(f"rollout {moved.name} of policy {policy} is {moved.status.value}")


async def _load(installation: Installation, policy: str | None) -> list[RolloutStatus]:
    if policy is not None:
        return [await installation.rollouts.status(policy)]
    from tang_attest.ports.store import if_ours

    found = []
    for known in await installation.store.policies.list_policies():
        newest = await if_ours(installation.store.policies.get_rollout(known.name))
        if newest is not None and not newest.over:
            found.append(await installation.rollouts.status(known.name))
    return found


async def _watch(installation: Installation, policy: str, as_json: bool) -> None:
    shown = None
    while True:
        now = await installation.rollouts.status(policy)
        if (line := _line(now)) != shown:
            if as_json:
                output.print_json_line(_as_json(now))
            else:
                click.echo(line)
            shown = line
        if now.rollout.status is not RolloutPhase.RUNNING:
            return
        await asyncio.sleep(_PAUSE_S)


def _line(status: RolloutStatus) -> str:
    counts = (
        f"{len(status.passed):,} passed, {len(status.refused):,} refused, {len(status.waiting):,} waiting"
    )
    return f"{status.rollout.status.value}, {_audience(status.rollout)}: {counts}"


def _audience(rollout: Rollout) -> str:
    labeled = [f"those labeled {rollout.label}"] if rollout.label else []
    share = [f"a share of {rollout.share * 100 / WHOLE:g}%"] if rollout.share else []
    return " and ".join(labeled + share)


def _show(status: RolloutStatus) -> None:
    rollout = status.rollout
    click.echo(f"{rollout.name} of policy {rollout.policy}: {_line(status)}")
    click.echo(f"changes: {output.printable(describe(rollout.change))}")
    click.echo(f"limit: {rollout.limit:,} refused")
    if rollout.why:
        click.echo(f"{rollout.status.value} by {rollout.ended_by}: {output.printable(rollout.why)}")
    if status.waiting:
        click.echo(f"waiting: {some(status.waiting)}")
    for entry in status.refused:
        click.echo(f"refused: {entry.device} ({entry.about})")
    rows = [
        (label, "rolled out" if label in rollout.change.added else None, count)
        for label, count in status.states
    ]
    output.table(("booted last", "this rollout", "machines"), rows, empty="the policy has no machines")
    _hint_retirable(status)


def _hint_retirable(status: RolloutStatus) -> None:
    for label in status.retirable:
        hint_retire(status.rollout.policy, label)


def _as_json(status: RolloutStatus) -> dict[str, object]:
    return {
        **status.rollout.as_json(),
        "devices": status.devices,
        "passed": [_device_as_json(entry) for entry in status.passed],
        "refused": [_device_as_json(entry) for entry in status.refused],
        "waiting": list(status.waiting),
        "states": [{"label": label, "devices": count} for label, count in status.states],
        "retirable": list(status.retirable),
    }


def _device_as_json(entry: RolloutDevice) -> dict[str, object]:
    return {"device": entry.device, "about": entry.about, "at": entry.at}
