"""One word for one thing: docs/glossary.md says which."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from tests.docs.sources import outline

ROOT = Path(__file__).parents[2]
CODE = ("tang_attest", "clevis-pin")
#: Everything that a user or a reader sees, but this test, the glossary itself and what was true of old versions.
TEXT = (*CODE, "initrd", "nix", "packaging", "tools", "dashboards", "docs", "man")
NOT_TEXT = {ROOT / "docs" / "glossary.md", ROOT / "CHANGELOG.md"}


def _classes() -> dict[str, list[str]]:
    """Name of each class of the program to the files that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for tree in CODE:
        for path in sorted((ROOT / tree).rglob("*.py")):
            for shape in outline(path).classes:
                found[shape.name].append(str(path.relative_to(ROOT)))
    return found


def test_each_class_has_a_name_of_its_own() -> None:
    """A reader who sees a class name knows which class it is, without looking at the imports."""
    assert {name: files for name, files in _classes().items() if len(files) > 1} == {}


def _retired() -> list[tuple[re.Pattern[str], str]]:
    """Expressions of the last table of the glossary, and the word to write instead."""
    table = (ROOT / "docs" / "glossary.md").read_text().split("## Retired words")[1]
    rows = re.findall(r"^\| (`.+`) \| (.+) \|$", table, re.MULTILINE)
    return [
        (re.compile(rf"\b(?:{expression})\b".replace("\\|", "|"), re.IGNORECASE), instead)
        for cell, instead in rows
        for expression in re.findall(r"`(.+?)`", cell)
    ]


RETIRED = _retired()
#: Any of them.
ANY_RETIRED = re.compile("|".join(old.pattern for old, _ in RETIRED), re.IGNORECASE)


def _uses(text: str) -> list[tuple[int, str, str]]:
    """Line, retired word and the word to write, of each use in *text*; names of tests are no words."""
    found: list[tuple[int, str, str]] = []
    text = re.sub(r"\btest_\w+", "", text)
    if not ANY_RETIRED.search(text):
        return found
    for number, words in enumerate(text.splitlines(), 1):
        found += [(number, use[0], instead) for old, instead in RETIRED if (use := old.search(words))]
    return found


def test_retired_words_stay_away() -> None:
    """A word that meant two things, or that the trade has a better one for, does not come back."""
    paths = [path for tree in TEXT for path in sorted((ROOT / tree).rglob("*"))]
    found = []
    for path in [*paths, *sorted(ROOT.glob("*.md"))]:
        if path.is_file() and path not in NOT_TEXT and "__pycache__" not in path.parts:
            uses = _uses(path.read_text(errors="replace"))
            found += [f"{path.relative_to(ROOT)}:{line}: {word}: write {new}" for line, word, new in uses]
    assert found == []


def test_retired_words_are_found() -> None:
    """The test above looks at what it should."""
    assert len(RETIRED) > 15
    assert _uses("# A\nStrangers keep sealed exchange keys.\n") == [
        (2, "Strangers", "unauthenticated client; client"),
        (2, "sealed exchange keys", "encrypted key"),
    ]
    assert _uses("`test_a_stranger_waits`, an unsealed row, sealing rows, SealedRow") == []
