"""A wait in vain shows the state of the machine: its processors, QEMU's threads, and Linux' answers to magic keys."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.boot.hardware.bare import HALT, SPIN, console_of, running, wait_for_the_end
from tests.boot.hardware.evidence import examine
from tests.boot.hardware.machine import FASTER, TELLING, Machine, Network, NotSeen
from tests.boot.hardware.pulse import EmulatorHung
from tests.boot.images.tree import Variant, build

ANSWER_S = 0.3


def serial(directory: Path) -> tuple[str, ...]:
    """QEMU's options for a serial port that nobody reads."""
    return ("-serial", f"unix:{directory / 'serial'},server=on,wait=off")


def ignore(_key: str) -> None:
    """Press nothing."""


def test_a_processor_that_spins_is_told_from_one_that_waits(tmp_path: Path) -> None:
    """By the place of each processor at several looks, whether it is halted, and the time that its thread used."""
    pressed: list[str] = []
    with running(tmp_path, SPIN, "-smp", "2", *serial(tmp_path)) as (process, qmp):
        found = examine(process.pid, qmp, pressed.append, pause=0)
    assert "QEMU's status: running" in found
    looks = re.findall(r"program counters: ([0-9a-f]{8}) [0-9a-f]{8} HLT=0 HLT=1\n", found)
    assert looks == ["0000fff0"] * 4
    assert "EFER=" in found
    assert "XMM00" not in found
    used = dict(re.findall(r"\n  \d+ (CPU \d)/TCG [RS] \S+ ([0-9.]+)", found))
    assert float(used["CPU 0"]) > float(used["CPU 1"])
    assert pressed == list("9lw")


def test_a_halted_processor_is_shown_as_halted(tmp_path: Path) -> None:
    """Nothing wakes it up, and QEMU answers."""
    with running(tmp_path, HALT, *serial(tmp_path)) as (process, qmp):
        found = examine(process.pid, qmp, ignore, pause=0)
    assert "HLT=1" in found


def test_an_emulator_that_is_deaf_shows_the_places_of_its_threads(tmp_path: Path) -> None:
    """The host's kernel knows them; QEMU itself is given some seconds."""
    with running(tmp_path, SPIN, *serial(tmp_path)) as (process, qmp):
        os.kill(process.pid, signal.SIGSTOP)
        found = examine(process.pid, qmp, ignore, answer=ANSWER_S)
    assert found.startswith("QEMU answered nothing on its control socket for 0 s\n")
    assert re.search(rf"\n  {process.pid} qemu-system-x86 T \S+ 0\.00$", found, re.MULTILINE)


def test_an_emulator_that_ended_is_no_second_failure(tmp_path: Path) -> None:
    """The first one is what the test is about."""
    with running(tmp_path, SPIN, *serial(tmp_path)) as (process, qmp):
        process.kill()
        process.wait()
        found = examine(process.pid, qmp, ignore, answer=ANSWER_S)
    assert found.startswith("QEMU told no more: ")


def test_a_wait_in_vain_shows_what_was_found(tmp_path: Path) -> None:
    """Answers that the machine gives meanwhile are shown, too."""

    def machine(connection: socket.socket) -> None:
        assert connection.recv(1) == b"l"
        connection.sendall(b"CPU0: in the loop\r\n")
        wait_for_the_end(connection)

    with console_of(tmp_path, machine) as console:

        def look() -> str:
            console.press("l")
            console.wait_for("in the loop")
            return "CPU0 spins"

        console.examine = look
        expected = "no 'login:' in 0 s; the console said last:\nCPU0: in the loop\n\nCPU0 spins"
        with pytest.raises(NotSeen, match=f"^{re.escape(expected)}$"):
            console.wait_for("login:", ANSWER_S)


def test_a_machine_that_went_off_is_not_examined(tmp_path: Path) -> None:
    """There is nothing to see any more."""
    with console_of(tmp_path, lambda connection: connection.sendall(b"bye\r\n")) as console:
        console.examine = lambda: pytest.fail("it was examined")
        with pytest.raises(
            NotSeen, match="no 'login:' before the machine went off; the console said last:\nbye"
        ):
            console.wait_for("login:", 60)
        console.goes_off_without("login:", 60)


def test_what_must_not_come_is_waited_for_without_examining(tmp_path: Path) -> None:
    """A machine in which a test goes on gets no keys; one that goes on where it should end is examined."""

    def machine(connection: socket.socket) -> None:
        connection.sendall(b"login:\r\n")
        wait_for_the_end(connection)

    with console_of(tmp_path, machine) as console:
        console.examine = lambda: pytest.fail("it was examined")
        console.stays_without("emergency", ANSWER_S)
        with pytest.raises(AssertionError, match="the console said 'login:'"):
            console.stays_without("login:", 60)
        console.examine = lambda: "CPU0 is halted"
        with pytest.raises(NotSeen, match=r"the machine did not go off in 0 s(?s:.*)CPU0 is halted"):
            console.goes_off_without("emergency", ANSWER_S)
        threading.Timer(0.1, console.hang, ["the emulator hung: it is deaf"]).start()
        with pytest.raises(EmulatorHung, match=r"^the emulator hung: it is deaf; "):
            console.stays_without("emergency", 60)


def test_a_prompt_that_comes_late_is_no_output(tmp_path: Path) -> None:
    """A busy shell prompts after the terminal has shown the command."""

    def machine(connection: socket.socket) -> None:
        typed = connection.recv(1000).decode()
        marker = "".join(re.findall(r"'([^']*)'", typed))
        connection.sendall(f"{typed}\nguest# SystemdOptions\r\nSMBIOS\r\n{marker} 0\r\n".encode())
        wait_for_the_end(connection)

    with console_of(tmp_path, machine) as console:
        assert console.shell("cat unmeasured") == "SystemdOptions\nSMBIOS\n"


@pytest.mark.boot
@pytest.mark.timeout(2400)
def test_linux_names_the_place_of_each_processor(tmp_path: Path) -> None:
    """Asked by the serial console of a machine whose only process waits for a key."""
    built = build(Variant())
    line = f"console=ttyS0 no_timer_check {FASTER} {TELLING} rdinit=/usr/bin/cat"
    machine = Machine(tmp_path, built.kernel, built.initrd, [], Network(cards=0), has_tpm=False, command_line=line)  # fmt: skip
    with machine.boot() as console:
        console.wait_for("Run /usr/bin/cat as init process")
        found = console.examine()
        assert re.search(r"program counters: [0-9a-f]{16}", found)
        assert "CPU 0/TCG" in found
        console.wait_for("sysrq: Show backtrace of all active CPUs")
        console.wait_for("sysrq: Show Blocked State")
