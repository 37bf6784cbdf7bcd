"""tools/fresh-root: a root of each supported Debian, in which the boots find what a machine has."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.boot.images.base import suites
from tests.boot.images.cache import ROOT

pytestmark = [pytest.mark.boot, pytest.mark.timeout(1200)]

#: Printed lines; then an exit status of its own.
_SCRIPT = r"""
. /etc/os-release
echo "suite $VERSION_CODENAME"
# The boots read the sources by this name, and make namespaces in which they mount.
test -s /etc/apt/sources.list.d/debian.sources || test -s /etc/apt/sources.list
unshare --mount sh -c 'mount -t tmpfs tmpfs /mnt && echo "mounted"'
# An orphan is the child of PID 1, which has to reap it.
(sleep 0.1 & echo $! >/tmp/orphan)
sleep 1
test ! -e "/proc/$(cat /tmp/orphan)" && echo "reaped"
git rev-parse --is-inside-work-tree
exit 3
"""


@pytest.mark.parametrize("suite", suites())
def test_a_command_runs_as_on_a_new_machine(tmp_path: Path, suite: str) -> None:
    """The root is a mount point, PID 1 reaps, the suite is the one asked for, and the command's exit status counts."""
    environment = {**os.environ, "SUITE": suite, "FRESH_ROOT": str(tmp_path / "root")}
    done = subprocess.run(
        ["tools/fresh-root", "bash", "-ec", _SCRIPT],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1100, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[-4:] == [f"suite {suite}", "mounted", "reaped", "true"], done.stdout + done.stderr
    assert done.returncode == 3
