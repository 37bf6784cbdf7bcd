"""One word for one thing: docs/glossary.md says which."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
CODE = ("tang_attest", "clevis-pin")


def _classes() -> dict[str, list[str]]:
    """Name of each class of the program to the files that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for tree in CODE:
        for path in sorted((ROOT / tree).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(str(path.relative_to(ROOT)))
    return found


def test_each_class_has_a_name_of_its_own() -> None:
    """A reader who sees a class name knows which class it is, without looking at the imports."""
    assert {name: files for name, files in _classes().items() if len(files) > 1} == {}
