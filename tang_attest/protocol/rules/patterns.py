"""Patterns of operators over text of devices: RE2, which matches in time linear in the text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import re2

MAX_PATTERN: Final = 1024
"""Characters of a pattern."""

_MEMORY: Final = 1 << 20


@lru_cache(maxsize=1024)
def _compile(source: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MEMORY
    return re2.compile(source, options)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression (RE2 syntax) that has to match a whole text; ``.`` is any character but a newline.

    Raises ``ValueError`` with a sentence's end when *source* is too long or is no RE2 expression.
    """

    source: str

    def __post_init__(self) -> None:
        if len(self.source) > MAX_PATTERN:
            raise ValueError(f"is longer than {MAX_PATTERN} characters")
        try:
            _compile(self.source)
        except re2.error as error:
            [detail] = error.args
            raise ValueError(f"is no regular expression of RE2 ({_text(detail)})") from None

    def matches(self, text: str) -> bool:
        """Return True if the whole of *text*, which is valid Unicode, matches."""
        return _compile(self.source).fullmatch(text) is not None


def _text(detail: object) -> str:
    return detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
