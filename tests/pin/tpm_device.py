"""A software TPM behind a device file, as the kernel's resource manager has it: a pseudoterminal that takes commands."""

from __future__ import annotations

import contextlib
import os
import pty
import socket
import threading
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.pin.machine import Completed, Machine
from tests.swtpm import Swtpm


@contextmanager
def device(tpm: Swtpm) -> Iterator[str]:
    """The path of a device file that is *tpm*."""
    ours, theirs = pty.openpty()
    tty.setraw(ours)
    tty.setraw(theirs)
    threading.Thread(target=_pump, args=(ours, tpm), daemon=True).start()
    try:
        yield os.ttyname(theirs)
    finally:
        os.close(theirs)
        os.close(ours)


def _pump(terminal: int, tpm: Swtpm) -> None:
    with contextlib.suppress(OSError):
        while True:
            command = _whole(partial(os.read, terminal, 4096))
            # For each command, because swtpm serves one client at a time.
            with socket.create_connection(("127.0.0.1", tpm.port)) as connection:
                connection.sendall(command)
                answer = _whole(partial(connection.recv, 4096))
            os.write(terminal, answer)


def _whole(read: Callable[[], bytes]) -> bytes:
    """A command or an answer: bytes 2 to 5 are its size."""
    data = b""
    while len(data) < 6 or len(data) < int.from_bytes(data[2:6], "big"):
        more = read()
        if not more:
            raise OSError("the other side is gone")
        data += more
    return data


def with_devices(machine: Machine, devices: Mapping[str, str], jwe: bytes, more: str = "true") -> Completed:
    """``clevis decrypt`` where /dev has these devices and no others; no TPM is named.

    *devices* are paths by their names in /dev; *more* is shell that runs before, in the same mount namespace.
    """
    new = machine.directory / "dev"
    new.mkdir(exist_ok=True)
    (machine.directory / "jwe").write_bytes(jwe)
    binds = {name: f"/dev/{name}" for name in ("null", "zero", "urandom", "random")} | dict(devices)
    script = "\n".join(
        [
            "set -e",
            f"mount -t tmpfs none {new}",
            f"ln -s /proc/self/fd {new}/fd",
            # The machine's own files may be there.
            f"mkdir {new}/shm; mount --bind /dev/shm {new}/shm",
            *(f": >{new}/{name}; mount --bind {path} {new}/{name}" for name, path in binds.items()),
            f"mount --rbind {new} /dev",
            more,
            f"unset TPM2TOOLS_TCTI; exec clevis decrypt <{machine.directory}/jwe",
        ]
    )
    return machine.run("unshare", "-m", "bash", "-c", script)


def with_log(number: int, log: Path) -> str:
    """Shell for *more*: the kernel shows *log* for the TPM of that number, and none for others."""
    place = f"/sys/kernel/security/tpm{number}"
    return (
        f"exec 9<{log}; mount -t tmpfs none /sys; mkdir -p {place}; cat <&9 >{place}/binary_bios_measurements"
    )
