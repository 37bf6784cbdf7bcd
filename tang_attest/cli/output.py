"""Output of the command line.

Rules: a message has the program's name in front, is lower case and has no full stop; what to do about an
error is on a line of its own that starts with ``hint:``.  Data goes to stdout, everything else to stderr.  A
listing is a table for eyes, and JSON with ``--json``.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tang_attest.errors import TangAttestError
from tang_attest.service.audit.table import csv_text, plain

#: On a pipe; wider than any row, or rich would cut cells.
_NO_WIDTH: Final = 1_000_000
#: Characters between two columns.
_GAP: Final = 2
#: The least width of a column that is folded.
_PROSE: Final = 24

json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, for programs."
)
wide_option: Callable[[Any], Any] = click.option("--wide", is_flag=True, help="Show all columns.")


def say(message: str) -> None:
    """A message for the person, on stderr."""
    click.echo(f"tang-attest: {printable(message)}", err=True)


def hint(message: str) -> None:
    """Print the next step on stderr."""
    click.echo(f"hint: {printable(message)}", err=True)


def printable(text: str) -> str:
    """*text* with control characters spelled out: what a certificate or a machine says does not move the cursor."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


#: Hints in place of actions that are for the programmer of a client.
_AT_A_SHELL: Final = {
    "request-malformed": "correct that, and see the command's --help",
    "unavailable": "see the cause above, or run 'tang-attest doctor' on this machine; then try again",
}


#: Words of the sentence of ``not-found`` -> the command that lists what exists; the first match counts.
_LISTED_BY: Final = (
    (" no receiver ", "notify list"),
    (" no rollout", "policy rollout status"),
    (" no signer ", "policy signers POLICY"),
    (" no state ", "policy show POLICY"),
    (" no admin token ", "admin-token list"),
    (" no such token", "token list"),
    (" no device ", "device list"),
    (" no policy ", "policy list"),
    (" no operator ", "operator list"),
    (" no root ", "ek-root list"),
    (" no key ", "keys list"),
    ("No EK is registered ", "device registered"),
)


def _hint_for(problem: TangAttestError) -> str:
    if problem.code == "not-found":
        for words, command in _LISTED_BY:
            if words in problem.sentence:
                return f"run 'tang-attest {command}' to see what exists, and check the name"
    return _AT_A_SHELL.get(problem.code) or decapitalize(problem.action.rstrip("."))


def drop() -> None:
    """Drop what standard output still has to write, instead of failing again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def error(problem: TangAttestError) -> None:
    """An error: every sentence with its code, and one hint."""
    for index, reason in enumerate(problem.reasons):
        sentence = reason.sentence.rstrip(".")
        say(f"{decapitalize(sentence)} ({reason.code})" if index == 0 else f"  {decapitalize(sentence)}")
    hint(_hint_for(problem))


def usage_error(problem: click.UsageError) -> None:
    """A command line that cannot be understood; a bare group shows its help."""
    context, message = problem.ctx, problem.format_message()
    sentence = re.sub(r"\s*\n\s*", " ", message)  # click lists choices in lines
    if context is not None and message == context.get_help():
        click.echo(message, err=True)
        return
    say(decapitalize(sentence.rstrip(".")))
    hint(f"run '{context.command_path if context is not None else 'tang-attest'} --help'")


#: A first word that is capitalized only because it is the first; PCR, TPM2_Quote, X and sda1.img are not.
_ORDINARY_WORD = re.compile(r"(A|[A-Z][a-z]+)[ :,]")


def decapitalize(sentence: str) -> str:
    """*sentence* as it goes on after a colon."""
    return sentence[:1].lower() + sentence[1:] if _ORDINARY_WORD.match(sentence) else sentence


def no_color() -> bool:
    """True when the environment asks for output without colors and other styles (``NO_COLOR``, not empty)."""
    return bool(os.environ.get("NO_COLOR"))


def print_json(value: object) -> None:
    """*value* as indented JSON on stdout; bytes become hex, times RFC 3339 in UTC (``Z``)."""
    json.dump(value, sys.stdout, indent=2, default=plain, sort_keys=False)
    sys.stdout.write("\n")


def print_json_line(value: object) -> None:
    """*value* as one line of JSON on stdout, at once, encoded as by :func:`print_json`."""
    click.echo(json.dumps(value, default=plain))


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table as :func:`tang_attest.service.audit.table.csv_text` makes it."""
    # The lines end with CR LF, also where text streams translate line ends.
    sys.stdout.write(csv_text(columns, rows))


def done(as_json: bool, sentence: str, result: object) -> None:
    """Report a change: *sentence* on stderr, or *result* as JSON on stdout."""
    if as_json:
        print_json(result)
    else:
        say(sentence)


def new_token(as_json: bool, text: str, good: str, until: datetime, document: Mapping[str, object]) -> None:
    """Print a new token, this once: its *text*, with a hint that it is *good*; or with its *document* as JSON."""
    if as_json:
        print_json({"token": text, **document})
    else:
        click.echo(text)
        hint(f"it is {good} until {minute(until)}, and is not shown again")


def local(at: datetime, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """*at* in the local time zone, with the zone's name: ``2026-11-27 10:20:00 CET``."""
    return at.astimezone().strftime(f"{form} %Z")


def minute(at: datetime) -> str:
    """*at* as :func:`local`, without its seconds."""
    return local(at, "%Y-%m-%d %H:%M")


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    empty: str,
    *,
    extra: Collection[str] = (),
    prose: Collection[str] = (),
    wide: bool = True,
) -> None:
    """A table on stdout, or the sentence *empty* when there are no rows.

    A terminal shows the *extra* columns only when the table is *wide*, and folds the *prose* columns to its
    width. A cell of another column is never folded or cut: it may have to be copied.  On a pipe nothing is
    left out or folded.
    """
    if not rows:
        say(empty)
        return
    terminal = sys.stdout.isatty()
    shown = [n for n, column in enumerate(columns) if wide or not terminal or column not in extra]
    cells = [[_cell(row[n]) for n in shown] for row in rows]
    view = Table(box=None, pad_edge=False, show_edge=False, header_style="" if no_color() else "table.header")
    width = -_GAP
    for position, column in enumerate(columns[n] for n in shown):
        whole = max(cell_len(column), *(cell_len(row[position]) for row in cells))
        folded = terminal and column in prose
        view.add_column(
            column.upper(), no_wrap=not folded, overflow="fold", min_width=None if folded else whole
        )
        width += _GAP + (min(whole, _PROSE) if folded else whole)
    for row in cells:
        # Text, not markup: a name or a reason in brackets is data, not formatting.
        view.add_row(*(Text(cell) for cell in row))
    # As wide as what is not folded has to be; the terminal itself breaks a line that is longer.
    fitting = max(Console().width, width) if terminal else _NO_WIDTH
    Console(width=fitting, highlight=False, soft_wrap=True).print(view)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return local(value)
    return printable(str(value))
