"""The subcommands of ``tang-attest policy`` that ask for more than values: watching, a person's word, being seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.offline.ima import read_requirement
from tang_attest.cli.state import run
from tang_attest.cli.types import Duration
from tang_attest.protocol.conditions import Conditions, Watch
from tang_attest.server.compose import Installation


def spell(conditions: Conditions) -> list[str]:
    """*conditions* in a few words each."""
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
    return words


def _change(name: str, change: Callable[[Conditions], Conditions]) -> None:
    async def use(state: Installation) -> None:
        conditions = (await state.store.get_policy(name)).conditions
        await state.registry.set_conditions(name, change(conditions))

    run(use)


@click.command("watch")
@click.argument("name")
@click.option("--off", is_flag=True, help="Watch its machines no longer.")
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
    help="When a machine falls silent; the same words.",
)
def watch_policy(
    name: str,
    off: bool,
    every: timedelta,
    jitter: int,
    misses: int,
    on_failure: tuple[str, ...],
    on_unreachable: tuple[str, ...],
) -> None:
    """Verify the machines of a policy continuously, by their agents, and act on what comes of it.

    A hook is a program in the directory of 'serve --hook-dir'; a webhook is signed with 'serve --webhook-secret'.

    \b
    tang-attest policy watch webservers --every 60s --misses 3 --on-failure suspend --on-failure hook:page
    """
    terms = None
    if not off:
        terms = Watch(
            interval_s=int(every.total_seconds()),
            jitter=jitter,
            misses=misses,
            on_refused=on_failure,
            on_unreachable=on_unreachable,
        )
    _change(name, lambda conditions: replace(conditions, watch=terms))
    how = "not watched" if terms is None else f"verified every {terms.interval_s} s"
    output.say(f"the machines of policy {name} are {how}")


@click.command("require-approval")
@click.argument("name")
@click.argument("required", type=click.Choice(["on", "off"]))
def require_approval(name: str, required: str) -> None:
    """Let each unlock wait for a person who says 'tang-attest device allow'."""
    _change(name, lambda conditions: replace(conditions, approval=required == "on"))
    output.say(
        f"an unlock under policy {name} {'waits' if required == 'on' else 'does not wait'} for a person"
    )


@click.command("require-attested-root")
@click.argument("name")
@click.argument("required", type=click.Choice(["on", "off"]))
def require_attested_root(name: str, required: str) -> None:
    """Refuse running machines unless attestation opened each disk of their boot.

    A boot that was opened by a passphrase, a root that is not the attested one, and a machine that does not tell are
    then refused, with the consequences of 'policy watch'.  It never keeps a disk closed by itself.
    """
    _change(name, lambda conditions: replace(conditions, attested_root=required == "on"))
    need = "have to prove" if required == "on" else "need not prove"
    output.say(f"running machines of policy {name} {need} that attestation opened their disks")


@click.command("refuse-stale")
@click.argument("name")
@click.option("--after", type=Duration(), help="Time without good evidence, such as 30d.")
@click.option("--off", is_flag=True, help="However long it was away.")
def refuse_stale(name: str, after: timedelta | None, off: bool) -> None:
    """Refuse machines that gave no good evidence for long, until a person says 'tang-attest device allow'."""
    if off == (after is not None):
        raise click.UsageError("say --after or --off")
    seconds = None if after is None else int(after.total_seconds())
    _change(name, lambda conditions: replace(conditions, stale_after_s=seconds))
    output.say(
        f"policy {name} {'does not ask when a machine was seen' if off else 'refuses machines not seen for long'}"
    )


@click.command("ima")
@click.argument("name")
@click.option("--allow", type=click.Path(path_type=Path), help="What is allowed: YAML, see docs/rules.md.")
@click.option(
    "--sums", type=click.Path(path_type=Path), multiple=True, help="Allowed files, as sha256sum prints them."
)
@click.option("--off", is_flag=True, help="Require nothing.")
def require_ima(name: str, allow: Path | None, sums: tuple[Path, ...], off: bool) -> None:
    """Require that running machines measured with IMA only what is allowed.

    Each machine's list is read once a boot, and from its beginning when what is allowed changes.
    'tang-attest ima check' tries it first.
    """
    if off == (allow is not None or bool(sums)):
        raise click.UsageError("say what is allowed, or --off")
    requirement = None if off else read_requirement(allow, sums)

    async def use(state: Installation) -> None:
        await state.registry.require_ima(name, requirement)

    run(use)
    output.say(f"policy {name} {'does not ask' if off else 'asks'} what IMA measured")


COMMANDS = (require_ima, watch_policy, require_approval, require_attested_root, refuse_stale)
