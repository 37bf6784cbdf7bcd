"""ABNF (RFC 5234, RFC 7405) as regular expressions: for a grammar without recursion, which is all that docs/protocol.md has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

#: RFC 5234, appendix B.1, as far as it is used.
CORE = {
    "ALPHA": "[A-Za-z]",
    "DIGIT": "[0-9]",
    "HEXDIG": "[0-9A-Fa-f]",
    "SP": " ",
    "LF": "\n",
}
_RULE = re.compile(r"^([A-Za-z][A-Za-z0-9-]*)[ ]*=[ ]*", re.MULTILINE)
_TOKEN = re.compile(
    r"""\s+ | (?P<comment>;[^\n]*) | (?P<repeat>[0-9]*\*[0-9]*|[0-9]+(?=[A-Za-z("%]))
      | (?P<string>(%s|%i)?"[^"]*") | (?P<code>%x[0-9A-F]+(-[0-9A-F]+)?)
      | (?P<name>[A-Za-z][A-Za-z0-9-]*) | (?P<sign>[()\[\]/])""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Grammar:
    """The rules of *text*."""

    text: str

    @cached_property
    def rules(self) -> dict[str, str]:
        """The definition of each rule, as ABNF."""
        starts = [*_RULE.finditer(self.text)]
        ends = [match.start() for match in starts[1:]] + [len(self.text)]
        names = [match[1] for match in starts]
        assert len(set(names)) == len(names), "a rule is defined twice"
        return {match[1]: self.text[match.end() : end] for match, end in zip(starts, ends, strict=True)}

    def expression(self, name: str) -> str:
        """Return the regular expression of rule *name*.  Raises :class:`KeyError` for a rule that is undefined."""
        if name in self.rules:
            return _Reader(self, _tokens(self.rules[name])).whole()
        return CORE[name]

    def fits(self, name: str, text: str) -> bool:
        """Return True if the whole *text* is a *name*."""
        return re.fullmatch(self.expression(name), text) is not None


def _tokens(text: str) -> list[tuple[str, str]]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        assert match is not None, f"no ABNF: {text[at : at + 20]!r}"
        at = match.end()
        if match.lastgroup and match.lastgroup != "comment":
            kind = next(group for group in ("repeat", "string", "code", "name", "sign") if match[group])
            found.append((kind, match[0]))
    return found


class _Reader:
    """A reader of one definition, from its front."""

    def __init__(self, grammar: Grammar, tokens: list[tuple[str, str]]) -> None:
        self._grammar, self._tokens = grammar, tokens

    def whole(self) -> str:
        expression = self._alternation()
        assert not self._tokens, self._tokens
        return expression

    def _alternation(self) -> str:
        options = [self._concatenation()]
        while self._next() == ("sign", "/"):
            self._tokens.pop(0)
            options.append(self._concatenation())
        return f"(?:{'|'.join(options)})"

    def _concatenation(self) -> str:
        parts = ""
        while self._next() not in (None, ("sign", "/"), ("sign", ")"), ("sign", "]")):
            parts += self._repetition()
        assert parts, "an empty concatenation"
        return parts

    def _repetition(self) -> str:
        kind, text = self._tokens[0]
        if kind != "repeat":
            return self._element()
        self._tokens.pop(0)
        least, star, most = text.partition("*")
        bounds = f"{{{least or 0},{most}}}" if star else f"{{{least}}}"
        return self._element() + bounds

    def _element(self) -> str:
        kind, text = self._tokens.pop(0)
        if kind == "sign":
            inner = self._alternation()
            close = self._tokens.pop(0)[1]
            assert {"(": ")", "[": "]"}[text] == close
            return inner if text == "(" else f"{inner}?"
        if kind == "string":
            return f"(?:{_string(text)})"
        if kind == "code":
            first, _, last = text.removeprefix("%x").partition("-")
            return f"[\\U{int(first, 16):08x}-\\U{int(last or first, 16):08x}]"
        return self._grammar.expression(text)

    def _next(self) -> tuple[str, str] | None:
        return self._tokens[0] if self._tokens else None


def _string(text: str) -> str:
    sensitive, literal = text.startswith("%s"), text.partition('"')[2][:-1]
    if sensitive:
        return re.escape(literal)
    return "".join(
        f"[{char.lower()}{char.upper()}]" if char.isalpha() else re.escape(char) for char in literal
    )
