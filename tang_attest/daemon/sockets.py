"""Listening sockets: made here, or handed over by systemd."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tang_attest.errors import Malformed

#: Connections that wait to be accepted, for each socket.
BACKLOG: Final = 1024
#: Further tries to share a free port.
_TRIES: Final = 5
#: Codes of reasons against an address that an operator can remove.
_CODES: Final = {errno.EADDRINUSE: "address-taken", errno.EACCES: "port-privileged"}
#: sd_listen_fds(3): the first descriptor that systemd passes.
_FIRST_INHERITED: Final = 3


def bind(
    host: str, port: int, workers: int, settings: str = "Settings host and port"
) -> list[list[socket.socket]]:
    """Return, for each of *workers*, a listening socket on every address of *host*, all on one port.

    Several sockets on one port share its connections (SO_REUSEPORT); with one worker the port is exclusive.
    Port 0 picks a free one.  Raises ``address-taken``, ``port-privileged`` and ``setting-invalid``, naming *settings*,
    when an address cannot be bound.
    """
    try:
        found = _addresses(host, port)
        for _ in range(_TRIES if port == 0 else 0):
            # Another process may take a free port before it is shared.
            with contextlib.suppress(OSError):
                return _shares(found, port, workers)
        return _shares(found, port, workers)
    except (OSError, OverflowError) as error:
        raise _cannot(host, port, settings, error) from None


def try_address(host: str, port: int, settings: str = "Settings host and port") -> None:
    """Raise as :func:`bind` would now; nothing listens, so that no client meets it."""
    try:
        for family, address in _addresses(host, port):
            _bound(family, address, shared=False).close()
    except (OSError, OverflowError) as error:
        raise _cannot(host, port, settings, error) from None


def _cannot(host: str, port: int, settings: str, error: Exception) -> Malformed:
    sentence = f"{settings}: cannot listen on {host} port {port}: {getattr(error, 'strerror', error)}."
    return Malformed(_CODES.get(getattr(error, "errno", 0), "setting-invalid"), sentence)


def _addresses(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """Return the family and the address of each socket on *host*.  Raises :class:`OSError`."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _shares(
    found: Sequence[tuple[int, tuple[Any, ...]]], port: int, workers: int
) -> list[list[socket.socket]]:
    """Return the sockets of each worker, on every family and address *found*.  Raises :class:`OSError`, without a socket."""
    shares: list[list[socket.socket]] = [[] for _ in range(workers)]
    try:
        for family, address in found:
            # Any process of the same user could share a port that was bound for sharing, so the first socket
            # does not share.
            first = _listen(family, (address[0], port, *address[2:]), shared=False)
            port = first.getsockname()[1]
            if workers == 1:
                shares[0].append(first)
                continue
            first.close()
            for share in shares:
                share.append(_listen(family, (address[0], port, *address[2:]), shared=True))
    except BaseException:
        for listener in itertools.chain(*shares):
            listener.close()
        raise
    return shares


def inherited(environment: Mapping[str, str]) -> list[socket.socket]:
    """Return the listening sockets that systemd passes to this process (sd_listen_fds(3)); empty without any.

    Raises ``setting-invalid`` for a connection, which a socket unit with Accept=yes passes, and for a number
    that is none.
    """
    sockets = passed(environment)
    if any(not listens(passed_one) for passed_one in sockets):
        raise Malformed(
            "setting-invalid",
            "The socket unit passes a connection (Accept=yes), and 'serve' takes a listening socket. "
            "Set Accept=no, or run 'tang-attest tangd DIR' for each connection.",
        )
    return sockets


def passed(environment: Mapping[str, str]) -> list[socket.socket]:
    """Return every socket that systemd passes to this process, listening or connected.

    Raises ``setting-invalid`` when LISTEN_FDS is no number.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "0")
    if not count.isascii() or not count.isdecimal():
        raise Malformed("setting-invalid", "LISTEN_FDS is no number.")
    try:
        return [socket.socket(fileno=fd) for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count))]
    except OSError as error:
        raise Malformed("setting-invalid", f"LISTEN_FDS names no socket: {error.strerror}.") from None


def listens(one: socket.socket) -> bool:
    """Return True for a socket that accepts connections."""
    return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def port_of(listener: socket.socket) -> int:
    """Return the port; 0 for a socket without one (AF_UNIX)."""
    name = listener.getsockname()
    return int(name[1]) if isinstance(name, tuple) else 0


def _listen(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    listener = _bound(family, address, shared=shared)
    try:
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _bound(family: int, address: tuple[object, ...], *, shared: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # As asyncio does: :: is IPv6 only, and IPv4 needs 0.0.0.0.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
