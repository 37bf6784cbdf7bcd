"""Strings of machines, safe to show: nothing that moves, hides or reorders text, and bounded.

HTML's own characters are the templates' business: they escape everything.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from markupsafe import Markup

#: Characters of one string on a page; a longer one ends with an ellipsis.
MOST: Final = 400
#: Marks upon one letter; more of them paint over the lines around it.
_MOST_MARKS: Final = 2


def neutral(text: str, most: int | None = MOST) -> str:
    """Return *text* with everything spelled that is not printable: control characters, bidirectional overrides,
    zero-width characters, line ends, and marks upon one letter after the second.
    """
    cut = text if most is None or len(text) <= most else f"{text[:most]}…"
    spelled, marks = [], 0
    for character in cut:
        marks = marks + 1 if unicodedata.combining(character) else 0
        plain = character.isprintable() and marks <= _MOST_MARKS
        spelled.append(character if plain else character.encode("unicode_escape").decode("ascii"))
    return "".join(spelled)


def finalized(value: object) -> object:
    """Return *value* as a template may show it: markup of a template as it is, a string made neutral."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return neutral(value)


def csv_cell(value: object) -> str:
    """Return *value* for a spreadsheet, which runs what begins like a formula (CWE-1236)."""
    text = neutral("" if value is None else str(value), None)
    return f"'{text}" if text[:1] in {"=", "+", "-", "@", "\t", "\r"} else text
