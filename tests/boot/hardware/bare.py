"""Emulators that boot nothing, and consoles without an emulator: seconds instead of a boot."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.boot.hardware.machine import Console
from tests.boot.hardware.qmp import connect

#: Code at the reset of a processor: for ever the same instruction, or a halt that no interrupt ends.
SPIN: Final = b"\xeb\xfe"
HALT: Final = b"\xfa\xf4\xeb\xfd"


@contextmanager
def running(directory: Path, code: bytes, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Yield a started QEMU whose first processor runs *code*, and its control socket."""
    firmware, qmp = directory / "firmware", directory / "qmp"
    firmware.write_bytes(bytes(65536 - 16) + code.ljust(16, b"\0"))
    process = subprocess.Popen(
        [
            *("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-m", "8"),
            *("-name", "bare,debug-threads=on"),
            *("-accel", "tcg", "-bios", firmware, "-qmp", f"unix:{qmp},server=on,wait=off"),
            *options,
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        connect(qmp).close()
        yield process, qmp
    finally:
        process.kill()
        process.wait()


@contextmanager
def console_of(directory: Path, machine: Callable[[socket.socket], None]) -> Iterator[Console]:
    """A console whose other end is *machine*, a function."""
    path = directory / "serial"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                machine(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        console = Console(path, directory / "log")
        try:
            yield console
        finally:
            console.close()
            thread.join()


def wait_for_the_end(connection: socket.socket) -> None:
    """Read until the console closes."""
    while connection.recv(100):
        pass
