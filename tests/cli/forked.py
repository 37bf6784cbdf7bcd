"""Started ``tang-attest`` programs for tests, without the half second of a processor that imports take.

:class:`Popen` and :func:`run` are those of :mod:`subprocess`, for a command line of :func:`command`. The program is a
process of its own with its own arguments, environment, descriptors and exit code, and a child of this process: it is a
fork of :mod:`tests.cli.zygote`, which has done the imports. ``/proc/PID/cmdline`` alone is the zygote's.

Start a program with :mod:`subprocess` where its start, or its limit on a database's time, is the subject.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_ROOT: Final = Path(__file__).parents[2]
#: prctl(2)
_PR_SET_CHILD_SUBREAPER: Final = 36
#: Variables that an interpreter or a library reads when it is loaded.
_READ_AT_LOAD: Final = ("LANG", "LC_", "LD_", "MALLOC_", "OPENSSL_", "PROMETHEUS_", "PYTHON", "SSL_")
#: SD_LISTEN_FDS_START
_FIRST_SOCKET: Final = 3
#: Arguments of :class:`subprocess.Popen` that the zygote does not know.
_UNKNOWN: Final = ("gid", "group", "extra_groups", "preexec_fn", "process_group", "shell", "umask", "user")


def command(*arguments: str | Path) -> list[str]:
    """The command line of ``tang-attest``."""
    return [sys.executable, "-m", "tang_attest", *map(str, arguments)]


class Popen(subprocess.Popen[Any]):
    """A started program.  One that the zygote cannot imitate is started by :mod:`subprocess` after all.

    A forked one gets *sockets* as a service manager passes them (sd_listen_fds(3)): from descriptor 3 on, and
    with its own id in LISTEN_PID. The caller's environment has LISTEN_FDS.
    """

    def __init__(self, arguments: list[str], *, sockets: Sequence[int] = (), **options: Any) -> None:
        self._forked = (
            arguments[:3] == command()
            and not any(options.get(name) for name in _UNKNOWN)
            and _read_at_load(options.get("env") or os.environ) == _read_at_load(os.environ)
        )
        assert self._forked or not sockets
        self._sockets = sockets
        self._session = bool(options.get("start_new_session"))
        super().__init__(arguments, **options)

    def _execute_child(self, *given: Any) -> None:
        """Start the program; *given* are the arguments of CPython's method of this name."""
        if not self._forked:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        arguments, _, _, _, passed, directory, environment, _, _, _, *pipes = given[:16]
        standard = [
            pipe if pipe != -1 else number for number, pipe in enumerate((pipes[0], pipes[3], pipes[5]))
        ]
        request = {
            "arguments": arguments[2:],
            "environment": dict(os.environ if environment is None else environment),
            "directory": os.fspath(directory or Path.cwd()),
            "numbers": [0, 1, 2, *passed, *range(_FIRST_SOCKET, _FIRST_SOCKET + len(self._sockets))],
            "session": self._session,
            "listens": bool(self._sockets),
        }
        self.pid = _zygote().fork(json.dumps(request).encode(), [*standard, *passed, *self._sockets])
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def run(
    arguments: list[str], *, timeout: float, sent: str | bytes | None = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as :func:`subprocess.run` does with ``capture_output``; *sent* is its standard input."""
    if sent is not None:
        options["stdin"] = subprocess.PIPE
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    with Popen(arguments, **options) as process:
        try:
            out, err = process.communicate(sent, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


class _Zygote:
    """The process that forks; it ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.zygote", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=_ROOT,
            )
        atexit.register(self._end)

    def fork(self, request: bytes, descriptors: list[int]) -> int:
        """Return the id of a new child of this process.  For a moment, this process adopts orphans of its children."""
        with self._lock:
            _adopt_orphans(yes=True)
            try:
                socket.send_fds(self._requests, [request], descriptors)
                answer = self._requests.recv(64)
            finally:
                _adopt_orphans(yes=False)
        assert answer, "the zygote ended"
        return int(answer)

    def _end(self) -> None:
        self._requests.close()
        self._process.wait()


_started: dict[int, _Zygote] = {}


def _zygote() -> _Zygote:
    """This process's own."""
    if os.getpid() not in _started:
        _started[os.getpid()] = _Zygote()
    return _started[os.getpid()]


def _adopt_orphans(*, yes: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _read_at_load(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_LOAD)}
