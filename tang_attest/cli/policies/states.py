"""Policy subcommands for reference states: add one, and move it along its life."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import click

from tang_attest.cli import output
from tang_attest.cli.coverage import accept_option, say_coverage
from tang_attest.cli.invocation import run
from tang_attest.cli.renamed import Command, Renamed
from tang_attest.cli.types import Duration
from tang_attest.files import read_file
from tang_attest.protocol.coverage import BootPart
from tang_attest.protocol.eventlog import MAX_LOG_SIZE
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.values.pcr_file import parse_values
from tang_attest.server.compose import Installation
from tang_attest.service.policies.reference_values import Backing

_MAX_VALUES: Final = 64 * 1024
_POLICY_AND_LABEL: Final = 2

_label_option: Callable[[Any], Any] = click.option("--label", help="Name of the state; the time by default.")
_force_option: Callable[[Any], Any] = click.option(
    "--force", is_flag=True, help="Accept values of a boot that nothing measured."
)
_log_option: Callable[[Any], Any] = click.option(
    "--eventlog",
    "log_file",
    type=click.Path(path_type=Path),
    help="The event log of the boot that had these values, for its coverage.",
)


@click.command(cls=Command, renamed={"--values": "--file"})
@click.argument("name")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    required=True,
    help='Output of \'tpm2 pcrread\', or JSON {"0": "hex", ...}; - is stdin.',
)
@_label_option
@_log_option
@accept_option
@_force_option
@output.json_option
def record(
    name: str,
    file: Path,
    label: str | None,
    log_file: Path | None,
    accepted: tuple[BootPart, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Add a reference state from a file of PCR values.

    \b
    tpm2 pcrread sha256:0,2,4,7,8,9,15 | tang-attest policy record webservers --file - --label 6.1.0-28
    """
    data = read_file(file, _MAX_VALUES)
    backing = _backing(log_file, accepted)

    async def add(installation: Installation) -> tuple[ReferencePolicy, ReferenceState]:
        policy = await installation.store.policies.get_policy(name)
        values = parse_values(data, policy.selection)
        made = await installation.reference_values.record(name, label, values, force=force, backing=backing)
        return policy, made

    policy, made = run(add)
    output.done(as_json, f"policy {name} has a new state: {made.label}", _result(name, made))
    say_coverage(backing.event_log, policy.selection, made.values, policy.cap_pcr, made.accepted)


def _backing(log_file: Path | None, accepted: tuple[BootPart, ...]) -> Backing:
    """Return the event log in a file, if there is one, and the parts that are accepted.  Raises ``file-unreadable``."""
    event_log = b"" if log_file is None else read_file(log_file, MAX_LOG_SIZE)
    return Backing(event_log=event_log, accepted=accepted)


