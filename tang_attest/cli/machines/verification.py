"""``tang-attest device verify``, ``watch``, ``suspend``, ``resume``, ``allow``, ``history``, ``running-policy``.

Exit codes of verify and watch: 0 verified, 1 refused, 2 usage, 3 unreachable, 4 no such device.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.cli.types import Duration, Seconds, SelectionType
from tang_attest.errors import NotFound, action_for
from tang_attest.files import read_file
from tang_attest.ports.machines import Reach
from tang_attest.protocol.cap import MAX_TEXTS, Opened, OpenedBy
from tang_attest.protocol.verification import RoundOutcome, check_reach
from tang_attest.service.rounds.verify import Round

if TYPE_CHECKING:
    from tang_attest.ports.rounds import PastRound
    from tang_attest.protocol.values.pcr import Selection
    from tang_attest.server.compose import Installation
    from tang_attest.service.rounds.on_demand import OnDemandRounds

DEFAULT_AK: Final = "0x81010002"
EXIT_CODES: Final = {RoundOutcome.VERIFIED: 0, RoundOutcome.REFUSED: 1, RoundOutcome.UNREACHABLE: 3}
#: Exit code of verify and watch: there is no such device, or it has no key that a round could name.
NOT_REGISTERED: Final = 4
PATIENCE_S: Final = 15

Command = Callable[..., Any]


def rounds_of(installation: Installation, cap_events: Path | None = None) -> OnDemandRounds:
    """Return the use case that asks machines for evidence; *cap_events* names the cap's texts of a TPM that we ask.

    Raises ``file-unreadable``, ``request-too-large``.
    """
    return installation.rounds(None if cap_events is None else read_file(cap_events, MAX_TEXTS))


def reach_of(tcti: str | None, ak_handle: str) -> Reach | None:
    """The TPM that the options name, if they name one."""
    if tcti is None:
        return None
    check_reach(tcti, ak_handle)
    return Reach(tcti, ak_handle)


def _reach_options(command: Command) -> Command:
    options = (
        click.option(
            "--tcti",
            help="Ask this TPM ourselves, such as swtpm:host=127.0.0.1,port=2321, not the machine's agent.",
        ),
        click.option(
            "--ak-handle", default=DEFAULT_AK, show_default=True, help="Where the AK is in that TPM."
        ),
        click.option(
            "--timeout",
            "patience_s",
            type=Seconds(1, 600),
            default=PATIENCE_S,
            show_default=True,
            help="The longest wait for the agent, such as 15 or 2m.",
        ),
        click.option(
            "--cap-events",
            type=click.Path(path_type=Path),
            help="With a TPM that we ask: a copy of the machine's /run/clevis-attest/cap-events.",
        ),
    )
    for option in options:
        command = option(command)
    return command


@click.command()
@click.argument("name")
@click.option("--record", is_flag=True, help="Take what it runs now as what it shall run, before verifying.")
@click.option(
    "--selection",
    type=SelectionType(),
    help="With --record and --tcti: other PCRs than those of its policy that stay while a system runs.",
)
@_reach_options
@output.json_option
def verify(
    name: str,
    record: bool,
    selection: Selection | None,
    tcti: str | None,
    ak_handle: str,
    patience_s: float,
    cap_events: Path | None,
    as_json: bool,
) -> None:
    """Hold one round with a running machine.

    The exit code is 0 when the machine was verified, 1 when it was refused, 3 when no evidence came, and 4
    when there is no such device.

    \b
    tang-attest device verify pi-b
    tang-attest device verify vm1 --tcti swtpm:host=127.0.0.1,port=2321
    """
    from tang_attest.server.compose import operator_name

    if selection is not None and not (record and tcti):
        raise click.UsageError("--selection needs --record and --tcti")
    reach = reach_of(tcti, ak_handle)

    async def once(installation: Installation) -> Round | None:
        rounds = rounds_of(installation, cap_events)
        try:
            if record:
                made = await rounds.record(name, reach, selection, patience_s, f"operator:{operator_name()}")
                output.say(
                    f"{name} is verified against policy {made.name} from now on, over {made.selection}"
                )
            return await rounds.once(name, reach, patience_s)
        except NotFound as missing:
            not_registered(name, missing, as_json=as_json)
            return None

    ended = run(once)
    if as_json and ended is not None:
        output.print_json(round_as_json(ended))
        click.get_current_context().exit(EXIT_CODES[ended.outcome])
    click.get_current_context().exit(tell(name, ended))


def not_registered(name: str, missing: NotFound, *, as_json: bool = False) -> None:
    """Report that there is no device *name*; anything else that is *missing* is an error as everywhere."""
    if missing.code not in ("not-found", "key-unknown"):
        raise missing
    if as_json:
        output.print_json_line({"device": name, "outcome": None, "code": missing.code})
        return
    click.echo(f"FAILURE: instance {output.printable(name)} not registered")


def tell(name: str, ended: Round | None) -> int:
    """Report how a round *ended*, ``None`` for a device that is not registered; the exit code."""
    if ended is None:
        return NOT_REGISTERED
    if ended.outcome is RoundOutcome.VERIFIED:
        click.echo(f"instance {name} verified")
        return 0
    click.echo(f"FAILURE: instance {name} {ended.outcome}: {_sentence(ended)}")
    for reason in ended.reasons[1:]:
        click.echo(f"  {output.printable(reason.sentence.rstrip('.'))}")
    output.hint(_next_step(name, ended))
    return EXIT_CODES[ended.outcome]


def _next_step(name: str, ended: Round) -> str:
    """Return the action for *name*: that of the first reason, unless an approval would not help."""
    missing = [reason for reason in ended.reasons if reason.code == "cap-missing"]
    return output.decapitalize(action_for((missing or ended.reasons)[0].code, name).rstrip("."))


def _sentence(ended: Round) -> str:
    reason = ended.reasons[0]
    return f"{output.printable(output.decapitalize(reason.sentence.rstrip('.')))} ({reason.code})"


@click.command()
@click.argument("name")
@click.option("--rounds", "count", type=click.IntRange(1, 1_000_000), help="How many; without, until Ctrl-C.")
@click.option(
    "--delay",
    type=Seconds(0, 86_400),
    default=10,
    show_default=True,
    help="The time between two rounds, such as 10 or 5m.",
)
@_reach_options
@output.json_option
def watch(
    name: str,
    count: int | None,
    delay: float,
    tcti: str | None,
    ak_handle: str,
    patience_s: float,
    cap_events: Path | None,
    as_json: bool,
) -> None:
    """Hold rounds with a running machine.

    The exit code is that of the worst round: 1 when one was refused, else 3 when no evidence came in one; 4
    when there is no such device.  With --json, each round is one line, and the last line counts them.

    \b
    tang-attest device watch vm1 --rounds 3 --delay 1
    """
    reach = reach_of(tcti, ak_handle)

    async def rounds(installation: Installation) -> int:
        if as_json:
            shows = (_print_round, _print_end)
            return await watch_rounds(
                rounds_of(installation, cap_events),
                name,
                count,
                delay,
                reach,
                patience_s,
                *shows,
                as_json=True,
            )
        if count is None:
            with _live(name) as show:
                return await watch_rounds(
                    rounds_of(installation, cap_events), name, None, delay, reach, patience_s, show
                )
        return await watch_rounds(
            rounds_of(installation, cap_events), name, count, delay, reach, patience_s, say_round
        )

    click.get_current_context().exit(run(rounds))


Show = Callable[[int, Round], None]
ShowEnd = Callable[[str, int, int], None]


def say_end(name: str, verified: int, count: int) -> None:
    """A line about *count* rounds, of which so many *verified* the machine."""
    click.echo(f"instance {name} verified in {verified} of {count} rounds")


async def watch_rounds(
    asking: OnDemandRounds,
    name: str,
    count: int | None,
    delay: float,
    reach: Reach | None,
    patience_s: float,
    show: Show,
    show_end: ShowEnd = say_end,
    *,
    as_json: bool = False,
) -> int:
    """Verify *count* times, or for ever; the exit code."""
    ended = Counter[RoundOutcome]()
    number = 0
    while count is None or number < count:
        if number:
            await asyncio.sleep(delay)
        number += 1
        try:
            one = await asking.once(name, reach, patience_s)
        except NotFound as missing:
            not_registered(name, missing, as_json=as_json)
            return NOT_REGISTERED
        ended[one.outcome] += 1
        show(number, one)
    show_end(name, ended[RoundOutcome.VERIFIED], number)
    worst = (RoundOutcome.REFUSED, RoundOutcome.UNREACHABLE)
    return next((EXIT_CODES[outcome] for outcome in worst if ended[outcome]), 0)


def say_round(number: int, one: Round) -> None:
    """A line."""
    if one.outcome is RoundOutcome.VERIFIED:
        click.echo(f"round: {number} succeeded")
    else:
        word = "failed" if one.outcome is RoundOutcome.REFUSED else "unreachable"
        click.echo(f"round: {number} {word}: {_sentence(one)}")


def round_as_json(one: Round) -> dict[str, object]:
    """A round, for programs."""
    reasons = [reason.as_json() for reason in one.reasons]
    code = one.reasons[0].code if one.reasons else "ok"
    return {"device": one.device, "outcome": one.outcome.value, "code": code, "reasons": reasons}


def _print_round(number: int, one: Round) -> None:
    output.print_json_line({"round": number, **round_as_json(one)})


def _print_end(name: str, verified: int, count: int) -> None:
    output.print_json_line({"device": name, "rounds": count, "verified": verified})


@contextmanager
def _live(name: str) -> Iterator[Show]:
    """A table that is drawn anew each round; lines where there is no terminal."""
    if not sys.stdout.isatty():
        yield say_round
        return
    counts: Counter[RoundOutcome] = Counter()
    with Live(console=Console(highlight=False), auto_refresh=False) as live:

        def show(number: int, one: Round) -> None:
            counts[one.outcome] += 1
            table = Table(box=None, pad_edge=False, header_style="" if output.no_color() else "table.header")
            for column in ("INSTANCE", "ROUND", *(outcome.upper() for outcome in RoundOutcome), "AT", "LAST"):
                table.add_column(column, overflow="fold")
            last = "verified" if one.outcome is RoundOutcome.VERIFIED else f"{one.outcome}: {_sentence(one)}"
            when = output.local(datetime.now(UTC), "%H:%M:%S")
            table.add_row(name, str(number), *(str(counts[outcome]) for outcome in RoundOutcome), when, last)
            live.update(table, refresh=True)

        yield show


@click.command()
@click.argument("name")
@click.option("--reason", required=True, help="For the audit record, and for operators who resume it.")
@output.json_option
def suspend(name: str, reason: str, as_json: bool) -> None:
    """Answer no unlock with a device's keys until 'resume'.

    Its volumes still open by passphrase.
    """
    run(lambda state: state.devices.suspend(name, reason))
    result = {"device": name, "suspended": True, "reason": reason}
    output.done(as_json, f"instance {name} is suspended", result)
    output.hint(f"take it back with 'tang-attest device resume {name}'")


@click.command()
@click.argument("name")
@output.json_option
def resume(name: str, as_json: bool) -> None:
    """Answer unlocks with a suspended device's keys again.

    The audit record names you.
    """
    run(lambda state: state.devices.resume(name))
    output.done(as_json, f"instance {name} is resumed", {"device": name, "suspended": False})


@click.command()
@click.argument("name")
@click.option(
    "--for", "window", type=Duration(), default="30m", show_default=True, help="For how long it may unlock."
)
@output.json_option
def allow(name: str, window: timedelta, as_json: bool) -> None:
    """Let a device unlock that waits for an operator.

    It waits where its policy requires approval, or refuses it as stale.  The machine still has to prove that
    it booted what is approved.
    """
    until = run(lambda state: state.devices.allow(name, window))
    sentence = f"instance {name} may unlock until {output.minute(until)}"
    output.done(as_json, sentence, {"device": name, "allowed_until": until})


@click.command()
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many.")
@click.option("--all", "every", is_flag=True, help="Also those of removed devices that had this name.")
@output.wide_option
@output.json_option
def history(name: str, limit: int, every: bool, wide: bool, as_json: bool) -> None:
    """List the rounds that changed an outcome, newest first.

    They are those of the device that has this name now, whose TPM it was.  Also works for a device that was
    removed.
    """

    async def load(installation: Installation) -> list[PastRound]:
        rounds = await installation.store.rounds.list_rounds(name, limit)
        if not rounds:
            await installation.store.devices.get_device(name)
        since = None if every else await installation.devices.enrolled_at(name)
        return [past for past in rounds if since is None or past.at >= since]

    past = run(load)
    if as_json:
        output.print_json([{"at": p.at, "outcome": p.outcome, "code": p.code, **p.details} for p in past])
        return
    output.table(
        ("at", "outcome", "code", "disks", "why"),
        [(p.at, p.outcome.value, p.code, _disks(p), _why(p)) for p in past],
        empty=f"{name} was never verified while it ran",
        extra=("disks",),
        prose=("disks", "why"),
        wide=wide,
    )


def spell_disks(opened: Opened) -> str:
    """``attested UUID``, ``passphrase UUID``, or ``not told``: the worse first."""
    named = sorted(opened.volumes.items(), key=lambda volume: (volume[1] is OpenedBy.ATTESTED, volume[0]))
    return ", ".join(f"{how} {uuid}" for uuid, how in named) or opened.word


def _disks(past: PastRound) -> str | None:
    disks = past.details.get("disks")
    return str(disks["opened"]) if isinstance(disks, dict) else None


def _why(past: PastRound) -> str | None:
    reasons = past.details.get("reasons")
    return str(reasons[0]["sentence"]) if isinstance(reasons, list) and reasons else None


@click.command("running-policy")
@click.argument("name")
@click.argument("policy", required=False)
@click.option("--own", is_flag=True, help="Its own policy again, capped and without PCR 10 and 11.")
@output.json_option
def set_running_policy(name: str, policy: str | None, own: bool, as_json: bool) -> None:
    """Choose the policy for a device's running system.

    The cap PCR has the value of a running system there; 'verify --record' makes such a policy.
    """
    if own == (policy is not None):
        raise click.UsageError("name a policy, or say --own")
    run(lambda state: state.devices.set_running_policy(name, policy))
    sentence = f"{name} is verified against {'its own policy, capped' if own else f'policy {policy}'}"
    output.done(as_json, sentence, {"device": name, "running_policy": policy})


COMMANDS: Final = (verify, watch, suspend, resume, allow, history, set_running_policy)
