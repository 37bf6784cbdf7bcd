"""The files of vectors/: made by their generator, of the schema, and described."""

from __future__ import annotations

import json
import re

import pytest
from jsonschema import Draft202012Validator

from tang_attest.protocol.challenge import VERSIONS
from tests.conformance.vectors import document, each
from tools.conformance.evidence.faults import FAULTS
from tools.conformance.primitives.curve import CURVES
from tools.conformance.report import PROTOCOL
from tools.generate_vectors import FILES, generate
from tools.vectors.keys import VECTORS


@pytest.mark.parametrize("kind", FILES)
def test_the_generator_writes_the_same_bytes(kind: str) -> None:
    """`make vectors` changes nothing unless the vectors change."""
    assert (VECTORS / f"{kind}.json").read_text() == generate(kind), "run: make vectors"


@pytest.mark.parametrize("kind", [*FILES, "keys"])
def test_a_file_is_of_the_schema(kind: str) -> None:
    """One schema for all; a member that nothing describes is an error."""
    schema = json.loads((VECTORS / "schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    errors = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        for error in Draft202012Validator(schema).iter_errors(document(kind))
    ]
    assert errors == []


def test_the_schema_refuses_a_member_that_nothing_describes() -> None:
    """The test above can fail."""
    schema = json.loads((VECTORS / "schema.json").read_text())
    for kind in FILES:
        changed = json.loads(json.dumps(document(kind)))
        changed["vectors"][0]["more"] = 1
        assert not Draft202012Validator(schema).is_valid(changed), kind


def test_each_file_is_described() -> None:
    """vectors/README.md has a row for each file, and no other."""
    text = (VECTORS / "README.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)\.json` ", text, re.MULTILINE)) == {*FILES, "keys", "schema"}
    assert {path.name for path in VECTORS.iterdir()} == {*(f"{kind}.json" for kind in (*FILES, "keys", "schema")), "README.md"}  # fmt: skip


def test_everything_is_of_one_revision() -> None:
    """The document, the server, the vectors and the kit agree on it."""
    text = (VECTORS.parent / "docs/protocol.md").read_text()
    [revision] = re.findall(r"^Revision (\d+\.\d+), ", text, re.MULTILINE)
    assert re.findall(r"^A version is `MAJOR.MINOR`. This document is (.*)\.$", text, re.MULTILINE) == [
        revision
    ]
    assert PROTOCOL == VERSIONS[-1] == revision
    assert {document(kind)["protocol"] for kind in FILES} == {revision}


@pytest.mark.parametrize("kind", FILES)
def test_names_are_unique(kind: str) -> None:
    """A failure names one vector."""
    names = [vector["name"] for vector in document(kind)["vectors"]]
    assert len(names) == len(set(names))


def test_each_step_of_the_order_has_faults_and_pairs_with_every_other() -> None:
    """A verifier that swaps two steps is found."""
    vectors = document("requests")["vectors"]
    single = {vector["steps"][0] for vector in vectors if len(vector["steps"]) == 1}
    assert single == {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12}
    paired = {tuple(vector["steps"]) for vector in vectors if len(vector["faults"]) == 2}
    # The nonce is one, so it is not foreign and used at once.
    assert {(one, other) for one in single for other in single if one < other} - {(3, 10)} <= paired
    assert {fault.name for fault in FAULTS} == {v["faults"][0] for v in vectors if len(v["steps"]) == 1}


@pytest.mark.parametrize("name", CURVES)
def test_the_kit_knows_the_curves(name: str) -> None:
    """The order's multiple of the generator is infinity, and one less is the negated generator."""
    curve = CURVES[name]
    assert curve.contains(curve.generator)
    assert curve.multiply(curve.order - 1) == curve.negate(curve.generator)
    with pytest.raises(ValueError, match="infinity"):
        curve.multiply(curve.order)


@pytest.mark.parametrize("vector", each("exchange"))
def test_short_coordinates_are_padded(vector: dict[str, object]) -> None:
    """Each coordinate has the size of the field."""
    size = CURVES[str(vector["curve"])].size
    for name in ("S", "C", "X", "Y", "K"):
        point = vector[name]
        assert isinstance(point, dict)
        assert {len(point["x"]), len(point["y"])} == {(size * 4 + 2) // 3}
