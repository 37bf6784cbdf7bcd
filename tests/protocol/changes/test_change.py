"""A change of a policy: how it is read, and what it makes of a policy."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed
from tang_attest.protocol.changes.change import PolicyChange, load_change, parse_change
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState
from tang_attest.protocol.values.pcr import Selection

SELECTION = Selection("sha256", (0, 7, 15))
OLD = {0: b"\x01" * 32, 7: b"\x02" * 32, 15: bytes(32)}
NEW = {"0": "aa" * 32, "7": "02" * 32, "15": "00" * 32}
POLICY = ReferencePolicy(
    "web",
    SELECTION,
    15,
    (
        ReferenceState("old", OLD, "recorded"),
        ReferenceState("older", OLD | {7: b"\x05" * 32}, "recorded", Life.RETIRED),
    ),
)
PCRREAD = "  sha256:\n    0 : 0x" + "AA" * 32 + "\n    7 : 0x" + "02" * 32 + "\n    15: 0x" + "00" * 32 + "\n"


def add(**fields: Any) -> dict[str, Any]:
    """A document that adds one state."""
    return {"add": [{"label": "new", "values": NEW} | fields]}


def refusal(document: object) -> str:
    """The sentence with which *document* is refused."""
    with pytest.raises(Malformed) as refused:
        parse_change(document, POLICY)
    assert refused.value.code == "change-invalid"
    return refused.value.sentence


@pytest.mark.parametrize("values", [NEW, PCRREAD, {int(pcr): value for pcr, value in NEW.items()}])
def test_values_in_every_form(values: object) -> None:
    """Hex by PCR, as text or number, and the text of ``tpm2 pcrread`` say the same."""
    change = parse_change(add(values=values), POLICY)
    (state,) = change.add
    assert (state.label, state.values) == ("new", {0: b"\xaa" * 32, 7: b"\x02" * 32, 15: bytes(32)})


def test_apply() -> None:
    """Added states are staged, retired ones count no more, others stay."""
    change = parse_change(add() | {"retire": ["old"]}, POLICY)
    changed = change.apply(POLICY)
    assert [(state.label, state.life) for state in changed.states] == [
        ("old", Life.RETIRED),
        ("older", Life.RETIRED),
        ("new", Life.STAGED),
    ]
    assert replace(changed, states=POLICY.states) == POLICY
    assert POLICY.states[0].life is Life.ACTIVE


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ("text", "change: this is no mapping"),
        (None, "change: this is no mapping"),
        ({}, "change: nothing is added, retired, ruled or held back"),
        ({"add": None, "retire": []}, "change: nothing is added, retired, ruled or held back"),
        # Characters that move a cursor, or are no text for a database, are spelled out.
        (
            {"a\0\x1b[2J\ud800": []},
            r"change: unknown key 'a\x00\x1b[2J\ud800'; known are add, retire, rules, signed",
        ),
        ({"adds": []}, "change: unknown key 'adds'; known are add, retire, rules, signed"),
        ({"add": {}}, "add: this is no list"),
        ({"add": ["x"]}, "add[1]: this is no mapping"),
        ({"add": [{"label": "new"}]}, "add[1]: 'values' is missing"),
        ({"add": [{"values": NEW}]}, "add[1]: 'label' is missing"),
        (add(color="red"), "add[1]: unknown key 'color'; known are accept-uncovered, label, values"),
        (add(label="old"), "add[1].label: policy 'web' has a state 'old' already"),
        (add(label=6), "add[1].label: a label is text; put it in quotes"),
        (add(label=""), "add[1].label: A label has 1 to 64 printable characters"),
        (add(values=[]), "add[1].values: this is no mapping"),
        (add(values=NEW | {"x": "00"}), "add[1].values: 'x' is no PCR"),
        (add(values=NEW | {"-1": "00"}), "add[1].values: '-1' is no PCR"),
        (add(values=NEW | {"7": "xyz"}), "add[1].values.7: this is no hexadecimal value"),
        (add(values=NEW | {"7": 7}), "add[1].values: PCR 7 has 0 bytes; a sha256 value has 32"),
        (
            add(values={"7": NEW["7"]}),
            "add[1].values: The values do not fit sha256:0,7,15: PCR 0, 15 missing",
        ),
        (add(values="sha256:\n0: zz\n"), "add[1].values: Line 2 is not a line of 'tpm2 pcrread'"),
        (
            add(values=dict.fromkeys(NEW, "00" * 32)),
            "add[1].values: All values are as a reset leaves them: nothing measured this boot",
        ),
        ({"retire": ["none"]}, "retire[1]: policy 'web' has no state 'none'"),
        ({"retire": ["old", "older"]}, "retire[2]: state 'older' is retired already"),
        ({"retire": ["old", "old"]}, "retire: a label is there twice"),
        ({"add": add()["add"] * 2}, "add: a label is there twice"),
        ({"retire": "old"}, "retire: this is no list"),
    ],
)
def test_bad_documents(document: object, told: str) -> None:
    """The key is named, and what is wrong with it."""
    assert refusal(document) == told + "."


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["old", "00" * 32]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["add", "retire", "rules", "label", "values", "0"]), inner)
    ),
)


@given(_JSON)
def test_nothing_else_is_raised(document: object) -> None:
    """Every file that a reader takes is a change, or refused as one."""
    change = None
    try:
        change = parse_change(document, POLICY)
    except Malformed as error:
        code = error.code
    if change is None:
        assert code in ("change-invalid", "rules-invalid")
    else:
        assert change.add or change.retire or change.rules is not None


def test_dump_and_load() -> None:
    """A change comes back from JSON as it was."""
    change = parse_change(
        add() | {"retire": ["old"], "rules": {"judge-by-events": [7], "rules": [{"secure-boot": "on"}]}},
        POLICY,
    )
    assert load_change(json.loads(json.dumps(change.dump()))) == change
    assert load_change(json.loads(json.dumps(PolicyChange().dump()))) == PolicyChange()
