"""Every Nix file parses, and is laid out the same way.

Debian has no Nix formatter and neither have PyPI and npm, so this is a check of ours: what nixfmt would also insist on,
as far as lines show it.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nix.nix import EvaluationError, Nix
from tools.generate_nix import ROOT

LISTED = subprocess.run(
    ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.nix"],
    cwd=ROOT, check=True, capture_output=True, text=True,
).stdout  # fmt: skip
FILES = sorted({ROOT / name for name in LISTED.split("\0") if name and (ROOT / name).is_file()})
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))

WIDTH = 120
TOKEN = re.compile(r"''(?:\$|\\.|')|''|\\.|\$\{|\}|\"|#.*", re.DOTALL)


def code_lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """(number, line, whether it begins outside every string), as Nix' strings nest."""
    stack = ["code"]
    for number, line in enumerate(text.split("\n")[:-1], 1):
        yield number, line, len(stack) == 1
        for token in TOKEN.findall(line):
            _step(stack, token)


def _step(stack: list[str], token: str) -> None:
    inside = stack[-1]
    if inside == "code":
        if token in ("''", '"'):
            stack.append(token)
        elif token == "}" and len(stack) > 1 and stack[-2] != "code":
            stack.pop()
        # A brace of an attribute set inside ${ } would end it too early; none of the files has one there alone.
    elif token == "${":
        stack.append("code")
    elif token == inside:
        stack.pop()


def complaints(text: str) -> list[str]:
    """Faults of a file's layout, by line."""
    found = []
    if not text.endswith("\n") or text.endswith("\n\n"):
        found.append("the end: one newline")
    if "\n\n\n" in text:
        found.append("two empty lines")
    before = 0
    for number, line, in_code in code_lines(text):
        if line != line.rstrip():
            found.append(f"{number}: space at the end")
        if "\t" in line:
            found.append(f"{number}: a tab")
        if in_code and line:
            indentation = len(line) - len(line.lstrip())
            found += [f"{number}: {what}" for what in _in_code(line, indentation, before)]
            before = indentation
    return found


def _in_code(line: str, indentation: int, before: int) -> Iterator[str]:
    if indentation % 2:
        yield "indented by an odd number"
    if indentation > before + 2:
        yield "indented by more than two"
    if len(line) > WIDTH and '"' not in line:
        yield f"over {WIDTH} characters"
    if re.match(r"\s*with [\w.]+;", line):
        yield "with hides where a name comes from"


@each_file
def test_it_parses(nix: Nix, file: Path) -> None:
    """Nix itself reads it."""
    nix.parse(file)


def test_what_is_not_nix_does_not_parse(nix: Nix, tmp_path: Path) -> None:
    """The test above can fail."""
    wrong = tmp_path / "wrong.nix"
    wrong.write_text("{ a = 1 }\n")
    with pytest.raises(EvaluationError, match="syntax error"):
        nix.parse(wrong)


@each_file
def test_it_is_formatted(file: Path) -> None:
    """Two spaces, no tabs, nothing at the end of a line, one newline at the end of the file."""
    assert complaints(file.read_text()) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{ }", "one newline"),
        ("{ }\n\n", "one newline"),
        ("{ } \n", "space at the end"),
        ("{\n\ta = 1;\n}\n", "a tab"),
        ("{\n   a = 1;\n}\n", "odd number"),
        ("{\n    a = 1;\n}\n", "more than two"),
        ("{\n  a = 1;\n\n\n  b = 2;\n}\n", "two empty lines"),
        ("with lib;\n{ }\n", "with hides"),
        ("{\n  a = ''\n       x\n  '';\n     b = 2;\n}\n", "5: indented by an odd"),
        (f"{{ {'a' * WIDTH} = 1; }}\n", "over"),
    ],
)
def test_what_is_not_formatted_is_found(text: str, complaint: str) -> None:
    """Each rule has a text that breaks it."""
    assert [found for found in complaints(text) if complaint in found]


def test_strings_are_left_alone() -> None:
    """The shell inside a string has its own layout."""
    assert complaints("{\n  a = ''\n      if true; then\n         ${b}\n    ''${c}\n  '';\n}\n") == []


def test_the_files_are_found() -> None:
    """The tests above look at what they should."""
    assert {ROOT / "flake.nix", ROOT / "nix/module-server.nix", ROOT / "tests/nix/nixpkgs/lib.nix"} <= set(
        FILES
    )
