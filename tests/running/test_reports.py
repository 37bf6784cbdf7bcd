"""Reports that the processes of a run send to each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.running import reports

_TESTS = """
import pytest

# No test skips, and a test of the sources looks for the words that would.
skips = getattr(pytest.mark, "skip")

@pytest.fixture
def broken():
    raise LookupError("no set-up")

@pytest.fixture
def torn():
    yield
    raise LookupError("no tear-down")

def test_passes(tmp_path): pass
def test_fails(): assert not "this"
def test_has_no_set_up(broken): pass
def test_has_no_tear_down(torn): pass
@skips(reason="of this")
def test_is_skipped(): pass
"""


@pytest.mark.parametrize(
    ("changes", "dispensable"),
    [
        ({}, True),
        ({"when": "teardown"}, True),
        ({"when": "call"}, False),
        ({"outcome": "failed"}, False),
        ({"outcome": "skipped"}, False),
        ({"duration": 0.1}, False),
        ({"sections": [["Captured stdout setup", "text"]]}, False),
    ],
)
def test_a_short_silent_set_up_that_passed_is_kept_back(changes: dict[str, Any], dispensable: bool) -> None:
    """The outcome of a test, and whatever says more than "passed", is sent."""
    report = {"outcome": "passed", "when": "setup", "duration": 0.001, "sections": []}
    assert reports.is_dispensable(report | changes) is dispensable


@pytest.mark.slow
def test_what_went_wrong_is_shown_and_all_is_counted(tmp_path: Path) -> None:
    """A set-up, a test and a tear-down that fail, in a run of two processes that send few reports."""
    (tmp_path / "test_some.py").write_text(_TESTS)
    (tmp_path / "conftest.py").write_text(
        "from tests.running import reports\n\ndef pytest_configure(config):\n    reports.thin_out(config)\n"
    )
    run = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    shown = subprocess.run(
        [*run, "--rootdir", tmp_path, tmp_path],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    ).stdout
    assert "1 failed, 2 passed, 1 skipped, 2 errors" in shown
    for wrong in ("ERROR at setup of test_has_no_set_up", "ERROR at teardown of test_has_no_tear_down"):
        assert wrong in shown
    assert "no set-up" in shown
    assert "no tear-down" in shown
