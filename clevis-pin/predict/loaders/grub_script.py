"""GRUB's scripts: just enough of the grammar to say which of the measured commands a new grub.cfg changes.

Source: the GNU GRUB manual, "Writing full configuration files directly"; grub-core/script of GRUB 2.06 and
2.12, which joins the words of a command with single spaces before it measures it.  Loops and continued lines
are not understood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from predict.sentences import Unpredictable
from predict.text import SPACE

UNKNOWN: Final = "\x01"
"""Stands for a variable whose value is not known."""

MAX_STATEMENTS: Final = 4096
"""A grub.cfg of Debian has 150, and 30 more for each kernel."""

_KEYWORD: Final = re.compile(rf"(if|elif|then|else|fi)(?:$|[{SPACE}]+)")
_VARIABLE: Final = re.compile(r"\$(?:\{([A-Za-z0-9_?@*#]+)\}|([A-Za-z_][A-Za-z0-9_]*))")
_ENTRY: Final = ("menuentry ", "submenu ")
_LOOP: Final = ("for ", "while ", "until ")


@dataclass(frozen=True, slots=True)
class Statement:
    """A command, or a menu entry.

    *text* is what GRUB measures of it, with UNKNOWN for variables that are not known; *depth* counts the
    ``if`` around it; *title* is ``menuentry TITLE`` (empty for a command) and *body* the unread lines of an
    entry.
    """

    text: str
    depth: int
    title: str = ""
    body: str = ""
    in_function: bool = False

    @property
    def is_entry(self) -> bool:
        """Tell a menu entry or a submenu from a command."""
        return bool(self.title)

    @property
    def header(self) -> str:
        """Return the text up to the first brace."""
        return self.text.partition("{")[0]


def parse(lines: Sequence[str], variables: Mapping[str, str]) -> list[Statement]:
    """Read the *lines* of a script, replacing *variables*.

    Raises :class:`Unpredictable`: a NUL, a loop, a continued line, a quote that a line does not close, an
    entry that does not begin and end at the beginning of a line (as grub-mkconfig writes it), a brace or an
    ``if`` without its end, more than MAX_STATEMENTS commands.
    """
    parser = _Parser(variables)
    for number, line in enumerate(lines, 1):
        if "\0" in line or not parser.read(line):
            raise Unpredictable(f"line {number} of grub.cfg is not understood")
        if len(parser.statements) > MAX_STATEMENTS:
            raise Unpredictable(f"grub.cfg has over {MAX_STATEMENTS} commands")
    if not parser.is_complete:
        raise Unpredictable("an entry of grub.cfg has no end")
    return parser.statements


class _Parser:
    def __init__(self, variables: Mapping[str, str]) -> None:
        self.statements: list[Statement] = []
        self._variables = variables
        self._depth = 0
        self._in_function = False
        self._header = ""
        self._body: list[str] = []

    @property
    def is_complete(self) -> bool:
        return not (self._header or self._in_function or self._depth)

    def read(self, line: str) -> bool:
        """Read one line; False if it is not understood."""
        stripped = line.lstrip(SPACE)
        if self._header:
            self._read_inside_entry(line)
        elif stripped.startswith(_ENTRY) and stripped.endswith("{"):
            self._header = stripped.removesuffix("{")
            return line == stripped
        elif stripped.startswith("function ") and stripped.endswith("{"):
            self._in_function = True
        elif stripped == "}":
            was_in_function, self._in_function = self._in_function, False
            return was_in_function
        elif stripped and not stripped.startswith("#"):
            return (
                not stripped.startswith(_LOOP)
                and not stripped.endswith("\\")
                and self._read_commands(stripped)
            )
        return True

    def _read_inside_entry(self, line: str) -> None:
        if line != "}":
            self._body.append(f"{line}\n")
            return
        body, header = "".join(self._body), self._header
        title = " ".join(words(header, self._variables)[:2])
        text = f"{' '.join(words(header, self._variables))} {{\n{body}}}"
        self.statements.append(Statement(text, self._depth, title, body))
        self._header, self._body = "", []

    def _read_commands(self, line: str) -> bool:
        pieces = _at_semicolons(line)
        for piece in pieces or ():
            if len(self.statements) > MAX_STATEMENTS:
                break  # parse() refuses them
            command = self._without_keywords(piece.strip(SPACE))
            if command:
                text = " ".join(words(command, self._variables))
                self.statements.append(
                    Statement(text, self._depth, body=command, in_function=self._in_function)
                )
        return pieces is not None and self._depth >= 0

    def _without_keywords(self, command: str) -> str:
        at = 0
        while match := _KEYWORD.match(command, at):
            self._depth += {"if": 1, "fi": -1}.get(match[1], 0)
            at = match.end()
        return command[at:]


def _at_semicolons(line: str) -> list[str] | None:
    """Split *line* at semicolons outside of quotes; None if a quote is not closed."""
    pieces, start, quote = [], 0, ""
    for at, character in enumerate(line):
        if quote:
            if character == quote:
                quote = ""
        elif character in "'\"":
            quote = character
        elif character == ";":
            pieces.append(line[start:at])
            start = at + 1
    return None if quote else [*pieces, line[start:]]


def words(text: str, variables: Mapping[str, str]) -> list[str]:
    """Split *text* into words as GRUB does: quotes and backslashes gone, *variables* replaced, UNKNOWN for
    others.

    A word whose quote is not closed is left out, and so is one that ends in a backslash.
    """
    found: list[str] = []
    word: list[str] | None = None
    quote, at = "", 0
    while at < len(text):
        character = text[at]
        at += 1
        if not quote and character in SPACE:
            if word is not None:
                found.append("".join(word))
            word = None
            continue
        word = [] if word is None else word
        if quote and character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        elif character == "\\" and quote != "'":
            if at == len(text):
                return found
            word.append(text[at])
            at += 1
        elif character == "$" and quote != "'" and (match := _VARIABLE.match(text, at - 1)):
            word.append(variables.get(match[1] or match[2], UNKNOWN))
            at = match.end()
        else:
            word.append(character)
    if word is not None and not quote:
        found.append("".join(word))
    return found


def matches(text: str, statement: str) -> bool:
    """Tell that *text*, which was measured, may be *statement*: they are equal, but for variables that are
    not known.
    """
    if UNKNOWN not in statement:
        return text == statement
    first, *middle, last = statement.split(UNKNOWN)
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for piece in middle:
        at = text.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True
