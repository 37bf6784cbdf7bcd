"""The address under which browsers see the console."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class ConsoleAddress:
    """An origin (RFC 6454), such as ``https://console.example``; it is checked where it is set (config.py)."""

    origin: str

    @property
    def rp_id(self) -> str:
        """The RP ID of passkeys (WebAuthn): the host."""
        return urlsplit(self.origin).hostname or ""

    def link(self, token: str) -> str:
        """Return the address that registers a passkey with a one-time *token*.

        The token is in the fragment, which no browser sends and no proxy logs.
        """
        return f"{self.origin}/register#{token}"
