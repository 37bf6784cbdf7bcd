"""A program that is forked is as one that is started: tests of the helper that starts programs."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import forked
from tests.cli.serving import clean_environment
from tests.cli.test_output import wait_until_it_reads
from tests.cli.transcript import environment, run

PATIENCE_S = 120
#: prctl(2)
_PR_GET_CHILD_SUBREAPER = 37


@pytest.fixture
def waiting(tmp_path: Path) -> list[str]:
    """The command line of a program that reads its standard input."""
    with environment():
        arguments = ("--state", str(tmp_path))
        assert run(*arguments, "init")[2] == 0
        assert run(*arguments, "policy", "create", "web", "--selection", "sha256:0")[2] == 0
    return forked.command(*arguments, "policy", "record", "web", "--file", "-")


def test_a_program_is_a_child_with_nothing_else_open(waiting: list[str]) -> None:
    """Signals, exit codes and pipes are those of a process that this one started."""
    with forked.Popen(waiting, stdin=subprocess.PIPE, env=clean_environment()) as process:
        about = Path(f"/proc/{process.pid}")
        assert f"PPid:\t{os.getpid()}\n" in (about / "status").read_text()
        assert b"zygote" in (about / "cmdline").read_bytes()
        wait_until_it_reads(process.pid)
        assert {"0", "1", "2"} == {
            path.name for path in (about / "fd").iterdir() if not _is_database(path.readlink())
        }
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == -signal.SIGTERM


def _is_database(path: Path) -> bool:
    return "registry" in path.name


def test_a_program_has_its_own_environment_directory_and_descriptors(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    done = forked.run(
        forked.command("audit"),
        timeout=PATIENCE_S,
        cwd=tmp_path,
        env=clean_environment(TANG_ATTEST_STATE="here"),
        stderr=subprocess.STDOUT,
    )
    assert (done.returncode, done.stderr) == (1, None)
    assert b"here/kek (state-missing)" in done.stdout


def test_what_an_interpreter_reads_at_its_start_starts_one(waiting: list[str]) -> None:
    """A fork would not see it."""
    different = clean_environment(PYTHONHASHSEED="7")
    with forked.Popen(waiting, stdin=subprocess.PIPE, env=different) as process:
        assert b"zygote" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        process.kill()


def test_another_program_is_started(tmp_path: Path) -> None:
    done = forked.run([sys.executable, "-c", "print(7)"], timeout=PATIENCE_S, cwd=tmp_path)
    assert done.stdout == b"7\n"


def test_orphans_of_tests_stay_the_systems() -> None:
    """A test that looks whether a grandchild ended would see a zombie of ours."""
    forked.run(forked.command("--version"), timeout=PATIENCE_S)
    adopting = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(adopting), 0, 0, 0) == 0
    assert adopting.value == 0
