"""Exchange keys in the server's own TPM: its thread, its queue, and its failures.

Rules of this module:

* A TPM does one thing at a time.  Its commands run in one thread of its own, so that neither the event loop
  nor exchanges with other keys wait for it.  A request that finds the queue full fails at once.
* A connection that failed is not used again.  The next use of the TPM makes a new one, so a TPM that was away
  needs no help when it is back.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, Final, TypeVar

from tang_attest.errors import Malformed, Unavailable
from tang_attest.keys.tpm import OwnerAuthNeeded, Tpm, TpmFailed, WrappedKey
from tang_attest.protocol.values.points import Curve, Point

#: Exchanges that may wait.  A TPM answers some ten in a second, and no client is asked to wait for longer
#: than that (tang_attest/service/unlock/exchanging.py).
QUEUE: Final = 64
#: Seconds for which an answer of the TPM says that it is well.
_WELL_FOR_S: Final = 1.0
#: Seconds that a regular end waits for a command that is under way.
_LEAVE_AFTER_S: Final = 5.0

_Result = TypeVar("_Result")


class ServerTpm(Executor):
    """The TPM at *tcti*, which may be ``None``: then every use raises ``server-tpm-unavailable``.

    *owner_auth* returns the password of its owner hierarchy; it is called only when the TPM wants one.
    Nothing is opened before it is used.  As an :class:`Executor` it runs submitted calls in its own thread,
    where :meth:`run` finds the connection; :meth:`run` may be called in any other thread too.
    """

    def __init__(
        self, tcti: str | None = None, owner_auth: Callable[[], bytes | None] = lambda: None
    ) -> None:
        self.tcti, self._owner_auth = tcti, owner_auth
        self._lock = threading.RLock()
        self._tpm: Tpm | None = None
        self._answered = float("-inf")
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUE)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, fn: Callable[..., _Result], /, *args: Any, **kwargs: Any) -> Future[_Result]:
        """Run it in the TPM's thread.  Raises ``server-tpm-unavailable`` when too many wait, or there is no
        TPM.
        """
        if self.tcti is None:
            raise _no_tpm()
        future: Future[_Result] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():  # else the caller has gone
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 - it is the future's
                    future.set_exception(error)

        try:
            self._queue.put_nowait(work)
        except queue.Full:
            raise Unavailable(
                "server-tpm-unavailable", f"{QUEUE} exchanges wait for the server's TPM already."
            ) from None
        self._start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Finish the command in progress and leave the TPM; a TPM that hangs is left alone."""
        if self._thread is None:
            with self._lock:
                self._leave()
            return
        with suppress(queue.Full):  # it hangs
            self._queue.put_nowait(None)
        if wait:
            self._thread.join(_LEAVE_AFTER_S)

    def run(self, use: Callable[[Tpm], _Result]) -> _Result:
        """Return the result of *use* with the connection.  Raises ``server-tpm-unavailable``, and the errors
        of *use*.

        An old connection may have outlived its TPM, which was reset: then *use* gets a second, new one.
        """
        if self.tcti is None:
            raise _no_tpm()
        with self._lock:
            if self._tpm is not None:
                with suppress(TpmFailed):
                    return self._use(self._tpm, use)
                self._leave()
            try:
                self._tpm = Tpm(self.tcti, self._owner_auth)
            except OwnerAuthNeeded as error:
                raise Unavailable(
                    "server-tpm-unavailable",
                    f"The server's TPM cannot be used, because {error}; owner_auth_file names a file with it.",
                ) from None
            except TpmFailed as error:
                raise _does_not_answer(error) from None
            try:
                return self._use(self._tpm, use)
            except TpmFailed as error:
                self._leave()
                if error.refused:
                    raise Unavailable("server-tpm-foreign", f"The server's TPM refused: {error}.") from None
                raise _does_not_answer(error) from None

    def create(self) -> WrappedKey:
        """Create an exchange key, on the strongest curve of the TPM."""
        return self.run(lambda tpm: tpm.create(tpm.strongest_curve()))

    def check(self) -> bytes:
        """The Name of the TPM's storage key, as soon as it has just answered.  Raises
        ``server-tpm-unavailable``.
        """

        def ask(tpm: Tpm) -> bytes:
            if time.monotonic() >= self._answered + _WELL_FOR_S:
                tpm.probe()
            return tpm.parent

        return self.run(ask)

    def _use(self, tpm: Tpm, use: Callable[[Tpm], _Result]) -> _Result:
        result = use(tpm)
        self._answered = time.monotonic()
        return result

    def _leave(self) -> None:
        tpm, self._tpm, self._answered = self._tpm, None, float("-inf")
        if tpm is not None:
            tpm.close()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                # A daemon: a TPM that hangs must not keep the process from its end.
                self._thread = threading.Thread(target=self._work, name="server-tpm", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
        with self._lock:
            self._leave()


class TpmExchangeKey:
    """An exchange key in the server's TPM (:class:`tang_attest.protocol.exchange.Multiplier`)."""

    __slots__ = ("_tpm", "_wrapped", "kid", "public")

    def __init__(self, wrapped: WrappedKey, tpm: ServerTpm) -> None:
        self._wrapped, self._tpm = wrapped, tpm
        self.public = wrapped.point()
        self.kid = self.public.thumbprint()

    def __repr__(self) -> str:
        return f"TpmExchangeKey({self.kid})"

    @property
    def curve(self) -> Curve:
        """The curve of the key."""
        return self.public.curve

    @property
    def place(self) -> ServerTpm:
        """Executor in which it multiplies."""
        return self._tpm

    def check(self) -> None:
        """Raise ``server-tpm-unavailable`` or ``server-tpm-foreign`` when the key cannot be used now."""
        self._require_own(self._tpm.check())

    def load(self) -> None:
        """Have the TPM load the key.  Raises as :meth:`check` does."""
        self._tpm.run(self._load)

    def multiply(self, x: Point) -> Point:
        """s·X.  Raises ``server-tpm-unavailable`` and ``server-tpm-foreign``; ``curve-mismatch``."""
        if x.curve is not self.curve:
            raise Malformed("curve-mismatch", f"X is on {x.curve.name}, the key on {self.curve.name}.")
        coordinates = self._tpm.run(lambda tpm: self._zgen(tpm, x))
        try:
            return Point(self.curve, *coordinates)
        except Malformed:
            # A faulty computation may reveal something about the key.
            raise Unavailable(
                "server-tpm-unavailable", f"The server's TPM gave no point of {self.curve.name}."
            ) from None

    def _zgen(self, tpm: Tpm, x: Point) -> tuple[int, int]:
        self._require_own(tpm.parent)
        return tpm.zgen(self._wrapped, x)

    def _load(self, tpm: Tpm) -> None:
        self._require_own(tpm.parent)
        tpm.load(self._wrapped)

    def _require_own(self, parent: bytes) -> None:
        # The parent's Name was encrypted with the key, and the session is salted to the key with that Name:
        # so this also detects an interposer between this server and its TPM.
        if parent != self._wrapped.parent:
            raise Unavailable(
                "server-tpm-foreign",
                "The key was made in another TPM than the server's, or that was cleared.",
            )


def _does_not_answer(error: TpmFailed) -> Unavailable:
    return Unavailable("server-tpm-unavailable", f"The server's TPM does not answer: {error}.")


def _no_tpm() -> Unavailable:
    return Unavailable(
        "server-tpm-unavailable", "The key lives in a TPM, and the setting server_tpm names none."
    )
