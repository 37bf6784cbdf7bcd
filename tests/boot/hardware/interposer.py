"""Somebody on the wires of the TPM: everything passes but the cap.

QEMU gives swtpm one end of a socket pair for the TPM's commands (CMD_SET_DATAFD on the control channel).  This gives swtpm
another one, and looks at each command on its way.  TPM2_PCR_Event for the cap PCR, and TPM2_EventSequenceComplete, which is what tpm2 sends
when it reads a pipe, are answered with TPM_RC_FAILURE.
"""

from __future__ import annotations

import array
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.boot.hardware.reset_line import ResetLine

#: swtpm/tpm_ioctl.h
_CMD_SET_DATAFD: Final = 16
#: TPM 2.0 part 2: TPM_ST_NO_SESSIONS, TPM_RC_FAILURE, TPM_CC_PCR_Event and TPM_CC_EventSequenceComplete
_FAILURE: Final = struct.pack(">HII", 0x8001, 10, 0x101)
_EVENTS: Final = frozenset({0x13C, 0x185})


class Interposer(ResetLine):
    """A context manager; its value is the path of the control socket for QEMU."""

    def __init__(self, path: Path, swtpm: Path, pcr: int = 15) -> None:
        super().__init__(path, swtpm)
        self.refused = 0
        self._pcr = pcr

    def _answer(self, swtpm: socket.socket, request: bytes, descriptors: array.array[int]) -> bytes:
        (command,) = struct.unpack(">I", request[:4])
        if command == _CMD_SET_DATAFD and descriptors:
            ours, theirs = socket.socketpair()
            threading.Thread(
                target=self._commands, args=(socket.socket(fileno=descriptors[0]), ours), daemon=True
            ).start()
            with theirs:
                return super()._answer(swtpm, request, array.array("i", [theirs.fileno()]))
        return super()._answer(swtpm, request, descriptors)

    def _commands(self, qemu: socket.socket, swtpm: socket.socket) -> None:
        """Pass commands and answers on, one at a time, as a TPM takes them."""
        with qemu, swtpm, suppress(OSError):
            while command := _whole(qemu):
                code, handle = struct.unpack(">II", (command + bytes(4))[6:14])
                if code in _EVENTS and handle == self._pcr:
                    self.refused += 1
                    qemu.sendall(_FAILURE)
                    continue
                swtpm.sendall(command)
                qemu.sendall(_whole(swtpm))


def _whole(connection: socket.socket) -> bytes:
    """A command or an answer; its header says how long it is."""
    data = b""
    while len(data) < 10 or len(data) < struct.unpack(">I", data[2:6])[0]:
        part = connection.recv(4096)
        if not part:
            return b""
        data += part
    return data
