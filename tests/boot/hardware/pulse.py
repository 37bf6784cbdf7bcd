"""The pulse of an emulator: a QEMU that hangs is found and named, and not taken for a machine that is slow.

An emulator hangs when it answers nothing on its control socket, or when no processor of its machine runs any more.
A machine that waits for input runs its timers now and then; one that is stuck in a loop uses processor time.  Neither hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.boot.hardware.qmp import Qmp

#: Seconds without a sign of life.  A QEMU that lives gives one every second, even beside others.
PATIENCE_S: Final = 60.0
_INTERVAL_S: Final = 5.0
#: Run states of QEMU in which the machine runs, is about to end, or is looked at for a failure (evidence.py).
_RUNNING: Final = frozenset({"running", "shutdown", "paused"})


class EmulatorHung(AssertionError):
    """The emulator stopped, not the machine in it."""


class Pulse:
    """A look at QEMU every *interval* seconds, from a thread; a context manager.

    *report* gets one sentence, once, when the process *pid* with the control socket *qmp* gave no sign of life for
    *patience* seconds, or says that it stopped its machine (its disk is full).  A QEMU that ends is not reported.
    """

    def __init__(
        self,
        pid: int,
        qmp: Path,
        report: Callable[[str], None],
        *,
        patience: float = PATIENCE_S,
        interval: float = _INTERVAL_S,
    ) -> None:
        self._pid, self._qmp, self._report = pid, qmp, report
        self._patience, self._interval = patience, interval
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()

    def _run(self) -> None:
        try:
            reason = self._watch()
        except TimeoutError:
            reason = f"it answered nothing on its control socket for {self._patience:.0f} s"
        except OSError:  # it ended
            return
        if reason and not self._ended.is_set():
            self._report(f"the emulator hung: QEMU, process {self._pid}: {reason}")

    def _watch(self) -> str:
        """Return the sign of a hang; empty when the block ends before."""
        with Qmp(self._qmp, self._patience) as qmp:
            processors = [processor["thread-id"] for processor in qmp.execute("query-cpus-fast")]
            used, since = -1, time.monotonic()
            while not self._ended.wait(self._interval):
                status = qmp.execute("query-status")["status"]
                if status not in _RUNNING:
                    return f"it stopped its machine ({status})"
                before, used = used, sum(map(self._nanoseconds, processors))
                if used != before:
                    since = time.monotonic()
                elif time.monotonic() - since >= self._patience:
                    return f"no processor of its machine ran for {self._patience:.0f} s"
        return ""

    def _nanoseconds(self, thread: int) -> int:
        """Processor time of a thread (Documentation/scheduler/sched-stats.rst)."""
        return int(Path(f"/proc/{self._pid}/task/{thread}/schedstat").read_text().split()[0])
