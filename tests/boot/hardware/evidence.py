"""The state of a QEMU and of the machine in it, for a failure to show: threads, processors, and Linux' own words.

A machine that is too slow, one that waits for an interrupt and one that spins look alike on the console.
Here they differ: the threads of QEMU have used time or not, the processors are halted or at one place, and Linux names
the function of each processor and the processes that wait.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tests.boot.hardware.qmp import Qmp

#: Looks at the processors, and seconds between two.
_LOOKS: Final = 4
_INTERVAL_S: Final = 0.5
#: Seconds for one answer of QEMU.
_ANSWER_S: Final = 20.0
#: Seconds before each key and after it: the serial port of a PC notes a break beside its queue, not in it.
_PAUSE_S: Final = 2.0
#: Linux' Documentation/admin-guide/sysrq.rst: all messages, a backtrace of each processor, the waiting processes.
_KEYS: Final = "9lw"
#: The name that QEMU gives its first serial port.
_SERIAL: Final = "serial0"
_PC: Final = re.compile(r"(?:[RE]IP|PC)=([0-9a-f]{8,16})")
#: Floating point and vectors, which say nothing about a hang.
_VECTORS: Final = re.compile(r"(?m)^(?:FCW|FPR|MMX|XMM|YMM|Q\d).*\n?|\bQ\d\d=.*$")


def examine(
    pid: int, qmp: Path, press: Callable[[str], None], *, answer: float = _ANSWER_S, pause: float = _PAUSE_S
) -> str:
    """Return the state of the QEMU *pid* with a free control socket at *qmp*, in lines.

    *press* sends a key to the first serial port; the console has Linux' answers then.
    A part that cannot be had is named, and the others are returned: this never raises for a QEMU that hangs or ends.
    """
    lines: list[str] = []
    before = _threads(pid)
    try:
        with Qmp(qmp, answer, start=0) as session:
            lines += _processors(session)
            _press_keys(session, press, pause)
    except TimeoutError:
        lines.append(f"QEMU answered nothing on its control socket for {answer:.0f} s")
        time.sleep(_INTERVAL_S)
    except (OSError, AssertionError) as error:
        lines.append(f"QEMU told no more: {error}")
    lines.append(f"threads of QEMU, process {pid}, with the seconds that they ran meanwhile:")
    for thread, (used, text) in _threads(pid).items():
        lines.append(f"  {thread} {text} {used - before.get(thread, (0.0, ''))[0]:.2f}")
    return "\n".join(lines)


def _processors(session: Qmp) -> list[str]:
    """Return the run state, the program counters of each look, and the registers of the last."""
    lines = [f"QEMU's status: {session.execute('query-status')['status']}"]
    threads = [processor["thread-id"] for processor in session.execute("query-cpus-fast")]
    lines.append(f"threads of the processors: {threads}")
    registers = ""
    for look in range(_LOOKS):
        if look:
            time.sleep(_INTERVAL_S)
        # A processor that runs translated code notes its place when it leaves that.
        session.execute("stop")
        registers = _command(session, "info registers -a")
        session.execute("cont")
        halted = " ".join(re.findall(r"HLT=\d", registers))
        lines.append(f"program counters: {' '.join(_PC.findall(registers))} {halted}".rstrip())
    lines += _command(session, "info jit").replace("\r", "").splitlines()
    return [*lines, *_VECTORS.sub("", registers.replace("\r", "")).splitlines()]


def _command(session: Qmp, line: str) -> str:
    answer: Any = session.execute("human-monitor-command", **{"command-line": line})
    return str(answer)


def _press_keys(session: Qmp, press: Callable[[str], None], pause: float) -> None:
    """Send each key after a break, as Linux takes its magic keys from a serial console."""
    for key in _KEYS:
        session.execute("chardev-send-break", id=_SERIAL)
        time.sleep(pause)
        press(key)
        time.sleep(pause)


def _threads(pid: int) -> dict[int, tuple[float, str]]:
    """Return processor seconds, name, state and place in the host's kernel of each thread; nothing if the process is gone."""
    found = {}
    for task in sorted(Path(f"/proc/{pid}/task").glob("*"), key=lambda path: int(path.name)):
        with suppress(OSError):
            used = int((task / "schedstat").read_text().split()[0]) / 1e9
            name = (task / "comm").read_text().strip()
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            found[int(task.name)] = (used, f"{name} {state} {(task / 'wchan').read_text()}")
    return found
