"""Documents cannot drift from the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools.generate_docs import DOCS, DOCUMENTS

ROOT = Path(__file__).parent.parent
MARKDOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_documents_are_current(name: str) -> None:
    """`python -m tools.generate_docs` writes them; somebody has to run it when a setting or a command changes."""
    assert (DOCS / name).read_text() == DOCUMENTS[name](), (
        f"run: .venv/bin/python -m tools.generate_docs  ({name})"
    )


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """A relative link names a file that is there."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name}: {target}"
