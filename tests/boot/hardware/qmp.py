"""QEMU's control socket (QMP): one command at a time, and its answer."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

#: Seconds for QEMU to open a socket, on a busy machine.
_START_S: Final = 60.0


class Qmp:
    """A session; a context manager.

    *timeout* are the seconds for one answer, after which :exc:`TimeoutError` is raised.  A QEMU that ends
    raises :exc:`ConnectionError`; one that opens no socket in *start* seconds, another :exc:`OSError`.
    """

    def __init__(self, path: Path, timeout: float | None = None, *, start: float = _START_S) -> None:
        self._socket = connect(path, start)
        self._socket.settimeout(timeout)
        self._rest = b""

    def __enter__(self) -> Self:
        try:
            self._line()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def execute(self, name: str, **arguments: object) -> Any:
        """Return the answer to the command *name*; events before it are passed over."""
        command = {"execute": name} | ({"arguments": arguments} if arguments else {})
        self._socket.sendall(json.dumps(command).encode() + b"\n")
        while "return" not in (answer := json.loads(self._line())):
            assert "error" not in answer, answer
        return answer["return"]

    def _line(self) -> bytes:
        while b"\n" not in self._rest:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionResetError("QEMU closed its control socket")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def connect(path: Path, start: float = _START_S) -> socket.socket:
    """Return a connection to QEMU's socket at *path*, which QEMU opens in *start* seconds."""
    deadline = time.monotonic() + start
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return connection
