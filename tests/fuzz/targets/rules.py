"""Documents of rules over event logs: YAML, or what the admin API takes as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tang_attest.documents import load_yaml
from tang_attest.errors import Malformed
from tang_attest.protocol.rules import parse_rules
from tests.fuzz.target import Parser, Target

_DIGEST = "sha256:" + "ab" * 32


def document(data: bytes) -> None:
    """A document, and back."""
    rules = parse_rules(load_yaml(data, "it"))
    assert parse_rules(rules.as_json()) == rules
    assert parse_rules(json.loads(json.dumps(rules.as_json()))) == rules


def yaml(data: bytes) -> None:
    """YAML alone; of what is JSON, nothing that has a key twice, and the same as a JSON reader reads."""
    try:
        value = load_yaml(data, "it")
    except Malformed as refused:
        assert refused.code == "document-invalid"  # noqa: PT017 - the code is the property
        raise
    _check_depth(value)


def repeated(data: bytes) -> None:
    """The same key twice, however it is spelled."""
    key = json.dumps(data.decode("utf-8", "replace"))
    try:
        load_yaml(f"{{{key}: 1, {key}: 2}}".encode("utf-8", "replace"), "it")
    except Malformed:
        return
    raise AssertionError("a key that is there twice was let through")


def _check_depth(value: object, depth: int = 0) -> None:
    assert depth <= 16
    if isinstance(value, dict):
        assert all(type(key) in {str, int} for key in value)
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        _check_depth(child, depth + 1)


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """Every rule, with every key."""
    text = f"""\
judge-by-events: [4, 8, 9, 12]
rules:
  - secure-boot: on
  - boot-applications:
      signed-by: [{_DIGEST}]
  - command-line: {{matches: ".*ro.*", forbids: [init=]}}
  - files: {{pcr: 9, digests: {{/vmlinuz: {_DIGEST}, /initrd: [{_DIGEST}]}}}}
  - events:
      pcr: 8
      allow: [{{variable: PK}}, {{digest: '{_DIGEST}'}}, {{type: EV_IPL, data-matches: "grub_cmd: .*"}}]
"""
    yield document, text.encode()
    yield yaml, text.encode()
    yield yaml, b'{"a": [1, -2, "x", null, true, {"b": "\\u00e4"}], 3: [on, 0x1, 01, ~]}'
    yield repeated, b"key"


TARGET = Target([document, yaml, repeated], seeds, max_length=4096)
