"""Worker processes: started, replaced when they die, exchanged for new ones on SIGHUP, ended on SIGTERM.

Rules of this module:

* The supervisor holds the listening sockets and nothing else that matters: no database, no keys, no threads.
  A connection that waits in a socket's queue is therefore not lost when the worker that would take it dies.
* A worker of the first generation that ends before it answers ends the whole service, with its exit code; it
  has logged the reason.  So does one with the exit code :data:`ENDS_SERVICE` at any time.  Another is started
  again, after a pause that doubles each time.
* A reload starts a whole new generation first, and ends the old one only when every new worker answers.
* Events coincide: one event may handle another of the same moment, and a signal during a reload waits for its
  end.  So an event belongs to a worker, never to the number of a descriptor.
"""

from __future__ import annotations

import os
import selectors
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from tang_attest.daemon.notify import Notifier

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
#: Seconds between the death of a worker and the next try: doubled from the first to the last.
_BACKOFF_S: Final = (0.1, 5.0)

#: Exit code of a worker that no other worker could replace (EX_CONFIG of sysexits.h).
ENDS_SERVICE: Final = 78

_log = structlog.get_logger("supervisor")


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """A worker's number, the call that reports that it answers, and a descriptor that closes with the
    supervisor.
    """

    index: int
    ready: Callable[[], None]
    life: int


#: Runs a worker, and returns its exit code.  An exception from it is a defect.
Work = Callable[[WorkerSlot], int]


@dataclass(slots=True)
class _Worker:
    index: int
    generation: int
    channel: int
    ready: bool = False
    stopping: bool = False


