"""``tang-attest menu``: five choices, again and again, for a person or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click

from tang_attest.cli import output
from tang_attest.cli.device import read_ak
from tang_attest.cli.state import State, operator_name, run
from tang_attest.cli.verification import (
    DEFAULT_AK,
    PATIENCE_S,
    not_registered,
    reach_of,
    rounds_of,
    say_round,
    tell,
    watch_rounds,
)
from tang_attest.errors import NotFound, TangAttestError
from tang_attest.service.verify import Round


@click.command()
def menu() -> None:
    """Register, verify and remove machines by answering questions.

    Over a pipe, each line of stdin answers one question.
    """
    while True:
        for number, (title, _) in enumerate(_CHOICES, start=1):
            click.echo(f"{number}  {title}")
        click.echo(f"{len(_CHOICES) + 1}  exit")
        try:
            if not _choose(_ask("choice")):
                return
        except EOFError:
            click.echo()
            return
        except TangAttestError as problem:
            output.error(problem)


def _choose(answer: str) -> bool:
    """Do what was chosen; false to end."""
    if not answer.isdecimal() or not 1 <= int(answer) <= len(_CHOICES) + 1:
        output.say(f"a choice is 1 to {len(_CHOICES) + 1}")
        return True
    if int(answer) > len(_CHOICES):
        return False
    _CHOICES[int(answer) - 1][1]()
    return True


def _ask(question: str, default: str = "") -> str:
    """One line.  Raises :class:`EOFError` at the end."""
    click.echo(f"{question}{f' [{default}]' if default else ''}: ", nl=False)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    if not sys.stdin.isatty():
        click.echo()  # what is typed at a terminal ends the line itself
    return line.strip() or default


def _number(question: str, default: str) -> float | None:
    answer = _ask(question, default)
    try:
        number = float(answer)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1_000_000:
        output.say(f"{question} is a number from 0 on")
        return None
    return number


def _register() -> None:
    name, path = _ask("instance"), _ask("file with its public key")
    tcti = _ask("TCTI of its TPM, empty for a machine with an agent")
    reach = reach_of(tcti or None, DEFAULT_AK if not tcti else _ask("handle of the key", DEFAULT_AK))
    key = read_ak(Path(path))
    kid = run(lambda state: state.registry.register(name, key, None, reach=reach)).kids[0]
    click.echo(f"SUCCESS: instance {name} registered")
    if reach is None:
        output.hint(f"put kid={kid} into /etc/clevis-attest/agent.conf there")
    elif _ask("take what it runs now as what it shall run?", "yes") in ("yes", "y"):
        actor = f"operator:{operator_name()}"
        run(lambda state: rounds_of(state).record(name, None, None, PATIENCE_S, actor))
        click.echo(f"SUCCESS: state of {name} recorded")


def _verify() -> None:
    name = _ask("instance")

    async def once(state: State) -> Round | None:
        try:
            return await rounds_of(state).once(name, None, PATIENCE_S)
        except NotFound as missing:
            not_registered(name, missing)
            return None

    tell(name, run(once))


def _watch() -> None:
    name = _ask("instance")
    count, delay = _number("rounds", "3"), _number("delay in seconds", "10")
    if count is None or delay is None:
        return
    run(lambda state: watch_rounds(rounds_of(state), name, int(count), delay, None, PATIENCE_S, say_round))


def _remove() -> None:
    name = _ask("instance")
    if _ask(f"destroy the exchange keys of {name}, for good?", "no") not in ("yes", "y"):
        click.echo("nothing was removed")
        return
    try:
        run(lambda state: state.registry.remove(name))
    except NotFound as missing:
        not_registered(name, missing)
        return
    click.echo(f"SUCCESS: instance {name} removed")


_CHOICES: Final[tuple[tuple[str, Callable[[], None]], ...]] = (
    ("register an instance with its public key", _register),
    ("verify an instance once", _verify),
    ("verify an instance continuously", _watch),
    ("remove an instance", _remove),
)
