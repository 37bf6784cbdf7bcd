"""Messages to the service manager: the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress


class Notifier:
    """Reports the state of the service to systemd; silent without NOTIFY_SOCKET.

    Removes the variable from *environment*: worker processes report nothing.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.pop("NOTIFY_SOCKET", "")

    def ready(self) -> None:
        """Report that requests are answered."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Report a reload of the settings; :meth:`ready` follows."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the service ends once the requests under way are answered."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # An @ stands for the zero byte of an abstract address.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # The server goes on when the manager does not listen.
        with (
            suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
        ):
            channel.sendto(message.encode(), address)
