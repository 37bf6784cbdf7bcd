"""The subcommands of ``tang-attest policy`` that move a reference state along its life."""

from __future__ import annotations

import shlex
from datetime import timedelta
from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.state import run
from tang_attest.cli.types import Duration
from tang_attest.files import read_file
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.values.pcr_file import parse_values
from tang_attest.server.compose import Installation


@click.command()
@click.argument("name")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    required=True,
    help='Output of \'tpm2 pcrread\', or JSON {"0": "hex", ...}; - is stdin.',
)
@click.option("--label", help="Name of the state; the time by default.")
@click.option("--for", "valid_for", type=Duration(), help="For this long only, such as 30d.")
@click.option("--force", is_flag=True, help="Accept values of a boot that nothing measured.")
def stage(name: str, file: Path, label: str | None, valid_for: timedelta | None, force: bool) -> None:
    """Approve values before any machine shows them, beside those that count now.

    The first machine that boots them makes the state active.

    \b
    tang-attest policy stage webservers --file image-42.pcrs --label image-42
    """
    data = read_file(file, 64 * 1024)

    async def add(state: Installation) -> ReferenceState:
        values = parse_values(data, (await state.store.get_policy(name)).selection)
        return await state.reference_values.stage(name, label, values, valid_for=valid_for, force=force)

    output.say(f"policy {name} has a staged state: {run(add).label}")


@click.command()
@click.argument("name", required=False)
@output.json_option
def staged(name: str | None, as_json: bool) -> None:
    """List what machines announced and what nobody has booted yet."""

    async def load(state: Installation) -> list[tuple[ReferencePolicy, ReferenceState]]:
        policies = [await state.store.get_policy(name)] if name else await state.store.list_policies()
        waiting = (Life.PROPOSED, Life.STAGED)
        return [(p, s) for p in policies for s in p.states if s.life in waiting]

    rows = run(load)
    if as_json:
        output.print_json([{"policy": p.name, **state_as_json(s)} for p, s in rows])
        return
    output.table(
        ("policy", "state", "life", "origin", "by", "since", "changes"),
        [
            (p.name, s.label, s.life.value, s.origin, s.created_by, s.created_at, "; ".join(s.notes) or None)
            for p, s in rows
        ],
        empty="nothing is staged, and nothing waits for approval",
    )
    for p, s in rows:
        if s.life is Life.PROPOSED:
            output.hint(f"tang-attest policy approve {p.name} {shlex.quote(s.label)}")


@click.command()
@click.argument("name")
@click.argument("label")
def approve(name: str, label: str) -> None:
    """Let an announced state count, before the machine boots it.

    Look at its changes first, with 'tang-attest policy staged': whoever is root on the machine can announce anything.
    """
    run(lambda state: state.reference_values.approve_state(name, label))
    output.say(f"state {label} of policy {name} is approved and staged")


@click.command()
@click.argument("name")
@click.argument("label")
@click.option(
    "--force", is_flag=True, help="Even if a machine booted it last; its next boot will be refused."
)
def retire(name: str, label: str, force: bool) -> None:
    """Let a state count no more, or reject an announced one.

    That is what you do with a kernel that turned out to be vulnerable.
    """
    run(lambda state: state.reference_values.retire(name, label, force=force))
    output.say(f"state {label} of policy {name} is retired")


@click.command()
@click.argument("name")
@click.argument("label")
def restore(name: str, label: str) -> None:
    """Let a retired state count again."""
    run(lambda state: state.reference_values.restore(name, label))
    output.say(f"state {label} of policy {name} counts again")


@click.command("trust-predictions")
@click.argument("name")
@click.argument("trusted", type=click.Choice(["on", "off"]))
def trust_predictions(name: str, trusted: str) -> None:
    """Let what a machine announces for its next boot count at once, for that machine.

    Whoever is root on an approved machine can then choose what it boots next.  Off, the default, the operator is asked.
    """
    run(lambda state: state.reference_values.trust_predictions(name, trusted == "on"))
    output.say(f"policy {name} {'trusts' if trusted == 'on' else 'does not trust'} predictions")


def hint_retire(policy: str, label: str) -> None:
    """Offer the state *label* of *policy* for retirement."""
    retire_it = f"tang-attest policy retire {policy} {shlex.quote(label)}"
    output.hint(f"no machine boots '{label}' any more: {retire_it}")


def state_as_json(state: ReferenceState) -> dict[str, object]:
    """*state*, for programs."""
    return {
        "label": state.label,
        "life": state.life.value,
        "origin": state.origin,
        "device": state.limits.device,
        "rollout": state.limits.rollout,
        "expires_at": state.limits.expires_at,
        "uses_left": state.limits.uses_left,
        "created_at": state.created_at,
        "created_by": state.created_by,
        "notes": list(state.notes),
        "values": {str(pcr): value.hex() for pcr, value in sorted(state.values.items())},
    }
