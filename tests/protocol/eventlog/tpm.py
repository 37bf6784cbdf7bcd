"""A TPM (swtpm) that is started the way firmware starts one, and extended event by event.

The raw command bytes are written here because the tpm2-tools' TCTI resets the locality to 0 by itself.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.protocol.eventlog.writer import SIZES
from tests.swtpm import end

_STARTUP, _PCR_READ, _PCR_EXTEND = 0x144, 0x17E, 0x182
_PASSWORD_SESSION = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)


class Tpm:
    """A connection to a TPM that has been started."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def command(self, code: int, body: bytes, tag: int = 0x8001) -> bytes:
        """Send one command; the response after its header.  The TPM must answer TPM_RC_SUCCESS."""
        self._connection.sendall(struct.pack(">HII", tag, 10 + len(body), code) + body)
        response = self._connection.recv(4096)
        assert response[6:10] == bytes(4), f"TPM answered {response.hex()}"
        return response[10:]

    def extend(self, pcr: int, digests: Mapping[int, bytes]) -> None:
        """TPM2_PCR_Extend of all banks at once; *digests* by TPM_ALG_ID."""
        values = b"".join(struct.pack(">H", algorithm) + digest for algorithm, digest in digests.items())
        body = struct.pack(">I", pcr) + _PASSWORD_SESSION + struct.pack(">I", len(digests)) + values
        self.command(_PCR_EXTEND, body, tag=0x8002)

    def read(self, pcr: int, algorithm: int) -> bytes:
        """TPM2_PCR_Read of one PCR."""
        selection = (1 << pcr).to_bytes(3, "little")
        return self.command(_PCR_READ, struct.pack(">IHB", 1, algorithm, 3) + selection)[-SIZES[algorithm] :]


@contextmanager
def started_tpm(directory: Path, *, locality: int | None, hcrtm: bytes | None) -> Iterator[Tpm]:
    """A fresh TPM after an optional H-CRTM sequence over *hcrtm*, and TPM2_Startup(CLEAR) from *locality*."""
    control, server = directory / "control", directory / "server"
    arguments = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--flags", "not-need-init"]
    arguments += ["--ctrl", f"type=unixio,path={control}", "--server", f"type=unixio,path={server}"]
    with subprocess.Popen(arguments, stderr=subprocess.DEVNULL) as process:
        try:
            _connected(control).close()
            if hcrtm is not None:
                subprocess.run(["swtpm_ioctl", "--unix", control, "-h", hcrtm.decode()], check=True)
            if locality is not None:
                subprocess.run(["swtpm_ioctl", "--unix", control, "-l", str(locality)], check=True)
            with _connected(server) as connection:
                tpm = Tpm(connection)
                tpm.command(_STARTUP, bytes(2))
                yield tpm
        finally:
            end(process)


def _connected(path: Path) -> socket.socket:
    """A connection to the socket *path*, which appears some time before anybody listens on it."""
    deadline = time.monotonic() + 120
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            assert time.monotonic() < deadline, "swtpm did not start"
            time.sleep(0.02)
        else:
            return connection
