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


_FILTERED = """
import ctypes, errno, resource, sys
from tang_attest.daemon.files import allow_open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 2000))
seccomp = ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p
seccomp.seccomp_load.argtypes = [ctypes.c_void_p]
seccomp.seccomp_rule_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint]
context = seccomp.seccomp_init(0x7FFF0000)  # SCMP_ACT_ALLOW
for name in (b"getrlimit", b"setrlimit", b"prlimit64"):
    number = seccomp.seccomp_syscall_resolve_name(name)
    assert seccomp.seccomp_rule_add(context, 0x00050000 | errno.EPERM, number, 0) == 0
assert seccomp.seccomp_load(context) == 0
print(allow_open_files(1000))
"""


def test_a_filter_of_system_calls() -> None:
    """The unit's own (SystemCallFilter=~@resources) forbids to ask: the limit is the unit's, and serve starts."""
    command = [sys.executable, "-c", _FILTERED]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "300\n"
