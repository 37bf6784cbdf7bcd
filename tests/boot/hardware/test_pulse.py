"""Emulators that hang are named, and those that live are not; a line that was lost at a prompt is typed again."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.boot.hardware.bare import HALT, SPIN, console_of, running, wait_for_the_end
from tests.boot.hardware.machine import NotSeen
from tests.boot.hardware.pulse import EmulatorHung, Pulse

#: Seconds in which a QEMU on a busy machine gives a sign of life.
PATIENCE_S = 4.0
INTERVAL_S = 0.1

#: Return a started QEMU and the queue with the reports of its watch.
Start = Callable[..., tuple[subprocess.Popen[bytes], queue.Queue[str]]]


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Start]:
    """Start a QEMU whose processor runs the given code, and its watch."""
    with ExitStack() as stack:

        def start(code: bytes, *options: str) -> tuple[subprocess.Popen[bytes], queue.Queue[str]]:
            process, qmp = stack.enter_context(running(tmp_path, code, *options))
            reports: queue.Queue[str] = queue.Queue()
            stack.enter_context(
                Pulse(process.pid, qmp, reports.put, patience=PATIENCE_S, interval=INTERVAL_S)
            )
            return process, reports

        yield start


@pytest.mark.slow
def test_an_emulator_that_answers_nothing_has_hung(emulator: Start) -> None:
    """A stopped process is as deaf as one whose main loop waits for a lock."""
    process, reports = emulator(SPIN)
    with pytest.raises(queue.Empty):  # its machine says nothing and never ends, but it runs
        reports.get(timeout=1.5 * PATIENCE_S)
    os.kill(process.pid, signal.SIGSTOP)
    assert reports.get(timeout=60) == (
        f"the emulator hung: QEMU, process {process.pid}: it answered nothing on its control socket for 4 s"
    )


def test_an_emulator_whose_processors_do_not_run_has_hung(emulator: Start) -> None:
    """QEMU answers, but nothing wakes the processor up."""
    _, reports = emulator(HALT)
    assert reports.get(timeout=60).endswith("no processor of its machine ran for 4 s")


def test_an_emulator_that_stopped_its_machine_is_named(emulator: Start) -> None:
    """QEMU stops a machine by itself when the host's disk is full; this one was never started."""
    _, reports = emulator(SPIN, "-S")
    assert reports.get(timeout=60).endswith("it stopped its machine (prelaunch)")


def test_an_emulator_that_ends_has_not_hung(emulator: Start) -> None:
    """A machine that was switched off, or crashed, is told by its console."""
    process, reports = emulator(SPIN)
    process.kill()
    process.wait()
    with pytest.raises(queue.Empty):
        reports.get(timeout=1.5 * PATIENCE_S)


def test_a_console_that_waits_fails_at_once_when_its_emulator_hangs(tmp_path: Path) -> None:
    """Not after the time for the machine, and not as a machine that was too slow."""

    def machine(connection: socket.socket) -> None:
        connection.sendall(b"Loading Linux\r\n")
        wait_for_the_end(connection)

    with console_of(tmp_path, machine) as console:
        console.wait_for("Linux")
        threading.Timer(0.1, console.hang, ["the emulator hung: QEMU, process 1: it is deaf"]).start()
        began = time.monotonic()
        expected = "the emulator hung: QEMU, process 1: it is deaf; the console said last:\nLoading Linux\n"
        with pytest.raises(EmulatorHung, match=re.escape(expected)):
            console.wait_for("login:", 100)
        assert time.monotonic() - began < 50
        with pytest.raises(EmulatorHung):
            console.wait_for("login:")


def test_a_line_that_the_prompting_program_discards_is_typed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sulogin flushes its input after it has printed its prompt."""
    monkeypatch.setattr("tests.boot.hardware.machine._LOST_S", 0.1)

    def machine(connection: socket.socket) -> None:
        connection.sendall(b"Press Enter for maintenance\r\n(or press Control-D to continue): ")
        assert connection.recv(1) == b"\r"  # lost
        assert connection.recv(1) == b"\r"
        connection.sendall(b"\r\nsh-5.2# ")
        wait_for_the_end(connection)

    with console_of(tmp_path, machine) as console:
        assert console.answer(r"to continue\): ", "", "# ")[0] == "# "


def test_nothing_is_typed_again_when_the_prompt_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second line would answer the next question."""
    monkeypatch.setattr("tests.boot.hardware.machine._LOST_S", 0.1)
    monkeypatch.setattr("tests.boot.hardware.machine.PATIENCE", 0.5)
    typed = []

    def machine(connection: socket.socket) -> None:
        connection.sendall(b"password: ")
        typed.append(connection.recv(100))
        connection.sendall(b"\r\nwait\r\n")
        while more := connection.recv(100):
            typed.append(more)

    with console_of(tmp_path, machine) as console, pytest.raises(NotSeen):
        console.answer("password: ", "secret", "# ")
    assert typed == [b"secret\r"]
