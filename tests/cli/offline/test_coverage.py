"""``tang-attest eventlog coverage``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli import forked

VECTORS = Path(__file__).parents[2] / "vectors"
BOOTI = VECTORS / "eventlogs-arm64" / "uboot-booti.bin"
PARTS = ["firmware", "boot_loader", "secure_boot", "kernel", "initrd", "command_line", "device_tree"]


def coverage(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a place without a server's state."""
    return forked.run(
        forked.command("eventlog", "coverage", *arguments),
        text=True,
        timeout=120,
        env={**os.environ, "TANG_ATTEST_STATE": "/nonexistent"},
    )


def test_json_needs_no_server_and_has_only_the_parts() -> None:
    result = coverage(BOOTI, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    view = json.loads(result.stdout)
    assert list(view) == PARTS
    assert view["initrd"] == {"measured_in": [9], "selected": True, "covered": True}
    assert view["kernel"] == {"measured_in": [], "selected": False, "covered": False}
    assert view["command_line"] == {"measured_in": [1], "selected": False, "covered": False}


def test_the_selection_decides() -> None:
    view = json.loads(coverage(BOOTI, "--json", "--selection", "sha256:0,1").stdout)
    assert view["command_line"] == {"measured_in": [1], "selected": True, "covered": True}
    assert view["initrd"] == {"measured_in": [9], "selected": False, "covered": False}


def test_text_says_why_and_what_to_select() -> None:
    result = coverage(BOOTI)
    assert result.returncode == 0
    assert "initrd PCR 9: covered; kernel: not measured; command line PCR 1: not selected" in result.stdout
    assert "boot a FIT image with bootm" in result.stdout
    assert "hint: the selection for this boot chain is sha256:0,1,9,15" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([VECTORS / "eventlogs" / "sha1.bin"], 1, "eventlog-bank-missing"),
        ([VECTORS / "eventlogs" / "README.md"], 1, "eventlog-malformed"),
        ([VECTORS / "nothing.bin"], 1, "file-unreadable"),
        ([BOOTI, "--selection", "sha1:0"], 2, "--selection"),
    ],
)
def test_bad_input_is_said_in_two_lines(arguments: list[str | Path], code: int, words: str) -> None:
    result = coverage(*arguments)
    assert result.returncode == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 2
