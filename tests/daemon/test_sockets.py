"""Listening sockets that workers share."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from tang_attest.daemon import sockets
from tang_attest.errors import Malformed
from tests.ports import free_port


def taken_first(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let another process take a port *times* times before it is shared; return a list of the ports that were."""
    listen = sockets._listen
    taken: list[int] = []

    def hurried(family: int, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
        if shared and len(taken) < times:
            taken.append(address[1])
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        return listen(family, address, shared=shared)

    monkeypatch.setattr(sockets, "_listen", hurried)
    return taken


def test_a_free_port_that_is_taken_meanwhile_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers get another one, all of them the same."""
    taken = taken_first(monkeypatch, 2)
    shares = sockets.bind("127.0.0.1", 0, 2)
    try:
        ports = {sockets.port_of(listener) for share in shares for listener in share}
        assert [len(share) for share in shares] == [1, 1]
        assert len(ports) == 1
        assert len(taken) == 2
    finally:
        for share in shares:
            for listener in share:
                listener.close()


def test_a_port_that_was_asked_for_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator is told, also when it is taken at the last moment."""
    port, taken = free_port(), taken_first(monkeypatch, 1)
    with pytest.raises(Malformed) as refusal:
        sockets.bind("127.0.0.1", port, 2)
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in str(refusal.value)
    assert len(taken) <= 1
