"""``tang-attest policy``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.cli.policies import conditions, signers, states
from tang_attest.cli.policies.change import apply, dry_run
from tang_attest.cli.policies.rollout import rollout
from tang_attest.cli.policies.states import hint_retire, state_as_json
from tang_attest.cli.renamed import RenamingGroup
from tang_attest.cli.types import SelectionType
from tang_attest.protocol.policy import DEFAULT_CAP_PCR, DEFAULT_SELECTION, ReferencePolicy
from tang_attest.protocol.reference_state import COUNTING, ReferenceState
from tang_attest.protocol.values.pcr import Selection

if TYPE_CHECKING:
    from tang_attest.server.compose import Installation


@click.group(
    cls=RenamingGroup, renamed={**conditions.RENAMED, **states.RENAMED}, synonyms={"delete": "remove"}
)
def policy() -> None:
    """Policies: reference states, rules and conditions."""


@policy.command("list")
@output.json_option
def list_policies(as_json: bool) -> None:
    """List the policies and their states."""

    async def load(installation: Installation) -> list[ReferencePolicy]:
        return list(await installation.store.policies.list_policies())

    policies = run(load)
    if as_json:
        output.print_json([_as_json(entry) for entry in policies])
        return
    output.table(
        ("name", "selection", "cap pcr", "states"),
        [(p.name, p.selection, p.cap_pcr, _counting(p) or "EMPTY: refuses all") for p in policies],
        empty="no policies yet",
    )


@policy.command()
@click.argument("name")
@output.wide_option
@output.json_option
def show(name: str, wide: bool, as_json: bool) -> None:
    """Show a policy's states and PCR values."""

    async def load(installation: Installation) -> tuple[ReferencePolicy, Counter[str | None], list[str]]:
        booted = Counter(
            d.last_state for d in await installation.store.devices.list_devices() if d.policy == name
        )
        return (
            await installation.store.policies.get_policy(name),
            booted,
            await installation.reference_values.retirable(name),
        )

    entry, booted, retirable = run(load)
    if as_json:
        output.print_json({**_as_json(entry), "retirable": retirable})
        return
    trust = ", trusts predictions" if entry.trust_predictions else ""
    asked = "".join(f", {words}" for words in conditions.spell(entry.conditions))
    click.echo(f"{entry.name}: {entry.selection}, cap PCR {entry.cap_pcr}{trust}{asked}")
    output.table(
        ("state", "life", "origin", "for", "until", "boots left", "machines", "since", "accepted uncovered"),
        [
            (
                s.label,
                s.life.value,
                s.origin,
                _audience(s),
                s.limits.expires_at,
                s.limits.uses_left,
                booted[s.label],
                s.created_at,
                ", ".join(part.words for part in s.accepted) or None,
            )
            for s in entry.states
        ],
        empty="no reference state: the policy refuses everyone",
        extra=("origin", "boots left", "since"),
        wide=wide,
    )
    if entry.states:
        values = [(s.label, pcr, v.hex()) for s in entry.states for pcr, v in sorted(s.values.items())]
        output.table(("state", "pcr", "value"), values, empty="")
    if entry.signers:
        names = ", ".join(signer.name for signer in entry.signers.signers)
        output.say(f"trusts signed values of {names}: 'tang-attest policy signers {name}'")
    for label in retirable:
        hint_retire(name, label)


@policy.command()
@click.argument("name")
@click.option(
    "--selection", type=SelectionType(), show_default=DEFAULT_SELECTION, help="Bank and PCRs of each machine."
)
@click.option(
    "--cap-pcr",
    type=click.IntRange(0, 15),
    default=DEFAULT_CAP_PCR,
    show_default=True,
    help="The PCR that is extended once the disks are open.",
)
@output.json_option
def create(name: str, selection: Selection | None, cap_pcr: int, as_json: bool) -> None:
    """Create an empty policy.

    It refuses every machine, and permits machines once a state is recorded, staged or approved.
    """
    if selection is None and cap_pcr != DEFAULT_CAP_PCR:
        raise click.UsageError("--cap-pcr needs a --selection with that PCR")
    chosen = selection or Selection.parse(DEFAULT_SELECTION)
    made = run(lambda state: state.reference_values.create_policy(name, chosen, cap_pcr))
    output.done(as_json, f"policy {made.name} made over {made.selection}", _as_json(made))
    output.hint(f"add values with 'tang-attest policy record {made.name} --file FILE'")


@policy.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output.json_option
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Remove a policy that nothing uses.

    Its states and rollouts go with it.

    A policy that a device is under, that an unused token names, or that an admin token is limited to stays; the
    error names them.  'policy delete' does the same.
    """
    states = len(run(lambda state: state.store.policies.get_policy(name)).states)
    counted = "its state" if states == 1 else f"its {states} states"
    if not yes and states and not click.confirm(f"Remove policy {name} and {counted}?", err=True):
        output.say("nothing was removed")
        click.get_current_context().exit(1)
    run(lambda state: state.reference_values.remove_policy(name))
    output.done(as_json, f"policy {name} is removed", {"policy": name, "removed": True})


def _audience(state: ReferenceState) -> str:
    if state.limits.rollout is not None:
        return f"rollout {state.limits.rollout}"
    return state.limits.device or "all"


def _counting(entry: ReferencePolicy) -> str:
    return ", ".join(state.label for state in entry.states if state.life in COUNTING)


def _as_json(entry: ReferencePolicy) -> dict[str, object]:
    return {
        "name": entry.name,
        "selection": str(entry.selection),
        "cap_pcr": entry.cap_pcr,
        "trust_predictions": entry.trust_predictions,
        "conditions": entry.conditions.as_json(),
        "signers": [signers.signer_as_json(entry.name, signer) for signer in entry.signers.signers],
        "states": [state_as_json(state) for state in entry.states],
    }


for command in (dry_run, apply, rollout, *states.COMMANDS, *signers.COMMANDS, *conditions.COMMANDS):
    policy.add_command(command)