@click.command()
@click.argument("name")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help='Output of \'tpm2 pcrread\', or JSON {"0": "hex", ...}; - is stdin.',
)
@click.option("--announced", metavar="LABEL", help="The state that a machine announced for its next boot.")
@_label_option
@click.option("--for", "valid_for", type=Duration(), help="For this long only, such as 30d.")
@_log_option
@accept_option
@_force_option
@output.json_option
def stage(
    name: str,
    file: Path | None,
    announced: str | None,
    label: str | None,
    valid_for: timedelta | None,
    log_file: Path | None,
    accepted: tuple[BootPart, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Let a state count before any machine boots it.

    States that count now stay valid.  The first machine that boots the staged state makes it active.

    Before you stage what a machine announced, look at its changes with 'tang-attest policy staged': root on
    the machine can announce anything.

    \b
    tang-attest policy stage webservers --file image-42.pcrs --label image-42
    tang-attest policy stage pi-b --announced "kernel 6.1.0-29"
    """
    if announced is not None:
        given = (file, label, valid_for, log_file)
        if any(option is not None for option in given) or force:
            raise click.UsageError("--announced takes no other option: a machine has announced the rest")
        _stage_announced(name, announced, accepted, as_json)
        return
    if file is None:
        raise click.UsageError("missing option '--file', or '--announced'")
    data = read_file(file, _MAX_VALUES)
    backing = _backing(log_file, accepted)

    async def add(installation: Installation) -> tuple[ReferencePolicy, ReferenceState]:
        policy = await installation.store.policies.get_policy(name)
        values = parse_values(data, policy.selection)
        return policy, await installation.reference_values.stage(
            name, label, values, valid_for=valid_for, force=force, backing=backing
        )

    policy, made = run(add)
    output.done(as_json, f"policy {name} has a staged state: {made.label}", _result(name, made))
    say_coverage(backing.event_log, policy.selection, made.values, policy.cap_pcr, made.accepted)


def _stage_announced(name: str, label: str, accepted: tuple[BootPart, ...], as_json: bool) -> None:
    run(lambda state: state.reference_values.approve_state(name, label, accepted=accepted))
    output.done(as_json, f"state {label} of policy {name} is approved and staged", _load(name, label))


@click.command()
@click.argument("name", required=False)
@output.wide_option
@output.json_option
def staged(name: str | None, wide: bool, as_json: bool) -> None:
    """List states that were announced or not booted yet."""

    async def load(installation: Installation) -> list[tuple[ReferencePolicy, ReferenceState]]:
        policies = (
            [await installation.store.policies.get_policy(name)]
            if name
            else await installation.store.policies.list_policies()
        )
        waiting = (Life.PROPOSED, Life.STAGED)
        return [(p, s) for p in policies for s in p.states if s.life in waiting]

    rows = run(load)
    if as_json:
        output.print_json([_result(p.name, s) for p, s in rows])
        return
    output.table(
        ("policy", "state", "life", "origin", "by", "since", "changes"),
        [
            (p.name, s.label, s.life.value, s.origin, s.created_by, s.created_at, "; ".join(s.notes) or None)
            for p, s in rows
        ],
        empty="nothing is staged, and nothing waits for approval",
        extra=("origin", "by"),
        prose=("changes",),
        wide=wide,
    )
    for p, s in rows:
        if s.life is Life.PROPOSED:
            output.hint(f"tang-attest policy stage {p.name} --announced {shlex.quote(s.label)}")


@click.command()
@click.argument("name")
@click.argument("label")
@click.option(
    "--force", is_flag=True, help="Even if a machine booted it last; its next boot will be refused."
)
@output.json_option
def retire(name: str, label: str, force: bool, as_json: bool) -> None:
    """Let a state count no more.

    Or reject an announced one.  A kernel that turned out to be vulnerable, for example, opens nothing then.
    """
    run(lambda state: state.reference_values.retire(name, label, force=force))
    output.done(as_json, f"state {label} of policy {name} is retired", _load(name, label))


@click.command()
@click.argument("name")
@click.argument("label")
@output.json_option
def reinstate(name: str, label: str, as_json: bool) -> None:
    """Let a retired state count again."""
    run(lambda state: state.reference_values.restore(name, label))
    output.done(as_json, f"state {label} of policy {name} counts again", _load(name, label))


@click.command("trust-predictions")
@click.argument("name")
@click.argument("trusted", type=click.Choice(["on", "off"]))
@output.json_option
def trust_predictions(name: str, trusted: str, as_json: bool) -> None:
    """Let an announced state count at once.

    It counts for the machine that announced it.  Root on an approved machine can then choose the software of
    its next boot.  By default, 'off', the operator is asked.
    """
    run(lambda state: state.reference_values.trust_predictions(name, trusted == "on"))
    how = "trusts" if trusted == "on" else "does not trust"
    result = {"policy": name, "trust_predictions": trusted == "on"}
    output.done(as_json, f"policy {name} {how} predictions", result)


def _load(policy: str, label: str) -> dict[str, object] | None:
    """The state *label* of *policy* as it is now, for programs."""
    states = run(lambda state: state.store.policies.get_policy(policy)).states
    return next((_result(policy, state) for state in states if state.label == label), None)


def _result(policy: str, state: ReferenceState) -> dict[str, object]:
    return {"policy": policy, **state_as_json(state)}


def _as_announced(args: list[str]) -> list[str]:
    """Return the arguments of ``stage`` for POLICY LABEL."""
    words = [number for number, word in enumerate(args) if not word.startswith("-")]
    if len(words) < _POLICY_AND_LABEL:
        return args
    return [*args[: words[1]], "--announced", *args[words[1] :]]


#: The old names of these commands.
RENAMED: Final = {
    "approve": Renamed("stage", _as_announced, "stage POLICY --announced LABEL"),
    "restore": Renamed("reinstate"),
}
COMMANDS: Final = (record, stage, staged, retire, reinstate, trust_predictions)


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
        "accepted_uncovered": [part.value for part in state.accepted],
        "values": {str(pcr): value.hex() for pcr, value in sorted(state.values.items())},
    }
