"""Old names of commands and options: they do what the new ones do, say so on stderr, and are in no help."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import sites
from tests.cli.transcript import run

OLD_WORDS = (
    *(
        "--values",
        "--change",
        "--valid-for",
        "--learn-for",
        "--after",
        "--ak-public",
        "--why",
        "--off",
        "--allow ",
    ),
    *("policy approve", "policy restore", "policy watch", "policy ima"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with a policy, and the files that the commands read, for each test to copy."""
    directory = tmp_path_factory.mktemp("site")
    with sites.made(directory):
        Path("change").write_text(
            json.dumps({"add": [{"label": "next", "values": {"0": "33" * 32, "7": "44" * 32}}]})
        )
        Path("allowed").write_text(json.dumps({"files": []}))
    return directory


@pytest.fixture(autouse=True)
def site(tmp_path: Path, made: Path) -> Iterator[None]:
    """The state and the files in the current directory."""
    with sites.copied(made, tmp_path):
        yield


@pytest.mark.parametrize(
    ("old", "new", "note"),
    [
        (
            "policy watch web --every 5s",
            "policy require-rounds web on --every 5s",
            "policy require-rounds POLICY on|off",
        ),
        ("policy watch web --off", "policy require-rounds web off", "policy require-rounds POLICY on|off"),
        (
            "policy ima web --sums sums",
            "policy require-ima web on --sums sums",
            "policy require-ima POLICY on|off",
        ),
        ("policy ima web --off", "policy require-ima web off", "policy require-ima POLICY on|off"),
        ("policy refuse-stale web --after 30d", "policy refuse-stale web on --for 30d", "--for"),
        ("policy refuse-stale web --after=30d", "policy refuse-stale web on --for=30d", "--for"),
        ("policy refuse-stale web --off", "policy refuse-stale web off", "off"),
        (
            "policy record web --values values --label a --force",
            "policy record web --file values --label a --force",
            "--file",
        ),
        ("policy dry-run web --change change", "policy dry-run web --file change", "--file"),
        ("policy apply web --change change", "policy apply web --file change", "--file"),
        (
            "policy rollout start web --change change --name n --share 5% --salt s",
            "policy rollout start web --file change --name n --share 5% --salt s",
            "--file",
        ),
        ("policy rollout stop web --why x", "policy rollout stop web --reason x", "--reason"),
        ("policy rollout abandon web --why=x", "policy rollout abandon web --reason=x", "--reason"),
        (
            "policy approve web nothing",
            "policy stage web --announced nothing",
            "policy stage POLICY --announced LABEL",
        ),
        ("policy restore web nothing", "policy reinstate web nothing", "policy reinstate"),
        (
            "device register one --ak-public ak --policy web",
            "device register two --file ak --policy web",
            "--file",
        ),
        ("token create --record --valid-for 7d", "token create --record --for 7d", "--for"),
        ("ima check nowhere --allow allowed", "ima check nowhere --file allowed", "--file"),
        ("eventlog check nowhere log --values values", "eventlog check nowhere log --file values", "--file"),
    ],
)
def test_old_names(old: str, new: str, note: str, tmp_path: Path) -> None:
    """The outcome and the exit code are those of the new name, after one note that says it."""

    def result(command: str) -> tuple[list[str], int]:
        _, err, code = run(*shlex.split(command))
        return err.splitlines(), code

    (first, *rest), code = result(old)
    assert first.startswith("tang-attest: note: '"), first
    assert f"is now '{note}'" in first or f"is now 'tang-attest {note}'" in first
    assert not any("note: " in line for line in rest)
    if code == 0 and ("register" in old or "apply" in old or "record web" in old or "start" in old):
        return  # the same again is another question
    expected, expected_code = result(new)
    assert code == expected_code
    if "until" not in "".join(rest):
        assert rest == expected


def test_an_old_name_that_lost_its_option() -> None:
    """`token create --learn-for` still counts, and names the command that has its place."""
    out, err, code = run("token", "create", "--record", "--learn-for", "2h", "--json")
    assert code == 0
    assert json.loads(out)["record"] is True
    assert "note: '--learn-for' is now 'tang-attest device learn DEVICE --for'" in err


def test_words_that_are_values_are_left_alone() -> None:
    """After --, and within a value, nothing is renamed."""
    assert "note" not in run("policy", "record", "web", "--file", "values", "--label=--values")[1]
    out, err, code = run("device", "label", "--add", "x", "--", "--why")
    assert (out, code, "note" in err) == ("", 1, False)


def test_old_names_are_in_no_help(tmp_path: Path) -> None:
    """Help and documents show only the new names."""
    from tests.cli.test_help import PATHS

    for path in PATHS:
        text = run(*path, "--help")[0]
        for word in OLD_WORDS:
            assert not re.search(rf"{re.escape(word)}(?![\w-])", text), (path, word)
    for command in ("watch", "approve", "restore", "ima"):
        assert f"\n  {command} " not in run("policy", "--help")[0]


def test_a_new_name_says_nothing() -> None:
    """No note without an old name."""
    for command in (
        "policy require-rounds web on",
        "policy refuse-stale web on --for 3d",
        "token create --record --for 1d",
    ):
        _, err, code = run(*command.split())
        assert (code, "note" in err) == (0, False)


def test_the_help_of_an_old_name_is_that_of_the_new_one() -> None:
    """A person who asks for it finds the new usage."""
    for old, new in (
        ("watch", "require-rounds"),
        ("approve", "stage"),
        ("restore", "reinstate"),
        ("ima", "require-ima"),
    ):
        out, err, code = run("policy", old, "--help")
        assert (code, out.splitlines()[0]) == (0, run("policy", new, "--help")[0].splitlines()[0])
        assert "note: " in err


#: Old usages as documents and scripts would have them.
_OLD_USAGE = re.compile(
    r"policy (?:watch|approve|restore|ima)\b|--(?:valid-for|learn-for|ak-public)\b"
    r"|(?:record|check|apply|dry-run|start) .*--(?:values|change)\b|refuse-stale .*--(?:after|off)\b|--why\b"
)


def test_documents_and_scripts_use_the_new_names() -> None:
    """A command that a reader copies works without a note."""
    root = Path(__file__).parent.parent.parent
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if name.startswith(("docs/decisions/", "tests/")) or not name.endswith(
            (".md", ".1", ".8", ".nix", ".json")
        ):
            continue
        if name != "CHANGELOG.md":
            # The conformance kit is a program of its own, with options of its own.
            lines = [
                line for line in (root / name).read_text().splitlines() if "tools/conformance" not in line
            ]
            assert _OLD_USAGE.findall("\n".join(lines)) == [], name
