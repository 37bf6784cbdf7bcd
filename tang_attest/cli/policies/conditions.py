"""Policy subcommands for conditions: rounds at an interval, approval by a person, staleness, IMA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.cli.offline.ima import read_requirement
from tang_attest.cli.policies.bells import ring, warn_of_silent
from tang_attest.cli.renamed import Command, Renamed, note, switched
from tang_attest.cli.types import Duration
from tang_attest.protocol.conditions import MAX_OPERATORS, Conditions, Watch

if TYPE_CHECKING:
    from tang_attest.server.compose import Installation


def spell(conditions: Conditions) -> list[str]:
    """Return a few words for each of *conditions*."""
    words = []
    if (watch := conditions.watch) is not None:
        on_refused, on_unreachable = "+".join(watch.on_refused), "+".join(watch.on_unreachable)
        words.append(
            f"verified every {watch.interval_s} s (refused: {on_refused}; unreachable after {watch.misses}: {on_unreachable})"
        )
    if conditions.approval:
        words.append("unlocks wait for a person")
    if conditions.stale_after_s is not None:
        words.append(f"refuses who was not seen for {timedelta(seconds=conditions.stale_after_s)}")
    if conditions.ima is not None:
        words.append(f"asks what IMA measured (requirement {conditions.ima[:8]})")
    if conditions.attested_root:
        words.append("verifies running machines only if attestation opened their disks")
    if conditions.registered_ek:
        words.append("enrolls only machines whose EK is registered")
    if conditions.operators > 1:
        words.append(f"{conditions.operators} operators sign each approval")
    return words


def _switch(meaning: str) -> Callable[[Any], Any]:
    """The argument ``on`` or ``off`` of a command, named *meaning* in it."""
    return click.argument(
        meaning, type=click.Choice(["on", "off"]), callback=lambda _, __, word: word == "on"
    )


def _change(
    name: str, as_json: bool, sentence: str | None, change: Callable[[Conditions], Conditions]
) -> Conditions:
    """Change the conditions of policy *name*, report it with *sentence* if there is one, and return them."""

    async def use(installation: Installation) -> Conditions:
        before = (await installation.store.policies.get_policy(name)).conditions
        changed = change(before)
        if changed != before or sentence is not None:
            await installation.conditions.set(name, changed)
        return changed

    changed = run(use)
    if as_json or sentence is not None:
        output.done(as_json, sentence or "", {"policy": name, "conditions": changed.as_json()})
    return changed


@click.command("require-rounds")
@click.argument("name")
@_switch("required")
@click.option(
    "--every", type=Duration(), default="60s", show_default=True, help="Time between two rounds of a machine."
)
@click.option(
    "--jitter",
    type=click.IntRange(0, 50),
    default=10,
    show_default=True,
    help="Percent by which that time varies.",
)
@click.option(
    "--misses",
    type=click.IntRange(1, 1000),
    default=3,
    show_default=True,
    help="Intervals without evidence until a machine is unreachable.",
)
@click.option(
    "--on-failure",
    multiple=True,
    default=("log",),
    show_default=True,
    help="When a machine is refused: log, suspend, hook:NAME or webhook:URL; repeat it for more.",
)
@click.option(
    "--on-unreachable",
    multiple=True,
    default=("log",),
    show_default=True,
    help="When a machine is unreachable; the same words.",
)
@click.option(
    "--test", is_flag=True, help="Then ring each hook and webhook once; alone, it changes nothing else."
)
@output.json_option
@click.pass_context
def require_rounds(
    ctx: click.Context,
    name: str,
    required: bool,
    every: timedelta,
    jitter: int,
    misses: int,
    on_failure: tuple[str, ...],
    on_unreachable: tuple[str, ...],
    test: bool,
    as_json: bool,
) -> None:
    """Verify machines at an interval, by their agents.

    A machine that is refused or unreachable has the given consequences.  A hook is a program in the directory
    of 'serve --hook-dir'; a webhook is signed with 'serve --webhook-secret'.  One that cannot ring is reported
    at once; --test rings them all, and fails with the first that does not answer.

    \b
    tang-attest policy require-rounds webservers on --every 60s --misses 3 --on-failure suspend
    tang-attest policy require-rounds webservers on --test
    tang-attest policy require-rounds webservers off
    """
    if test and not required:
        raise click.UsageError("--test needs on: without rounds nothing rings")
    terms = None
    if required:
        terms = Watch(
            interval_s=int(every.total_seconds()),
            jitter=jitter,
            misses=misses,
            on_refused=on_failure,
            on_unreachable=on_unreachable,
        )
    given = [ctx.get_parameter_source(parameter) for parameter in _TERMS]
    only_test = test and set(given) == {click.core.ParameterSource.DEFAULT}

    def change(conditions: Conditions) -> Conditions:
        return conditions if only_test and conditions.watch else replace(conditions, watch=terms)

    how = "not watched" if terms is None else f"verified every {terms.interval_s} s"
    sentence = None if only_test else f"the machines of policy {name} are {how}"
    watch = _change(name, as_json, sentence, change).watch
    if watch is not None:
        (ring if test else warn_of_silent)(name, watch)


#: The parameters of :func:`require_rounds` that are terms of a watch.
_TERMS: Final = ("every", "jitter", "misses", "on_failure", "on_unreachable")


@click.command("require-approval")
@click.argument("name")
@_switch("required")
@output.json_option
def require_approval(name: str, required: bool, as_json: bool) -> None:
    """Let each unlock wait for an operator.

    The operator runs 'tang-attest device allow' on the server.
    """
    sentence = f"an unlock under policy {name} {'waits' if required else 'does not wait'} for a person"
    _change(name, as_json, sentence, lambda conditions: replace(conditions, approval=required))


@click.command("require-attested-root")
@click.argument("name")
@_switch("required")
@output.json_option
def require_attested_root(name: str, required: bool, as_json: bool) -> None:
    """Require that attestation opened the volumes.

    Each volume of the boot counts.  A boot that a passphrase opened, a root that is not the attested one, and
    a machine that does not report are then refused in their rounds, with the consequences of 'policy
    require-rounds'.  The condition alone keeps no volume closed.
    """
    need = "have to prove" if required else "need not prove"
    sentence = f"running machines of policy {name} {need} that attestation opened their disks"
    _change(name, as_json, sentence, lambda conditions: replace(conditions, attested_root=required))


@click.command("require-registered-ek")
@click.argument("name")
@_switch("required")
@output.json_option
def require_registered_ek(name: str, required: bool, as_json: bool) -> None:
    """Enroll only machines whose EK is registered.

    'tang-attest device register --ek-sha256' registers one, '--from' a list.  A token alone then enrolls
    nothing.  Devices that are there stay.

    \b
    tang-attest policy require-registered-ek webservers on
    """
    sentence = f"policy {name} {'enrolls' if required else 'does not ask'}"
    sentence += " only machines whose EK is registered" if required else " for registered EKs"
    _change(name, as_json, sentence, lambda conditions: replace(conditions, registered_ek=required))


@click.command("require-operators")
@click.argument("name")
@click.argument("number", type=click.IntRange(1, MAX_OPERATORS))
@output.json_option
def require_operators(name: str, number: int, as_json: bool) -> None:
    """Let several operators sign each approval.

    With 2 or more, an approval waits until so many different operators of the console signed the same with their passkeys.
    This command line and admin tokens then add no trust to the policy.  With 1, they can again; the audit record
    has who lowered the number.

    \b
    tang-attest policy require-operators webservers 2
    """
    how = "needs one operator" if number == 1 else f"waits until {number} operators of the console signed it"
    sentence = f"an approval under policy {name} {how}"
    _change(name, as_json, sentence, lambda conditions: replace(conditions, operators=number))


def _old_stale(args: list[str]) -> list[str]:
    """Return *args* with ``on`` before the old ``--after``, which has become ``--for``, and ``off`` for ``--off``."""
    if "--off" in args:
        note("--off", "off")
        return switched(args)
    words = {"on", "off"}.intersection(args)
    with_time = any(word == "--for" or word.startswith("--for=") for word in args)
    return [*args, "on"] if with_time and not words else args


@click.command("refuse-stale", cls=Command, renamed={"--after": "--for"}, rewrite=_old_stale)
@click.argument("name")
@_switch("refused")
@click.option("--for", "longest", type=Duration(), help="Time without good evidence, such as 30d.")
@output.json_option
def refuse_stale(name: str, refused: bool, longest: timedelta | None, as_json: bool) -> None:
    """Refuse machines without good evidence for long.

    They stay refused until 'tang-attest device allow'.

    \b
    tang-attest policy refuse-stale laptops on --for 30d
    """
    if refused == (longest is None):
        raise click.UsageError("say 'on' with --for, or 'off' without it")
    seconds = None if longest is None else int(longest.total_seconds())
    how = "refuses machines not seen for long" if refused else "does not ask when a machine was seen"
    _change(
        name, as_json, f"policy {name} {how}", lambda conditions: replace(conditions, stale_after_s=seconds)
    )


@click.command("require-ima", cls=Command, renamed={"--allow": "--file"})
@click.argument("name")
@_switch("required")
@click.option(
    "--file", type=click.Path(path_type=Path), help="What is allowed: YAML, see docs/rules.md; - is stdin."
)
@click.option(
    "--sums", type=click.Path(path_type=Path), multiple=True, help="Allowed files, as sha256sum prints them."
)
@output.json_option
def require_ima(name: str, required: bool, file: Path | None, sums: tuple[Path, ...], as_json: bool) -> None:
    """Require that IMA measured only what is allowed.

    Each machine's list is read once a boot, and from its beginning when what is allowed changes.
    'tang-attest ima check' tries it first.

    \b
    tang-attest policy require-ima webservers on --file allowed.yaml --sums image-42.sums
    """
    if required != (file is not None or bool(sums)):
        raise click.UsageError("say 'on' with --file or --sums, or 'off' without them")
    requirement = read_requirement(file, sums) if required else None

    async def use(installation: Installation) -> None:
        await installation.conditions.require_ima(name, requirement)

    run(use)
    result = {"policy": name, "ima": None if requirement is None else requirement.digest}
    output.done(as_json, f"policy {name} {'asks' if required else 'does not ask'} what IMA measured", result)


#: The old names of these commands, whose switch was an option.
RENAMED: Final = {
    "watch": Renamed("require-rounds", switched, "require-rounds POLICY on|off"),
    "ima": Renamed("require-ima", switched, "require-ima POLICY on|off"),
}
COMMANDS: Final = (
    require_ima,
    require_rounds,
    require_approval,
    require_attested_root,
    require_registered_ek,
    require_operators,
    refuse_stale,
)
