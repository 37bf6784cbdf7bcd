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
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.boot.hardware.machine import Console, NotSeen
from tests.boot.hardware.pulse import EmulatorHung, Pulse

PATIENCE_S = 0.6
INTERVAL_S = 0.1
#: Code at the reset of a processor: for ever the same instruction, or a halt that no interrupt ends.
SPIN, HALT = b"\xeb\xfe", b"\xfa\xf4\xeb\xfd"

#: Return a started QEMU and the queue with the reports of its watch.
Start = Callable[..., tuple[subprocess.Popen[bytes], queue.Queue[str]]]


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Start]:
    """Start a QEMU whose processor runs the given code, and its watch."""
    with ExitStack() as stack:

        def start(code: bytes, *options: str) -> tuple[subprocess.Popen[bytes], queue.Queue[str]]:
            firmware, qmp = tmp_path / "firmware", tmp_path / "qmp"
            firmware.write_bytes(bytes(65536 - 16) + code.ljust(16, b"\0"))
            process = subprocess.Popen(
                [
                    *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-m", "8"),
                    *("-accel", "tcg", "-bios", firmware, "-qmp", f"unix:{qmp},server=on,wait=off"),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            reports: queue.Queue[str] = queue.Queue()
            stack.enter_context(
                Pulse(process.pid, qmp, reports.put, patience=PATIENCE_S, interval=INTERVAL_S)
            )
            return process, reports

        yield start


def test_an_emulator_that_answers_nothing_has_hung(emulator: Start) -> None:
    """A stopped process is as deaf as one whose main loop waits for a lock."""
    process, reports = emulator(SPIN)
    with pytest.raises(queue.Empty):  # its machine says nothing and never ends, but it runs
        reports.get(timeout=2 * PATIENCE_S)
    os.kill(process.pid, signal.SIGSTOP)
    assert reports.get(timeout=60) == (
        f"the emulator hung: QEMU, process {process.pid}: it answered nothing on its control socket for 1 s"
    )


def test_an_emulator_whose_processors_do_not_run_has_hung(emulator: Start) -> None:
    """QEMU answers, but nothing wakes the processor up."""
    _, reports = emulator(HALT)
    assert reports.get(timeout=60).endswith("no processor of its machine ran for 1 s")


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
        reports.get(timeout=2 * PATIENCE_S)


@contextmanager
def console_of(tmp_path: Path, machine: Callable[[socket.socket], None]) -> Iterator[Console]:
    """A console whose other end is *machine*, a function."""
    path = tmp_path / "serial"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                machine(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        console = Console(path, tmp_path / "log")
        try:
            yield console
        finally:
            console.close()
            thread.join()


def wait_for_the_end(connection: socket.socket) -> None:
    while connection.recv(100):
        pass


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
