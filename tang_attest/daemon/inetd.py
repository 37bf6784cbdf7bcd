"""The one connection that a service manager hands to a process: inetd, or a systemd socket with
Accept=yes.
"""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from tang_attest.daemon.sockets import listens, passed
from tang_attest.errors import Malformed

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2
_CHUNK: Final = 65_536


@contextmanager
def connection(environment: Mapping[str, str]) -> Iterator[socket.socket]:
    """Yield the connection: the socket that systemd passes, or standard input and output, sockets or pipes.

    Raises ``setting-invalid`` for a listening socket, or for more than one.
    """
    given = passed(environment)
    if len(given) > 1:
        raise Malformed("setting-invalid", "The socket unit passes more than one socket.")
    if given or _is_socket(_STDIN):
        one = given[0] if given else socket.socket(fileno=os.dup(_STDIN))
        with one:
            if listens(one):
                raise Malformed(
                    "setting-invalid",
                    "The socket unit passes a listening socket (Accept=no), and 'tangd' takes one connection. "
                    "Set Accept=yes, or run 'tang-attest serve'.",
                )
            yield one
    else:
        with _joined_pipes() as one:
            yield one


def stderr_is_the_connection() -> bool:
    """Return True where inetd made standard error the connection too, so that a line of log would reach the
    client.
    """
    try:
        out, errors = os.fstat(_STDOUT), os.fstat(_STDERR)
    except OSError:
        return False
    return stat.S_ISSOCK(errors.st_mode) and (out.st_dev, out.st_ino) == (errors.st_dev, errors.st_ino)


def _is_socket(descriptor: int) -> bool:
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode)


@contextmanager
def _joined_pipes() -> Iterator[socket.socket]:
    """Yield a socket whose other end is standard input and output; everything written is out on return."""
    ours, theirs = socket.socketpair()
    threading.Thread(target=_copy_in, args=(theirs,), daemon=True).start()
    out = threading.Thread(target=_copy_out, args=(theirs,))
    out.start()
    with theirs:
        try:
            with ours:
                yield ours
        finally:
            out.join()


def _copy_in(to: socket.socket) -> None:
    try:
        while data := os.read(_STDIN, _CHUNK):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the server has ended the connection


def _copy_out(source: socket.socket) -> None:
    try:
        while data := source.recv(_CHUNK):
            view = memoryview(data)
            while view:
                view = view[os.write(_STDOUT, view) :]
    except OSError:
        return  # the client has gone
