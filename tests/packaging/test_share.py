"""Manual pages and completions that packages make from the program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_help import PATHS
from tools.generate_share import completion, write

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def share(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package's /usr/share."""
    directory = tmp_path_factory.mktemp("share")
    write(directory, "vendor-completions")
    return directory


def test_each_command_has_a_page(share: Path) -> None:
    """`man tang-attest device verify` looks for tang-attest-device-verify."""
    pages = {path.name for path in (share / "man/man8").iterdir()}
    assert pages == {"-".join(["tang-attest", *path]) + ".8" for path in PATHS}


def test_pages_are_what_man_reads(share: Path) -> None:
    """groff warns of nothing; a page names itself, its options and its exit codes, and no line became a request."""
    for page in sorted((share / "man/man8").iterdir()):
        text = page.read_text()
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z", page], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), page.name
        assert text.splitlines()[1].startswith(".TH TANG\\-ATTEST") or page.name == "tang-attest.8"
        requests = set(re.findall(r"^[.'](\S*)", text, re.MULTILINE))
        assert requests <= {'\\"', "TH", "SH", "SS", "TP", "PP", "B", "I", "BR", "IR", "nf", "fi", "RS", "RE"}
        assert ".SH NAME" in text
        assert ".SH EXIT STATUS" in text
    stage = (share / "man/man8/tang-attest-policy-stage.8").read_text()
    assert ".B \\-\\-announced LABEL" in stage
    assert "tang\\-attest\\-policy\\-stage \\- let a state count before any machine boots it\n" in stage


def complete(script: Path, *words: str) -> list[str]:
    """The completions that bash finds for the last of *words*."""
    program = f"""
        . {script}
        COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
        _tang_attest_completion tang-attest
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": path, "HOME": "/nonexistent"},
        timeout=120,
    )
    return done.stdout.split()


def test_bash_completes(share: Path) -> None:
    """Commands, commands of a group, options and choices; no old name."""
    script = share / "bash-completion/completions/tang-attest"
    assert complete(script, "tang-attest", "ob") == ["observation"]
    assert complete(script, "tang-attest", "policy", "re") == [
        *("record", "refuse-stale", "reinstate", "remove", "require-approval", "require-attested-root"),
        *("require-ima", "require-operators", "require-registered-ek", "require-rounds", "retire"),
    ]
    assert complete(script, "tang-attest", "device", "verify", "--js") == ["--json"]
    assert complete(script, "tang-attest", "policy", "require-approval", "web", "o") == ["on", "off"]
    assert complete(script, "tang-attest", "policy", "wa") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_ask_the_same_program(shell: str) -> None:
    """Their scripts name the program and the variable through which it is asked."""
    script = completion(shell)
    assert f"_TANG_ATTEST_COMPLETE={shell}_complete" in script
    assert "tang-attest" in script


def test_the_command_prints_what_packages_install(share: Path) -> None:
    """For an installation without a package."""
    done = subprocess.run(
        [sys.executable, "-m", "tang_attest", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.stdout == (share / "bash-completion/completions/tang-attest").read_text()
