"""Prose is written for somebody who reads it once: see CONTRIBUTING, "Words"."""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.docs.sources import outline

ROOT = Path(__file__).parents[2]
TREES = ("tang_attest", "tests", "tools", "clevis-pin", "nix")
SHELL = ("clevis-pin", "initrd", "tools", "nix", "packaging")
#: Words that put the subject of a sentence after it.
OPENER = re.compile(r"(what|whatever|who|whom|whoever|whose|whether|how|which|where|why)\b", re.IGNORECASE)
#: The same at the beginning of a sentence, of a paragraph or of an item; questions may open so.
SENTENCE = re.compile(
    r"(?:^|[.:;!?]\s+|\n\n|\n\s*[*-] )((?:What|Whatever|Who|Whom|Whoever|Whose|Whether|How|Which|Where|Why)\b[^.?]*\.)"
)
#: A line of Python with a comment that may open so; few lines are like it, and finding comments needs a
#: tokenizer.
COMMENT = re.compile(
    r"#[#: ]*(?i:what|who|whether|how|which|where|why)|#.*\b(?:What|Who|Whether|How|Which|Where|Why)"
)
#: A person is "they".
PERSON = re.compile(r"\b(he|him|his|himself)\b", re.IGNORECASE)


PYTHON = sorted(path for tree in TREES for path in (ROOT / tree).rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "man").iterdir()])
PAGES += [ROOT / "vectors" / "README.md"]
PAGES += sorted((ROOT / "clevis-pin" / "man").iterdir())


def _scripts() -> Iterator[Path]:
    for tree in SHELL:
        for path in sorted((ROOT / tree).rglob("*")):
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
                yield path


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each comment in *path*; a comment of several lines is one."""
    block: list[str] = []
    first = last = 0
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type != tokenize.COMMENT:
                continue
            text = token.string.lstrip("#: ")
            if token.start[0] == last + 1 and block:
                block.append(text)
            else:
                if block:
                    yield first, " ".join(block)
                block, first = [text], token.start[0]
            last = token.start[0]
    if block:
        yield first, " ".join(block)


def _suspect_comments(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments of *path* if one of them may open with a question word."""
    return _comments(path) if COMMENT.search(path.read_text()) else iter(())


def _shell_comments(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each comment of a script that is on lines of its own."""
    block: list[str] = []
    first = 0
    for number, line in enumerate([*path.read_text(errors="replace").splitlines(), ""], 1):
        comment = re.fullmatch(r"\s*#(?!!)\s?(.*)", line)
        if comment:
            first = first if block else number
            block.append(comment[1])
        elif block:
            yield first, " ".join(block).strip()
            block = []


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _opening(texts: Iterable[tuple[int, str]], path: Path) -> list[str]:
    found = []
    for line, text in texts:
        opened = SENTENCE.search(text)
        if OPENER.match(text) or opened:
            found.append(f"{_named(path)}:{line}: {(opened[1] if opened else text)[:70]}")
    return found


@pytest.mark.parametrize("tree", TREES)
def test_no_docstring_opens_with_a_question_word(tree: str) -> None:
    """A docstring begins with a noun phrase or an imperative."""
    paths = [path for path in PYTHON if path.is_relative_to(ROOT / tree)]
    assert [found for path in paths for found in _opening(outline(path).docstrings, path)] == []


@pytest.mark.parametrize("tree", TREES)
def test_no_comment_opens_with_a_question_word(tree: str) -> None:
    """Comments read like docstrings."""
    paths = [path for path in PYTHON if path.is_relative_to(ROOT / tree)]
    assert [found for path in paths for found in _opening(_suspect_comments(path), path)] == []


def test_no_comment_of_a_script_opens_with_a_question_word() -> None:
    """Shell and units too."""
    assert [found for path in _scripts() for found in _opening(_shell_comments(path), path)] == []


def _sentences(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each sentence of a document that begins on that line; headings and code are left out."""
    fenced = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if fenced or line.startswith(("#", "    ")):
            continue
        for sentence in re.split(r"(?<=[.:;!?])\s+|\s*\|\s*|^[-*>\s]+|\*\*", line):
            if (
                sentence
                and sentence[0].isupper()
                and not sentence[1:2].isupper()
                and not sentence.endswith("?")
            ):
                yield number, sentence


def test_no_sentence_of_a_document_opens_with_a_question_word() -> None:
    """Questions may; statements name their subject first."""
    found = [line for page in PAGES if page.suffix == ".md" for line in _opening(_sentences(page), page)]
    found = [
        line for line in found if ": Whether to enable " not in line
    ]  # NixOS' mkEnableOption writes that
    assert found == []


def test_a_person_is_they() -> None:
    """Text calls an operator, an attacker or a reader "they"."""
    found = []
    for path in [*PYTHON, *PAGES, *_scripts()]:
        if path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if PERSON.search(line):
                found.append(f"{_named(path)}:{number}: {line.strip()[:90]}")
    assert found == []


def test_prose_is_found(tmp_path: Path) -> None:
    """The tests above look at what they should."""
    python = tmp_path / "x.py"
    python.write_text('"""What it is."""\n# Whether\n# it rains.\n\nx = 1  # trailing\n')
    assert list(outline(python).docstrings) == [(1, "What it is.")]
    assert _opening(iter([(1, "It is. Who it is, is said. Who?")]), python) == ["x.py:1: Who it is, is said."]
    assert _opening(iter([(1, "It is. Who is it? It says what it is.")]), python) == []
    assert list(_comments(python)) == [(2, "Whether it rains."), (5, "trailing")]
    assert list(_suspect_comments(python)) == list(_comments(python))
    for comment in ("#: whatever", "x = 1  # It is. Whether", "#\twhich\n# is so. Where it is."):
        python.write_text(f"{comment}\n# it is.\n")
        assert _opening(_suspect_comments(python), python) == _opening(_comments(python), python) != []
    script = tmp_path / "x"
    script.write_text("#!/bin/sh\n# How it\n#  goes.\n\nx=1\n    # Who\n")
    assert list(_shell_comments(script)) == [(2, "How it  goes."), (6, "Who")]
    page = tmp_path / "x.md"
    page.write_text("# What\n\nIt is. What\n\n* **How** so?\n* Why?\n\n    Who\n")
    assert [text for _, text in _sentences(page)] == ["It is.", "What", "How"]
    assert len(PYTHON) > 300
    assert len(PAGES) > 40
