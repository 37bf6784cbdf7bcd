"""Changes of a policy, as files and as the admin API takes them; and the API's other bodies."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tang_attest.documents import load_yaml
from tang_attest.protocol.changes.change import load_change, parse_change
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.values.pcr import Selection
from tang_attest.web.admin.change_wire import ChangeBody, Start
from tang_attest.web.admin.routes import OPERATIONS
from tang_attest.web.wire import parse_json, validate
from tests.fuzz.target import Parser, Target

_SELECTION = Selection.parse("sha256:0,4,7,15")
_VALUES = {pcr: bytes([pcr + 1]) * 32 for pcr in _SELECTION.pcrs} | {15: bytes(32)}
_POLICY = ReferencePolicy("pi", _SELECTION, 15, (ReferenceState("old", _VALUES, "imported", Life.STAGED),))
_BODIES = sorted({op.body for op in OPERATIONS if op.body is not None}, key=lambda body: body.__name__)


def body(data: bytes) -> None:
    """A change that the API is sent."""
    _change(validate(ChangeBody, parse_json(data)).document())


def start(data: bytes) -> None:
    """A rollout that the API is asked for."""
    asked = validate(Start, parse_json(data))
    terms = asked.terms()
    assert terms.share is None or terms.share >= 1
    _change(asked.change.document())


def file(data: bytes) -> None:
    """A change in an operator's file."""
    _change(load_yaml(data, "it"))


def bodies(data: bytes) -> None:
    """Any body of the API; the first byte chooses."""
    validate(_BODIES[data[0] % len(_BODIES)] if data else _BODIES[0], parse_json(data[1:]))


def _change(document: object) -> None:
    change = parse_change(document, _POLICY)
    assert load_change(json.loads(json.dumps(change.dump()))) == change
    applied = change.apply(_POLICY)
    assert len(applied.states) == 1 + len(change.add)
    assert set(change.retire) <= {"old"}


def seeds() -> Iterator[tuple[Parser, bytes]]:
    """A change of everything."""
    values = {str(pcr): value.hex() for pcr, value in _VALUES.items()}
    rules = {"judge-by-events": [7], "rules": [{"events": {"pcr": 7, "allow": [{"variable": "PK"}]}}]}
    change = {"add": [{"label": "new", "values": values}], "retire": ["old"], "rules": rules}
    yield body, json.dumps(change).encode()
    yield file, json.dumps(change).encode()
    pcrread = "  sha256:\n" + "".join(f"    {pcr}: 0x{value.hex()}\n" for pcr, value in _VALUES.items())
    yield file, json.dumps({"add": [{"label": "new", "values": pcrread}], "rules": "none"}).encode()
    yield start, json.dumps({"name": "6.2", "change": change, "share": 0.05, "limit": 1}).encode()
    yield (
        start,
        json.dumps({"name": "6.2", "change": {"retire": ["old"]}, "label": "lab", "salt": "x"}).encode(),
    )
    for number, _ in enumerate(_BODIES):
        yield bodies, bytes([number]) + b'{"name": "pi-b", "why": "x", "label": "6.1"}'


TARGET = Target([body, start, file, bodies], seeds, max_length=4096)
