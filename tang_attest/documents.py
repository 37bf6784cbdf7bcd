"""Parse YAML and JSON files of operators into plain values, strictly.

A subset of YAML 1.2 that cannot surprise: ``on`` is text and not true, a digest of digits is text and not a
number.  Anchors, aliases, tags and second documents are refused: nothing here needs them, and an alias can make
a small file huge.
"""

from __future__ import annotations

import re
from typing import Final

import yaml

from tang_attest.errors import Malformed

MAX_DOCUMENT: Final = 1 << 18
"""Bytes."""

MAX_DEPTH: Final = 16

_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_WORDS: Final = {"null": None, "~": None, "": None, "true": True, "false": False}


def load_yaml(data: bytes, what: str) -> object:
    """Return *data* as mappings (with text or integer keys), lists, text, integers, booleans and None.

    *what* names the file in errors.  Raises :class:`Malformed` ``document-invalid``, with ``line`` where there is
    one: more than 256 KiB, no UTF-8, no YAML, a key twice, nesting deeper than 16, an anchor, an alias, a tag, a
    second document, or nothing.
    """
    if len(data) > MAX_DOCUMENT:
        raise Malformed("document-invalid", f"{what} has more than {MAX_DOCUMENT} bytes.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _error(what, data.count(b"\n", 0, error.start) + 1, "this is no UTF-8") from None
    builder = _Builder(what)
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise _error(what, line, f"this is no YAML ({error.problem})") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _error(what, line, "a character is not allowed in YAML") from None
    return builder.result()


class _Builder:
    """Values out of the parser's events, which come without recursion."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._open: list[_Node] = []
        self._documents: list[object] = []

    def result(self) -> object:
        if not self._documents:
            raise _error(self._what, None, "there is nothing in it")
        return self._documents[0]

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.DocumentStartEvent) and self._documents:
            raise _error(self._what, line, "a second document starts here")
        if isinstance(event, yaml.NodeEvent):
            self._refuse_indirection(event, line)
        if isinstance(event, yaml.ScalarEvent):
            self._add(_scalar(event), line)
        elif isinstance(event, yaml.CollectionStartEvent):
            if len(self._open) >= MAX_DEPTH:
                raise _error(self._what, line, f"this is nested deeper than {MAX_DEPTH}")
            value: dict[object, object] | list[object] = (
                {} if isinstance(event, yaml.MappingStartEvent) else []
            )
            self._open.append(_Node(value, line))
        elif isinstance(event, yaml.CollectionEndEvent):
            node = self._open.pop()
            self._add(node.value, node.line)

    def _refuse_indirection(self, event: yaml.NodeEvent, line: int | None) -> None:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _error(self._what, line, "anchors and aliases are not allowed")
        if getattr(event, "tag", None) is not None:
            raise _error(self._what, line, "tags are not allowed")

    def _add(self, value: object, line: int | None) -> None:
        if not self._open:
            self._documents.append(value)
            return
        node = self._open[-1]
        if isinstance(node.value, list):
            node.value.append(value)
        elif node.has_key:
            node.value[node.key] = value
            node.has_key = False
        else:
            if type(value) not in (str, int):
                raise _error(self._what, line, "a key is neither text nor a number")
            if value in node.value:
                raise _error(self._what, line, f"the key {value!r:.60} is there twice")
            node.key, node.has_key = value, True


class _Node:
    """A collection that has not ended yet."""

    def __init__(self, value: dict[object, object] | list[object], line: int | None) -> None:
        self.value = value
        self.line = line
        self.key: object = None
        self.has_key = False


def _scalar(event: yaml.ScalarEvent) -> object:
    if event.style is not None or not event.implicit[0]:
        return event.value  # quoted or a block: text
    if event.value in _WORDS:
        return _WORDS[event.value]
    return int(event.value) if _INTEGER.fullmatch(event.value) else event.value


def _error(what: str, line: int | None, problem: str) -> Malformed:
    if line is None:
        return Malformed("document-invalid", f"{what}: {problem}.")
    return Malformed("document-invalid", f"{what}, line {line}: {problem}.", line=line)
