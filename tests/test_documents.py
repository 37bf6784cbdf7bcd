"""YAML of operators: what it means, and what is refused with its line."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.documents import MAX_DOCUMENT, load_yaml
from tang_attest.errors import Malformed


def refusal(data: bytes) -> Malformed:
    with pytest.raises(Malformed) as caught:
        load_yaml(data, "File a.yaml")
    assert caught.value.code == "document-invalid"
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("'true'", "true"),
        ("null", None),
        ("~", None),
        ("a:", {"a": None}),
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("1.5", "1.5"),
        ("0" * 64, "0" * 64),
        ("1" * 64, "1" * 64),
        ("4e" + "0" * 62, "4e" + "0" * 62),
        ("'12'", "12"),
        ("|\n  two\n  lines\n", "two\nlines\n"),
        ("[a, [1, {b: c}]]", ["a", [1, {"b": "c"}]]),
        ('{"json": [true, null, -1, "x"]}', {"json": [True, None, -1, "x"]}),
        ("rules:\n- secure-boot: on\n- files: {}\n", {"rules": [{"secure-boot": "on"}, {"files": {}}]}),
        ("7: a\n'7': b", {7: "a", "7": "b"}),
        ("# comment\n---\na\n...\n", "a"),
        ("<<: a", {"<<": "a"}),
    ],
)
def test_meaning(text: str, value: object) -> None:
    """Words that YAML 1.1 takes for something else, and digests of digits, are text."""
    loaded = load_yaml(text.encode(), "File a.yaml")
    assert loaded == value
    assert type(loaded) is type(value)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"a: 1\nb: 2\na: 3\n", "File a.yaml, line 3: the key 'a' is there twice."),
        (b"a:\n- {b: 1, b: 2}", "File a.yaml, line 2: the key 'b' is there twice."),
        (b"a: &x 1\nb: *x\n", "File a.yaml, line 1: anchors and aliases are not allowed."),
        (b"\n\n*x", "File a.yaml, line 3: anchors and aliases are not allowed."),
        (b"a: !!python/object/apply:os.system [id]", "File a.yaml, line 1: tags are not allowed."),
        (b"a: !!str 1", "File a.yaml, line 1: tags are not allowed."),
        (b"a: 1\n---\nb: 2\n", "File a.yaml, line 2: a second document starts here."),
        (b"[" * 17 + b"]" * 17, "File a.yaml, line 1: this is nested deeper than 16."),
        (b"? [a]\n: b", "File a.yaml, line 1: a key is neither text nor a number."),
        (b"true: b", "File a.yaml, line 1: a key is neither text nor a number."),
        (b"", "File a.yaml: there is nothing in it."),
        (b"# only a comment\n", "File a.yaml: there is nothing in it."),
        (b"a: 1\n  b: 2\n", "File a.yaml, line 2: this is no YAML (mapping values are not allowed here)."),
        (b"a: 1\nb: \xff\n", "File a.yaml, line 2: this is no UTF-8."),
        (b"a: 1\nb: \0\n", "File a.yaml, line 2: a character is not allowed in YAML."),
        (b"a" * (MAX_DOCUMENT + 1), "File a.yaml has more than 262144 bytes."),
    ],
)
def test_refused(data: bytes, sentence: str) -> None:
    """Named with the line."""
    assert refusal(data).sentence == sentence


def test_lines_are_data_too() -> None:
    """For --json and the API."""
    assert dict(refusal(b"a: 1\na: 2").reasons[0].data) == {"line": 2}


def test_deep_nesting_ends_early() -> None:
    """Not in a RecursionError, and not after reading it all."""
    started = time.monotonic()
    assert "nested deeper" in refusal(b"[" * (MAX_DOCUMENT - 1)).sentence
    assert time.monotonic() - started < 20


@given(
    st.one_of(
        st.binary(max_size=60), st.text(alphabet="ab:-[]{},&*!'\"|>?#% \n\t0", max_size=40).map(str.encode)
    )
)
def test_a_document_is_read_or_refused(data: bytes) -> None:
    """Nothing else is raised."""
    try:
        load_yaml(data, "File a.yaml")
    except Malformed as error:
        code, sentence = error.code, error.sentence
    else:
        code, sentence = "document-invalid", "read"
    assert (code, sentence.isprintable()) == ("document-invalid", True)
