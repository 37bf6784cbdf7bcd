"""Signals that meet signals: the supervisor of processes that start slowly, sent whatever comes in one moment."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Seconds after which a supervisor counts as hung.
PATIENCE_S = 120

#: Seconds in which a worker starts, where a test has to see it start.
START_S = 0.2
#: A supervisor whose workers take a moment to answer, say so in a file, and end at SIGTERM like those of `serve`.
PROGRAM = """
import os, signal, sys, time
sys.modules["rich"] = None  # structlog loads it for tracebacks, and takes most of this program's start for it
from tang_attest.daemon.notify import Notifier
from tang_attest.daemon.supervisor import Supervisor

def work(place):
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    time.sleep(float(sys.argv[1]))
    if os.path.exists(sys.argv[2]):
        while not os.path.exists(sys.argv[2] + ".told"):
            time.sleep(0.01)
        return 3
    place.ready()
    while os.getppid() == parent:
        time.sleep(0.01)
    return 0

parent = os.getpid()
started = lambda: print("started", flush=True)
sys.exit(Supervisor(2, lambda: work, started, lambda: None, Notifier()).run())
"""


@contextmanager
def supervisor(directory: Path, delay_s: float = 0.02) -> Iterator[subprocess.Popen[str]]:
    """A supervisor that serves."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(delay_s), str(directory / "broken")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def workers_of(process: subprocess.Popen[str]) -> set[int]:
    """The process ids of the workers."""
    return {int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and what was said, once it has ended, with all of its workers."""
    said = process.communicate(timeout=PATIENCE_S)[1]
    return process.returncode, said


@pytest.mark.parametrize("pause_s", [0.0, 0.001, 0.005, 0.02, 0.03])
def test_a_stop_during_a_reload_is_a_stop(tmp_path: Path, pause_s: float) -> None:
    """SIGHUP, then SIGTERM while the new workers start: every process ends, nothing is said, and the code is 0."""
    for _ in range(5):
        with supervisor(tmp_path) as process:
            process.send_signal(signal.SIGHUP)
            time.sleep(pause_s)
            process.send_signal(signal.SIGTERM)
            assert ended(process) == (0, "")


def test_many_reloads_are_one(tmp_path: Path) -> None:
    """A hundred in a moment start two generations at most: one, and one for what changed meanwhile."""
    with supervisor(tmp_path, START_S) as process:
        first = seen = workers_of(process)
        begun = time.monotonic()
        for _ in range(100):
            process.send_signal(signal.SIGHUP)
        # A busy machine makes the moment longer, and a generation that has started merges nothing more.
        generations = 2 + int((time.monotonic() - begun) / START_S)
        settled = time.monotonic() + 3 * START_S
        while time.monotonic() < settled or len(workers_of(process)) != 2 or first & workers_of(process):
            assert time.monotonic() - begun < PATIENCE_S
            seen = seen | workers_of(process)
            time.sleep(0.01)
        assert 2 <= len(seen - first) <= 2 * generations
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")


def test_whatever_comes_together_it_ends_when_told(tmp_path: Path) -> None:
    """Reloads, workers that are killed, and at last SIGTERM, in an order of chance: no traceback, no process left."""
    chance = random.Random(8)
    for _ in range(8):
        with supervisor(tmp_path) as process:
            for _ in range(20):
                if chance.random() < 0.5:
                    process.send_signal(signal.SIGHUP)
                elif workers := sorted(workers_of(process)):
                    try:
                        os.kill(chance.choice(workers), chance.choice((signal.SIGKILL, signal.SIGTERM)))
                    except ProcessLookupError:
                        continue
                time.sleep(chance.random() / 50)
            left = workers_of(process)
            process.send_signal(signal.SIGTERM)
            code, said = ended(process)
            assert (code, "Traceback" in said) == (0, False), said
            assert not any(Path(f"/proc/{pid}").exists() for pid in left)


def test_a_worker_that_dies_during_a_failed_reload_is_replaced(tmp_path: Path) -> None:
    """The generation that goes on is whole again."""
    with supervisor(tmp_path) as process:
        before = workers_of(process)
        (tmp_path / "broken").touch()
        process.send_signal(signal.SIGHUP)
        until(lambda: len(workers_of(process) - before) == 2, "no new generation")
        new = workers_of(process) - before
        os.kill(min(before), signal.SIGKILL)
        until(lambda: min(before) not in workers_of(process), "the dead worker was not noticed")
        (tmp_path / "broken.told").touch()  # the new generation gives up
        until(lambda: not new & workers_of(process), "the new generation stays")
        (tmp_path / "broken").unlink()
        until(lambda: len(workers_of(process)) == 2, "the generation is not whole")
        assert max(before) in workers_of(process)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0
