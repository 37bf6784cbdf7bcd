"""GRUB's grammar, as far as it is read: whatever is in grub.cfg, statements or one sentence come of it, in
bounded time.
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predict.loaders.grub_script import MAX_STATEMENTS, UNKNOWN, Statement, matches, parse, words
from predict.sentences import Unpredictable

from tests.pin.predict.boots import Grub

#: Text as grub.cfg may have it, and worse.
PIECES = st.sampled_from(
    ["if ", "fi", "then", "else", "elif ", "menuentry ", "submenu ", "function f {", "{", "}", "'", '"', "\\", "$", "${",
     "$a", "${b}", "\n", "\t", " ", ";", "#", "for x in", "set a=1", "linux /x", "\0", "\x01", "\xff"]
)  # fmt: skip
SCRIPTS = st.lists(PIECES | st.text(st.characters(max_codepoint=255), max_size=6), max_size=60).map("".join)
VARIABLES = {"a": "value of a", "default": "0"}


def read(script: str) -> list[Statement] | None:
    """The statements; None for a script that is refused."""
    try:
        return parse(script.split("\n"), VARIABLES)
    except Unpredictable:
        return None


@given(SCRIPTS)
@settings(deadline=None, max_examples=300)
def test_any_script_is_read_or_refused(script: str) -> None:
    """No other exception, and nothing that the script does not have."""
    for statement in read(script) or ():
        assert statement.depth >= 0
        assert statement.body.strip("\n") in script
        assert len(statement.text) <= 40 * (len(script) + 1)
        assert (
            statement.is_entry == statement.text.startswith(("menuentry", "submenu"))
            or not statement.is_entry
        )


@given(
    st.lists(
        st.text(st.characters(max_codepoint=255, exclude_characters="'\0"), min_size=1, max_size=8),
        max_size=5,
    )
)
def test_single_quotes_keep_every_character(names: list[str]) -> None:
    """As in a shell."""
    assert words(" ".join(f"'{name}'" for name in names), {}) == names


@given(st.lists(st.sampled_from([*"ab*?[\\", UNKNOWN]), max_size=12), st.text("ab*?[\\", max_size=12))
@settings(max_examples=500)
def test_a_match_is_that_of_an_expression(pattern: list[str], text: str) -> None:
    """An unknown variable stands for any text, and nothing else is special."""
    statement = "".join(pattern)
    expression = ".*".join(map(re.escape, statement.split(UNKNOWN)))
    assert matches(text, statement) == bool(re.fullmatch(expression, text, re.DOTALL))


def test_the_script_of_debian(tmp_path: object) -> None:
    """Its entries with their titles, its commands with their depth; functions are apart."""
    statements = read(Grub(tmp_path).config())  # type: ignore[arg-type]
    assert statements
    assert [s.title for s in statements if s.is_entry] == [
        "menuentry Debian GNU/Linux",
        "submenu Advanced options for Debian GNU/Linux",
    ]
    assert ("insmod all_video", 1, True) in [(s.text, s.depth, s.in_function) for s in statements]
    assert ("export menuentry_id_option", 0, False) in [(s.text, s.depth, s.in_function) for s in statements]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("for x in 1 2; do\n  echo $x\ndone", "line 1 of grub.cfg is not understood"),
        ("set a=1\nwhile true; do\n  true\ndone", "line 2 of grub.cfg is not understood"),
        ("echo a \\\n b", "line 1 of grub.cfg is not understood"),
        ("echo 'open", "line 1 of grub.cfg is not understood"),
        ("  menuentry 'x' {\n}", "line 1 of grub.cfg is not understood"),
        ("}", "line 1 of grub.cfg is not understood"),
        ("fi", "line 1 of grub.cfg is not understood"),
        ("echo \0", "line 1 of grub.cfg is not understood"),
        ("if true; then", "an entry of grub.cfg has no end"),
        ("menuentry 'x' {\n  linux /x\n", "an entry of grub.cfg has no end"),
        ("function f {\n", "an entry of grub.cfg has no end"),
        ("a\n" * (MAX_STATEMENTS + 1), "grub.cfg has over 4096 commands"),
    ],
)
def test_what_is_not_understood_is_named(script: str, said: str) -> None:
    """The line, or what is wrong with the whole."""
    with pytest.raises(Unpredictable, match=f"^{re.escape(said)}$"):
        parse(script.split("\n"), {})


@pytest.mark.parametrize(
    "script",
    [
        "if true; then\n" * 70_000,
        "if " * 300_000,
        ";" * 1_000_000,
        "a;" * 500_000,
        "'" * 1_000_001,
        "echo " + "$a" * 500_000,
        "echo " + "${a}" * 250_000,
        "${" * 500_000,
        "echo " + "\\" * 999_999,
        "menuentry 'x' {\n" + "a\n" * 500_000 + "}",
        "menuentry " * 100_000 + "{\n}",
        "function f {\n" * 70_000,
    ],
    ids=["depth", "ifs", "semicolons", "commands", "quotes", "expansions", "braces", "open", "backslashes", "body", "title",
         "functions"],
)  # fmt: skip
def test_hostile_scripts_end_soon(script: str) -> None:
    """A megabyte of the worst: a few seconds on a slow machine, and no recursion."""
    begun = time.process_time()
    read(script)
    assert time.process_time() - begun < 10


def test_hostile_patterns_end_soon() -> None:
    """A command with a thousand unknown variables does not backtrack."""
    pattern = ("a" + UNKNOWN) * 1000 + "b"
    begun = time.process_time()
    assert not matches("a" * 100_000, pattern)
    assert time.process_time() - begun < 2
