"""Cuts a TPM's reset line: a machine that is started again with it keeps its PCRs, as a Raspberry Pi's may.

QEMU resets its TPM through swtpm's control channel (CMD_INIT).  This sits in the middle of that channel and lets the
first CMD_INIT pass; the later ones, and the stop before them, are answered with success and go no further.

Each start is a QEMU of its own.  In a QEMU that reboots, the firmware overwrites memory in which the emulator still
has translated code of the system before, byte by byte and for many minutes on a busy host (QEMU 7.2).
"""

from __future__ import annotations

import array
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

#: swtpm/tpm_ioctl.h: the commands of the control channel, and what follows the number.
_CMD_INIT: Final = 2
_CMD_SHUTDOWN: Final = 3
_CMD_STOP: Final = 14
_CMD_SET_BUFFERSIZE: Final = 17
_SUCCESS: Final = struct.pack(">I", 0)


class ResetLine:
    """A context manager; its value is the path of the socket for QEMU."""

    def __init__(self, path: Path, swtpm: Path) -> None:
        self.path, self._swtpm = path, swtpm
        self.swallowed = 0
        self._started = False

    def __enter__(self) -> Path:
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        threading.Thread(target=self._serve, daemon=True).start()
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()

    def _serve(self: Self) -> None:
        with socket.socket(socket.AF_UNIX) as swtpm:
            swtpm.connect(str(self._swtpm))
            while True:
                try:
                    qemu, _ = self._listener.accept()
                except OSError:
                    return
                with qemu, suppress(ConnectionError):
                    self._pass_on(qemu, swtpm)

    def _pass_on(self, qemu: socket.socket, swtpm: socket.socket) -> None:
        while True:
            request, descriptors = _receive(qemu)
            if not request:
                return
            qemu.sendall(self._answer(swtpm, request, descriptors))

    def _answer(self, swtpm: socket.socket, request: bytes, descriptors: array.array[int]) -> bytes:
        (command,) = struct.unpack(">I", request[:4])
        if self._started and command in {_CMD_INIT, _CMD_STOP, _CMD_SHUTDOWN}:
            self.swallowed += 1
            return _SUCCESS
        if command == _CMD_INIT:
            self._started = True
        if self._started and command == _CMD_SET_BUFFERSIZE:
            # A running TPM refuses a size, with an answer shorter than QEMU waits for; zero only asks for it.
            request = struct.pack(">II", _CMD_SET_BUFFERSIZE, 0)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)] if descriptors else []
        swtpm.sendmsg([request], rights)
        return swtpm.recv(65536)


def _receive(connection: socket.socket) -> tuple[bytes, array.array[int]]:
    """A request and the file descriptors with it; QEMU sends each request with one call."""
    descriptors: array.array[int] = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(4 * descriptors.itemsize))
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    return data, descriptors
