"""Policy subcommands for reference states: add one, and move it along its life."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tang_attest.cli import output
from tang_attest.cli.coverage import accept_option, say_coverage
from tang_attest.cli.invocation import run
from tang_attest.cli.renamed import Command, Renamed
from tang_attest.cli.types import Duration
from tang_attest.files import read_file
from tang_attest.protocol.eventlog import MAX_LOG_SIZE
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.values.pcr_file import parse_values
from tang_attest.service.policies.reference_values import Backing

if TYPE_CHECKING:
    from tang_attest.protocol.coverage import BootPart
    from tang_attest.protocol.policy import ReferencePolicy
    from tang_attest.server.compose import Installation

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

    A signed statement ('tang-attest values sign') counts, too, if the policy trusts its signer: for machines that bring
    none themselves, and for as long as it says.

    Before you stage what a machine announced, look at its changes with 'tang-attest policy staged': root on
    the machine can announce anything.

    \b
    tang-attest policy stage webservers --file image-42.pcrs --label image-42
    tang-attest policy stage webservers --file image-43.tang-attest.jws
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
    if _is_statement(data):
        if any(option is not None for option in (label, valid_for, log_file)) or force or accepted:
            raise click.UsageError(
                "a signed statement says its label and its time itself: it takes no other option"
            )
        _post(name, data, as_json)
        return
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


def _is_statement(data: bytes) -> bool:
    """Return True if *data* looks like a compact JWS, which no list of PCR values does."""
    return re.fullmatch(rb"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*\s*", data) is not None


def _post(name: str, data: bytes, as_json: bool) -> None:
    posted = run(lambda state: state.signers.post(name, data.decode("ascii")))
    until = output.minute(posted.statement.not_after)
    sentence = f"policy {name} has values {posted.state} until {until}"
    output.done(
        as_json, sentence, {"policy": name, **posted.state.named(), "not_after": posted.statement.not_after}
    )


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

    If the policy trusts signers, values that they signed with this label, or with a label below it, count no more
    either, at once and whatever key signs them.
    """

    async def end(installation: Installation) -> tuple[bool, bool]:
        policy = await installation.store.policies.get_policy(name)
        counts = any(state.label == label and state.life is not Life.RETIRED for state in policy.states)
        signed = bool(policy.signers) and not (counts and label in policy.signers.retired)
        if counts or not signed:
            await installation.reference_values.retire(name, label, force=force)
        if signed:
            await installation.signers.retire(name, label)
        return counts or not signed, signed

    state, signed = run(end)
    if state:
        output.done(as_json, f"state {label} of policy {name} is retired", _load(name, label))
    elif as_json:
        output.print_json(_signed_label(name, label, retired=True))
    if signed and not as_json:
        output.say(f"values signed as {label}, or as {label}/..., count no more under policy {name}")


@click.command()
@click.argument("name")
@click.argument("label")
@output.json_option
def reinstate(name: str, label: str, as_json: bool) -> None:
    """Let a retired state count again.

    Or the label of signed values.
    """

    async def begin(installation: Installation) -> tuple[bool, bool]:
        policy = await installation.store.policies.get_policy(name)
        retired = any(state.label == label and state.life is Life.RETIRED for state in policy.states)
        signed = label in policy.signers.retired
        if retired or not signed:
            await installation.reference_values.restore(name, label)
        if signed:
            await installation.signers.reinstate(name, label)
        return retired or not signed, signed

    state, signed = run(begin)
    if state:
        output.done(as_json, f"state {label} of policy {name} counts again", _load(name, label))
    elif as_json:
        output.print_json(_signed_label(name, label, retired=False))
    if signed and not as_json:
        output.say(f"values signed as {label}, or as {label}/..., count again under policy {name}")


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


def _signed_label(policy: str, label: str, *, retired: bool) -> dict[str, object]:
    return {"policy": policy, "label": label, "signed": True, "retired": retired}


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
