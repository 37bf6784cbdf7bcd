"""Documents cannot drift from the program."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tang_attest.cli import group
from tang_attest.store.database.schema import REVISION
from tools.generate_docs import DOCUMENTS, ROOT

MARKDOWN = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "vectors" / "README.md"])
each_document = pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_generated_documents_are_current(name: str) -> None:
    """`python -m tools.generate_docs` writes them; somebody has to run it when a setting or a command changes."""
    assert (ROOT / name).read_text() == DOCUMENTS[name](), (
        f"run: .venv/bin/python -m tools.generate_docs  ({name})"
    )


@pytest.mark.slow
def test_generated_documents_are_made_in_any_order() -> None:
    """A command keeps its help option from the first page that shows it; the manual names it as the help does."""
    program = "from tools.generate_docs import DOCUMENTS, manual, cli; manual(); print(cli(), end='')"
    made = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout == (ROOT / "docs" / "cli.md").read_text()


def _anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub and GitLab make them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    """A relative link names a file that is there, and a heading in it."""
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", path.read_text()):
        if "://" in target:
            continue
        file = path.parent / target if target else path
        assert file.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in _anchors(file), f"{path.name}: {target}#{anchor}"


@each_document
def test_tests_that_are_named_exist(path: Path) -> None:
    """A document that says "this test shows it" names a test that is there: by its name, its file, or both."""
    names, files = _named_tests(path.read_text())
    assert set(names) <= _tests()
    for file, name in files:
        assert (ROOT / file).exists(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


@functools.cache
def _tests() -> set[str]:
    """The names of all tests."""
    texts = (file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    return {name for text in texts for name in re.findall(r"def (test_\w+)\(", text)}


def _named_tests(text: str) -> tuple[list[str], list[tuple[str, str]]]:
    """Tests that a document names: names, and files under tests/ with a test's name or without."""
    return re.findall(r"`(test_\w+)`", text), re.findall(r"(?<![\w/])(tests/[\w/.-]*\w)(?:::(\w+))?", text)


def test_named_tests_are_found() -> None:
    """The test above looks at what it should."""
    names, files = _named_tests(
        "`test_a`, `tests/faults/test_b.py`, tests/x/test_c.py::test_d, and tests/boot."
    )
    assert names == ["test_a"]
    assert files == [("tests/faults/test_b.py", ""), ("tests/x/test_c.py", "test_d"), ("tests/boot", "")]
    assert len(_named_tests((ROOT / "docs" / "threat-model.md").read_text())[0]) > 100


def _options(words: list[str]) -> tuple[str, set[str]]:
    """The command that *words* (after ``tang-attest``) begin with, and every option it and its parents take."""
    command: click.Command = group
    path, known = "tang-attest", {"--help", "-h"}
    context = click.Context(group)
    for word in words:
        known |= {flag for parameter in command.params for flag in parameter.opts}
        child = command.get_command(context, word) if isinstance(command, click.Group) else None
        if child is None:
            break
        command, path = child, f"{path} {word}"
    known |= {flag for parameter in command.params for flag in parameter.opts}
    assert not isinstance(command, click.Group) or command.invoke_without_command, (
        f"{path} needs a command, got {words}"
    )
    return path, known


def _shown(text: str) -> list[str]:
    """The command lines of ``tang-attest`` in a document's code: indented, fenced or in the running text."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^ {4,}(.*)$", text, re.MULTILINE))
    code = f"{fenced}\n{indented}".replace("\\\n", " ")
    typed = re.findall(r"(?:^|\$ |\| |  )(?:\.venv/bin/)?tang-attest ([a-z][^\n#|]*)", code, re.MULTILINE)
    return typed + re.findall(r"`tang-attest ([a-z][^`]*)`", text)


@each_document
def test_commands_that_are_shown_exist(path: Path) -> None:
    """Every line that a document tells people to type has the commands and options that the program has."""
    for line in _shown(path.read_text()):
        command, known = _options(line.split())
        for flag in re.findall(r"(?<=\s)--?[a-z][a-z0-9-]*", line):
            assert flag in known, f"{command} has no {flag}: {line}"


def test_commands_are_found() -> None:
    """The test above looks at what it should."""
    assert 'approve pi-b --label "kernel 6.1.0-29"' in _shown((ROOT / "README.md").read_text())
    assert len(_shown((ROOT / "docs" / "how-to" / "first-machine.md").read_text())) > 6


def test_folders_and_files_that_are_named_exist() -> None:
    """Architecture, contributing and decisions name places of the tree, from its root or from below a package."""
    decisions = (ROOT / "docs" / "decisions").rglob("*.md")
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md", *decisions]
    roots = (ROOT / "tang_attest", ROOT / "clevis-pin")
    tree = [f"/{path.relative_to(ROOT)}/" for root in roots for path in root.rglob("*")]
    found = 0
    for page in pages:
        for place in re.findall(r"`([a-z_-]+/(?:[a-z_.-]+/?)*)`", page.read_text()):
            found += 1
            there = (ROOT / place).exists() or any(path.endswith(f"/{place.rstrip('/')}/") for path in tree)
            assert there or place.startswith("build/"), f"{page.name}: {place}"
    assert found > 60


def test_the_readme_leads_to_every_document() -> None:
    """Each page is linked from the README, or from an index (a README of a folder) that the README links."""
    indexes = [path for path in MARKDOWN if path.name == "README.md"]
    linked = {
        (index.parent / target).resolve()
        for index in indexes
        for target in re.findall(r"\]\(([^)#]+\.md)", index.read_text())
        if "://" not in target
    }
    assert [path for path in MARKDOWN if path.resolve() not in linked and path != ROOT / "README.md"] == []


def test_decisions_are_numbered_and_listed_with_their_dates() -> None:
    """Numbers are consecutive over all folders, and the index has each record's title and date."""
    folder = ROOT / "docs" / "decisions"
    records = sorted(folder.glob("*/*.md"), key=lambda path: path.name)
    assert [record.name[:4] for record in records] == [
        f"{number:04}" for number in range(1, len(records) + 1)
    ]
    index = (folder / "README.md").read_text()
    for record in records:
        head = re.match(r"# (\d{4})\. (.+)\n\n(\d{4}-\d\d-\d\d) · \w+", record.read_text())
        assert head, record.name
        number, title, date = head.groups()
        assert f"| {number} | [{title}]({record.relative_to(folder)}) | {date} |" in index


def test_the_schema_that_is_shown_is_the_newest() -> None:
    """The message that serve stops with, where upgrades are explained."""
    shown = (ROOT / "docs" / "how-to" / "postgresql.md").read_text()
    assert re.findall(r"this program needs (\d+)", shown) == [REVISION]


def test_the_manual_page_has_only_known_requests() -> None:
    """Text that happens to begin with a dot would vanish from the page."""
    page = (ROOT / "man" / "tang-attest.8").read_text()
    requests = set(re.findall(r"^[.'](\S*)", page, re.MULTILINE))
    assert requests <= {'\\"', "TH", "SH", "SS", "TP", "PP", "B", "I", "BR", "IR", "nf", "fi", "RS", "RE"}
    assert ".SS token create [OPTIONS]" in page


@each_document
def test_american_spelling(path: Path) -> None:
    """One spelling: American."""
    british = r"\b(enrol|enrols|enrolment|behaviour|honour\w*|authoris\w*|recognis\w*|initialis\w*|licence|colour|labell\w*)\b"
    assert re.findall(british, path.read_text(), re.IGNORECASE) == []
