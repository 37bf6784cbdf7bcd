"""Reading rules out of a document (what YAML or JSON became), strictly; every error names the rule and the
key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from tang_attest.errors import Malformed
from tang_attest.protocol.rules.patterns import Pattern
from tang_attest.protocol.values.pcr import BANK_SIZES, PCR_COUNT

MAX_ENTRIES: Final = 1024
"""Digests, lines or words of one list."""

MAX_PATTERNS: Final = 64
"""Patterns of one rule: each may be matched against each event."""

MAX_TEXT: Final = 4096
"""Characters of one text; Linux takes command lines of up to 2048 bytes on x86."""

_DIGEST: Final = re.compile(r"([a-z0-9]+):([0-9a-f]+)")


class DocumentPosition:
    """Position in the document, for errors: ``rule 3, key 'files', key 'digests'``."""

    def __init__(self, rule: int | None = None, keys: tuple[str, ...] = ()) -> None:
        self.rule = rule
        self._keys = keys

    def at(self, key: str) -> DocumentPosition:
        """A key below this place."""
        return DocumentPosition(self.rule, (*self._keys, key))

    def error(self, what: str) -> Malformed:
        """*what* (``is no list``) as an error about this place."""
        keys = [f"key '{_short(key)}'" for key in self._keys]
        where = ", ".join(([f"rule {self.rule}"] if self.rule is not None else []) + keys) or "the rules"
        data: dict[str, object] = {} if self.rule is None else {"rule": self.rule}
        return Malformed("rules-invalid", f"{where[0].upper()}{where[1:]}: {what}.", **data)

    # --- readers of one value -------------------------------------------------------------------------------

    def mapping(self, value: object, allowed: Iterable[str]) -> dict[str, object]:
        """*value* as a mapping that has no keys but *allowed*, and at least one."""
        names = tuple(allowed)
        found = self.any_mapping(value)
        for key in found:
            if key not in names:
                raise self.at(key).error(f"is not known here, only {', '.join(names)}")
        return found

    def any_mapping(self, value: object) -> dict[str, object]:
        """*value* as a mapping with text keys, not empty."""
        if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
            raise self.error("this is no mapping with text keys")
        if len(value) > MAX_ENTRIES:
            raise self.error(f"there are more than {MAX_ENTRIES} entries")
        return value

    def items(self, value: object) -> list[object]:
        """*value* as a list that is not empty."""
        if not isinstance(value, list) or not value:
            raise self.error("this is no list, or an empty one")
        if len(value) > MAX_ENTRIES:
            raise self.error(f"there are more than {MAX_ENTRIES} entries")
        return value

    def text(self, value: object) -> str:
        """*value* as readable text of a single line."""
        if not isinstance(value, str) or not value or len(value) > MAX_TEXT or not value.isprintable():
            raise self.error(f"this is no text of one line and 1 to {MAX_TEXT} characters")
        return value

    def texts(self, value: object) -> tuple[str, ...]:
        """*value* as a list of texts."""
        return tuple(self.text(item) for item in self.items(value))

    def pattern(self, value: object) -> Pattern:
        """*value* as a regular expression."""
        if not isinstance(value, str):
            raise self.error("this is no text")
        try:
            return Pattern(value)
        except ValueError as error:
            raise self.error(f"this {error}") from None

    def pcr(self, value: object) -> int:
        """*value* as the number of a PCR."""
        if type(value) is not int or not 0 <= value < PCR_COUNT:
            raise self.error(f"this is no PCR from 0 to {PCR_COUNT - 1}")
        return value

    def digest(self, value: object) -> str:
        """*value* as ``sha256:<hex>``, of the bank's size."""
        match = _DIGEST.fullmatch(value) if isinstance(value, str) else None
        if match is None or len(match[2]) != 2 * BANK_SIZES.get(match[1], 0):
            raise self.error(f"this is no digest such as sha256:<64 digits>, of {', '.join(BANK_SIZES)}")
        return match[0]

    def digests(self, value: object) -> tuple[str, ...]:
        """*value* as a list of digests."""
        return tuple(self.digest(item) for item in self.items(value))


def _short(key: str) -> str:
    shown = "".join(character if character.isprintable() else "?" for character in key)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
