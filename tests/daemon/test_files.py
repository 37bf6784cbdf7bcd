"""Room for connections."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
from tang_attest.daemon.files import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
print(allow_open_files(int(sys.argv[3])), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "count", "told"),
    [
        (256, 2000, 1000, "1000 1000 2000"),
        (256, 500, 1000, "500 500 500"),
        (256, 2000, 100, "256 256 2000"),
    ],
)
def test_the_soft_limit_follows(soft: int, hard: int, count: int, told: str) -> None:
    """As far as the hard one; never down.  In a process of its own, which cannot raise it again."""
    command = [sys.executable, "-c", _PROGRAM, str(soft), str(hard), str(count)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == told
