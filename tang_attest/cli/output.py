"""How the command line speaks.

Rules: a message has the program's name in front, is lower case and has no full stop; what to do about an error
is on a line of its own that starts with ``hint:``.  Data goes to stdout, everything else to stderr.  A listing is
a table for eyes, and JSON with ``--json``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tang_attest.errors import TangAttestError

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, for programs."
)


def say(message: str) -> None:
    """A message for the person, on stderr."""
    click.echo(f"tang-attest: {printable(message)}", err=True)


def hint(message: str) -> None:
    """What to do next, on stderr."""
    click.echo(f"hint: {printable(message)}", err=True)


def printable(text: str) -> str:
    """*text* with control characters spelled out: what a certificate or a machine says does not move the cursor."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def error(problem: TangAttestError) -> None:
    """An error: every sentence with its code, and one hint."""
    for index, reason in enumerate(problem.reasons):
        sentence = reason.sentence.rstrip(".")
        say(f"{decapitalize(sentence)} ({reason.code})" if index == 0 else f"  {decapitalize(sentence)}")
    hint(decapitalize(problem.action.rstrip(".")))


def usage_error(problem: click.UsageError) -> None:
    """A command line that cannot be understood; a bare group shows its help."""
    context, message = problem.ctx, problem.format_message()
    if context is not None and message == context.get_help():
        click.echo(message, err=True)
        return
    say(decapitalize(message.rstrip(".")))
    hint(f"run '{context.command_path if context is not None else 'tang-attest'} --help'")


#: A first word that is capitalized only because it is the first; PCR, TPM2_Quote, X and sda1.img are not.
_ORDINARY_WORD = re.compile(r"(A|[A-Z][a-z]+)[ :,]")


def decapitalize(sentence: str) -> str:
    """*sentence* as it goes on after a colon."""
    return sentence[:1].lower() + sentence[1:] if _ORDINARY_WORD.match(sentence) else sentence


def print_json(value: object) -> None:
    """*value* as indented JSON on stdout; bytes become hex, times RFC 3339."""
    json.dump(value, sys.stdout, indent=2, default=_encode, sort_keys=False)
    sys.stdout.write("\n")


def _encode(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    raise TypeError(f"cannot print {type(value).__name__}")


#: On a pipe; wider than any row, or rich would cut cells.
_NO_WIDTH = 1_000_000


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """A table on stdout, or the sentence *empty* when there are no rows.

    On a pipe the table is not folded to a width: a script that reads it sees whole cells.
    """
    if not rows:
        say(empty)
        return
    console = Console(width=None if sys.stdout.isatty() else _NO_WIDTH, highlight=False)
    view = Table(box=None, pad_edge=False, show_edge=False)
    for column in columns:
        view.add_column(column.upper(), no_wrap=not sys.stdout.isatty())
    for row in rows:
        # Text, not markup: a name or a reason in brackets is data, not formatting.
        view.add_row(*(Text(_cell(value)) for value in row))
    console.print(view)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return printable(str(value))