@dataclass(slots=True)
class Supervisor:
    """Runs the work that *prepare* returns in *count* processes.

    *prepare* reads the settings and returns the work; it is called again for a reload, where raising keeps
    the old generation.  *started* is called once, when every worker of the first generation answers.
    *stopping* is called before the workers are ended: it closes the supervisor's sockets, or clients would
    wait in them.
    """

    count: int
    prepare: Callable[[], Work]
    started: Callable[[], None]
    stopping: Callable[[], None]
    notifier: Notifier
    _works: dict[int, Work] = field(init=False, default_factory=dict)
    _workers: dict[int, _Worker] = field(init=False, default_factory=dict)
    _generation: int = field(init=False, default=0)
    _serving: bool = field(init=False, default=False)
    _stopping: bool = field(init=False, default=False)
    _reload_again: bool = field(init=False, default=False)
    _exit_code: int = field(init=False, default=0)
    _restarts: list[tuple[float, int]] = field(init=False, default_factory=list)
    _backoff: float = field(init=False, default=_BACKOFF_S[0])
    _selector: selectors.BaseSelector = field(init=False)
    _life: tuple[int, int] = field(init=False)
    _wakeup: tuple[int, int] = field(init=False)

    def run(self) -> int:
        """Supervise until the end; return the exit code.  Raises the errors of the first *prepare*."""
        self._works[0] = self.prepare()
        self._selector = selectors.DefaultSelector()
        self._life, self._wakeup = os.pipe(), os.pipe()
        for end in self._wakeup:
            os.set_blocking(end, False)
        self._selector.register(self._wakeup[0], selectors.EVENT_READ)
        signal.set_wakeup_fd(self._wakeup[1], warn_on_full_buffer=False)
        # Not ignored: the wakeup descriptor carries the signal's number.
        before = [(number, signal.signal(number, lambda *_: None)) for number in _SIGNALS]
        try:
            for index in range(self.count):
                self._start(index)
            while self._workers or self._restarts:
                self._turn()
        except BaseException:
            self._stop()  # they end by themselves; the caller gets the error now
            raise
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before:
                signal.signal(number, handler)
        return self._exit_code

    # --- the loop -------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        due = min((at for at, _ in self._restarts), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic())
        for key, _ in self._selector.select(timeout):
            if key.fd == self._wakeup[0]:
                # A hundred requests for a reload in one moment are one reload.
                for number in dict.fromkeys(os.read(key.fd, 512)):
                    self._signal(number)
            else:
                self._heard(key.data)
        now = time.monotonic()
        indexes = [index for at, index in self._restarts if at <= now]
        self._restarts = [(at, index) for at, index in self._restarts if at > now]
        for index in indexes:
            self._start(index)

    def _signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGCHLD:
            self._reap()

    def _heard(self, worker: _Worker) -> None:
        """Note that *worker* answers requests now; or that it is gone, which SIGCHLD reports, perhaps
        earlier.
        """
        if worker.channel < 0:
            return
        worker.ready = bool(os.read(worker.channel, 1))
        self._close_channel(worker)
        if worker.ready:
            self._when_ready()

    def _close_channel(self, worker: _Worker) -> None:
        if worker.channel >= 0:
            self._selector.unregister(worker.channel)
            os.close(worker.channel)
            worker.channel = -1

    def _when_ready(self) -> None:
        if self._stopping:
            return
        current = [worker for worker in self._workers.values() if worker.generation == self._generation]
        if len(current) < self.count or not all(worker.ready for worker in current):
            return
        self._backoff = _BACKOFF_S[0]
        for pid, worker in self._workers.items():
            if worker.generation < self._generation:
                self._end(pid, worker)
        if not self._serving:
            self._serving = True
            self.started()
        self.notifier.ready()
        self._reload_once_more()

    # --- workers --------------------------------------------------------------------------------------------

    def _start(self, index: int) -> None:
        """Fork worker *index* of this generation.

        Signals are blocked meanwhile: in a new process they would reach the supervisor's handlers, which
        write into the wakeup pipe of both processes, so that a worker's end would end the service.
        """
        receive, send = os.pipe()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(send)
            worker = self._workers[pid] = _Worker(index, self._generation, receive)
            self._selector.register(receive, selectors.EVENT_READ, worker)
            return
        code = 1
        try:
            self._forget(receive)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            code = self._works[self._generation](WorkerSlot(index, lambda: _say_ready(send), self._life[0]))
        except BaseException:  # noqa: BLE001 - nothing of the supervisor's own may run on in a worker
            _log.exception("defect")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _forget(self, *descriptors: int) -> None:
        """Close the supervisor's descriptors in a new worker, and restore the signals."""
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self._selector.close()
        channels = [worker.channel for worker in self._workers.values() if worker.channel >= 0]
        for descriptor in (*descriptors, *channels, *self._wakeup, self._life[1]):
            os.close(descriptor)

    def _reap(self) -> None:
        for pid in tuple(self._workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._ended(self._workers.pop(pid), pid, os.waitstatus_to_exitcode(status))

    def _ended(self, worker: _Worker, pid: int, code: int) -> None:
        self._close_channel(worker)
        if worker.stopping or self._stopping:
            return
        if not self._serving or code == ENDS_SERVICE:
            self._exit_code = code if 0 < code != ENDS_SERVICE else 1
            self._stop()
            return
        if not worker.ready and self._others_serve(worker):
            _log.error("reload-failed", exit_code=code)
            self._fall_back(worker.generation)
            return
        _log.error("worker-died", pid=pid, exit_code=code)
        if worker.generation == self._generation:
            self._restarts.append((time.monotonic() + self._backoff, worker.index))
            self._backoff = min(2 * self._backoff, _BACKOFF_S[1])

    def _others_serve(self, worker: _Worker) -> bool:
        return any(
            other.generation < worker.generation and other.ready and not other.stopping
            for other in self._workers.values()
        )

    # --- reload and stop ------------------------------------------------------------------------------------

    def _reload(self) -> None:
        if not self._serving or self._stopping:
            return
        if self._is_reloading():
            self._reload_again = True
            return
        try:
            work = self.prepare()
        except Exception as error:  # noqa: BLE001 - what is served goes on, whatever the new settings are
            _log.error("reload-failed", reason=str(error))
            return
        self.notifier.reloading()
        self._generation += 1
        self._works[self._generation] = work
        self._restarts.clear()
        for index in range(self.count):
            self._start(index)

    def _is_reloading(self) -> bool:
        """Return True from the start of a generation until all of it answers, or it is given up."""
        return any(
            worker.generation < self._generation and not worker.stopping for worker in self._workers.values()
        )

    def _reload_once_more(self) -> None:
        """Reload again if a reload was requested during the last one: settings may have changed again."""
        if self._reload_again:
            self._reload_again = False
            self._reload()

    def _fall_back(self, generation: int) -> None:
        """End a new generation that does not answer; the one before goes on."""
        for pid, worker in self._workers.items():
            if worker.generation == generation:
                self._end(pid, worker)
        before = [worker for worker in self._workers.values() if not worker.stopping]
        self._generation = max(worker.generation for worker in before)
        left = {worker.index for worker in before if worker.generation == self._generation}
        self._restarts = [(time.monotonic(), index) for index in range(self.count) if index not in left]
        self.notifier.ready()
        self._reload_once_more()

    def _stop(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._restarts.clear()
        self.notifier.stopping()
        self.stopping()
        for pid, worker in self._workers.items():
            self._end(pid, worker)

    def _end(self, pid: int, worker: _Worker) -> None:
        worker.stopping = True
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _say_ready(channel: int) -> None:
    with suppress(OSError):  # the supervisor is gone, and the worker learns that from its life line
        os.write(channel, b"R")
    os.close(channel)
