"""The error that ends a server of several workers: each may have it, and one of them reports it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from dataclasses import replace

from tang_attest.daemon.supervisor import ENDS_SERVICE, WorkerSlot
from tang_attest.errors import TangAttestError


class LastWord:
    """Runs workers that are forked from this process, and calls *report* with their errors.

    An error with one of the codes *ending* ends the server at any time, every other one while it starts.
    """

    def __init__(self, report: Callable[[TangAttestError], None], ending: Collection[str]) -> None:
        self._report, self._ending, self._serving = report, ending, False
        self._receive, self._send = os.pipe()
        os.set_blocking(self._receive, False)
        os.write(self._send, b"1")

    def serving(self) -> None:
        """Note that every worker answers: the error of a later worker does not end the server."""
        self._serving = True

    def run(self, place: WorkerSlot, work: Callable[[WorkerSlot], None]) -> int:
        """Run *work* in a worker; return the process's exit code."""
        answers = self._serving

        def ready() -> None:
            nonlocal answers
            answers = True
            place.ready()

        try:
            work(replace(place, ready=ready))
        except TangAttestError as error:
            ends = error.code in self._ending
            if (answers and not ends) or self._take():
                self._report(error)
            return ENDS_SERVICE if ends else 1
        return 0

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self._receive)
        os.close(self._send)

    def _take(self) -> bool:
        """Return True in the first worker that asks.

        The supervisor ends the others by a signal when one ends; it is blocked, or the error would be lost.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            return bool(os.read(self._receive, 1))
        except BlockingIOError:
            return False
