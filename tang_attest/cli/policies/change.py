"""``tang-attest policy dry-run`` and ``apply``: a change of a policy, tried and made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.cli.renamed import Command
from tang_attest.documents import MAX_DOCUMENT, load_yaml
from tang_attest.files import read_file

if TYPE_CHECKING:
    from tang_attest.protocol.changes.change import PolicyChange
    from tang_attest.protocol.changes.dry_run import DryRun, Group
    from tang_attest.server.compose import Installation

#: Names that a line of a dry run has.
_NAMED: Final = 5

#: The old name of the option for the file of a change.
RENAMED: Final = {"--change": "--file"}

change_option: Callable[[Any], Any] = click.option(
    "--file",
    type=click.Path(path_type=Path),
    required=True,
    help="YAML or JSON: what to add, to retire, and the rules; - is stdin.",
)


@click.command("dry-run", cls=Command, renamed=RENAMED)
@click.argument("name")
@change_option
@output.json_option
def dry_run(name: str, file: Path, as_json: bool) -> None:
    """Try a change on the last evidence of each machine.

    Nothing is changed.  The exit code is 1 when a machine would be refused that is not refused now.
    """
    document = read_change(file)

    async def judge(installation: Installation) -> DryRun:
        return await installation.policy_changes.dry_run(
            name, await installation.policy_changes.parse(name, document)
        )

    result = run(judge)
    if as_json:
        output.print_json(_as_json(result))
    else:
        _show(result)
    click.get_current_context().exit(1 if result.refused else 0)


@click.command(cls=Command, renamed=RENAMED)
@click.argument("name")
@change_option
@click.option("--force", is_flag=True, help="Even if machines would be refused.")
@output.json_option
def apply(name: str, file: Path, force: bool, as_json: bool) -> None:
    """Change a policy for every machine at once.

    'rollout start' reaches some machines first.

    \b
    tang-attest policy dry-run webservers --file image-42.yaml && \\
    tang-attest policy apply webservers --file image-42.yaml
    """
    document = read_change(file)

    async def change(installation: Installation) -> PolicyChange:
        wanted = await installation.policy_changes.parse(name, document)
        await installation.policy_changes.apply(name, wanted, force=force)
        return wanted

    made = run(change)
    output.done(as_json, f"policy {name} is changed: {describe(made)}", _change_as_json(name, made))


def read_change(file: Path) -> object:
    """The document in *file*.  Raises ``file-unreadable``, ``request-too-large``, ``document-invalid``."""
    return load_yaml(read_file(file, MAX_DOCUMENT), "The change")


def describe(change: PolicyChange) -> str:
    """Describe *change* in some words."""
    words = [f"{state.label} staged" for state in change.add]
    words += [f"{label} retired" for label in change.retire]
    if change.rules is not None:
        words.append(f"{len(change.rules.rules)} rules over event logs")
    return ", ".join(words)


def _change_as_json(policy: str, change: PolicyChange) -> dict[str, object]:
    rules = None if change.rules is None else len(change.rules.rules)
    staged = [state.label for state in change.add]
    return {"policy": policy, "staged": staged, "retired": list(change.retire), "rules": rules}


def some(names: tuple[str, ...]) -> str:
    """The first of *names*, and how many there are more."""
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED:,} more" if len(names) > _NAMED else shown


def _show(result: DryRun) -> None:
    would = "would refuse" if result.refused else "would refuse none of"
    count = f" {len(result.refused_devices):,} of" if result.refused else ""
    click.echo(f"{would}{count} {result.devices:,} machines{':' if result.refused else ''}")
    _show_groups(result.refused)
    if result.helped:
        click.echo(f"would permit {len(result.helped):,} that are refused now: {some(result.helped)}")
    if result.already:
        click.echo(f"refused already, and still: {sum(len(group.devices) for group in result.already):,}")
        _show_groups(result.already)
    if result.unknown:
        click.echo(f"nothing known of {len(result.unknown):,}: {some(result.unknown)}")


def _show_groups(groups: tuple[Group, ...]) -> None:
    for group in groups:
        sentence = output.decapitalize(group.reason.sentence.rstrip("."))
        click.echo(f"  {len(group.devices):,}: {output.printable(sentence)}: {some(group.devices)}")


def _as_json(result: DryRun) -> dict[str, object]:
    return {
        "devices": result.devices,
        "would_refuse": len(result.refused_devices),
        "refused": [_group_as_json(group) for group in result.refused],
        "refused_already": [_group_as_json(group) for group in result.already],
        "permitted_again": list(result.helped),
        "unknown": list(result.unknown),
    }


def _group_as_json(group: Group) -> dict[str, object]:
    return {**group.reason.as_json(), "devices": list(group.devices)}
