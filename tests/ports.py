"""TCP ports of the loopback for servers that are named before they listen, or that come back at the same address.

Linux gives ephemeral ports to every client and to every server that asks for port 0, so a port found by asking for port 0
may be gone a moment later, and again while its server restarts.  These lie below the ephemeral range, and belong to
the process that got them until it ends.
"""

from __future__ import annotations

import fcntl
import functools
import itertools
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: Beside the ports of swtpm.py; 32768 and up are ephemeral.
_PORTS: Final = range(10000, 20000)
#: The state of a listening socket in proc_net(5).
_TCP_LISTEN: Final = "0A"
#: Those of this process: its own lock would not keep it from a second one.
_mine: Final[set[int]] = set()


def free_port() -> int:
    """A TCP port that nobody listens on, and that no other call returns, in this process or beside it."""
    first = random.randrange(len(_PORTS))
    for port in itertools.chain(_PORTS[first:], _PORTS[:first]):
        if port not in _mine and is_free(port) and _reserve(port):
            return port
    raise AssertionError("no port of the loopback is free")


@functools.cache
def _reservations(owner: int) -> int:
    """A descriptor whose locks belong to process *owner*: a child that was forked does not have its parent's."""
    path = Path(tempfile.gettempdir()) / f"tang-attest-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _reserve(port: int) -> bool:
    """Lock the byte at *port* (fcntl(2)); the lock ends with the process."""
    try:
        fcntl.lockf(_reservations(os.getpid()), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    _mine.add(port)
    return True


def is_free(port: int) -> bool:
    """Return True if nobody listens on *port* now."""
    with socket.socket() as probe:
        # Servers set this too; without it, a port that a test used a moment ago would look taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def listens(pid: int, *ports: int) -> bool:
    """True when process *pid*, another than this one, itself listens on each of *ports*.

    Connecting would tell less: it could be another test's server that answers, and swtpm serves one client at
    a time.
    """
    try:
        held = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:  # it exited, or closed a descriptor while we looked
        return False
    sockets = {name for name in held if name.startswith("socket:")}
    if len(sockets) < len(ports):
        return False
    return set(ports) <= {port for port, inode in _listeners() if f"socket:[{inode}]" in sockets}


def _listeners() -> Iterator[tuple[int, str]]:
    """Yield port and inode of each socket that listens.

    Linux lists these before the others, of which a busy machine has thousands: looking for all takes 6 ms.
    """
    with Path("/proc/net/tcp").open() as file:
        next(file)
        for line in file:
            fields = line.split()
            if fields[3] != _TCP_LISTEN:
                return
            yield int(fields[1].rpartition(":")[2], 16), fields[9]
