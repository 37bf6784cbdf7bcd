"""Files of tests that are not imported because no test of them runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running.left_out import is_left_out

_QUICK = "not boot and not bench and not slow"


@pytest.mark.parametrize(
    ("text", "expression", "left_out"),
    [
        ("pytestmark = pytest.mark.slow", _QUICK, True),
        ("pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]", _QUICK, True),
        ('pytestmark = [\n    pytest.mark.asyncio(loop_scope="s"),\n    pytest.mark.slow,\n]', _QUICK, True),
        ("pytestmark = pytest.mark.slow", "not boot and not bench", False),
        ("pytestmark = pytest.mark.slow", "slow and not boot", False),
        ("pytestmark = pytest.mark.boot", "not (boot and release)", False),
        ("pytestmark = pytest.mark.boot", "boot and not release", False),
        ("pytestmark = pytest.mark.slow", "", False),
        ('pytestmark = pytest.mark.usefixtures("slow")', _QUICK, False),
        ("@pytest.mark.slow\ndef test_one(): pass\n\ndef test_two(): pass", _QUICK, False),
        ("def test_one(): pass", _QUICK, False),
    ],
)
def test_a_file_is_left_out_for_a_mark_of_its_own(
    tmp_path: Path, text: str, expression: str, left_out: bool
) -> None:
    """One test that runs, or an expression that is more than a list of marks, keeps a file."""
    file = tmp_path / "test_some.py"
    file.write_text(f"import pytest\n\n{text}\n")
    assert is_left_out(file, expression) is left_out
