"""Handshakes that fail, for the operator: a client without trust, or one that speaks the other protocol."""

from __future__ import annotations

import ssl
import time
from typing import Final

import structlog

#: Seconds between two lines: any client may fail as often as it likes.
_EVERY_S: Final = 10.0
#: The first bytes of a TLS record of a handshake: its type, and the first byte of its version.
_TLS_RECORD: Final = b"\x16\x03"
HTTP_TO_HTTPS: Final = "the client speaks http, and this port https"
HTTPS_TO_HTTP: Final = "the client speaks https, and this port http"

_log = structlog.get_logger("tls")


class FailedHandshakes:
    """Logs the first failure at once, and one line each ten seconds after it, with the number left out."""

    def __init__(self) -> None:
        self._logged_at: float | None = None
        self._left_out = 0

    def note(self, address: str | None, reason: str, now: float | None = None) -> None:
        """Take a failure of *address*; *now* is in monotonic seconds."""
        now = time.monotonic() if now is None else now
        if self._logged_at is not None and now - self._logged_at < _EVERY_S:
            self._left_out += 1
            return
        _log.warning("handshake-failed", address=address, reason=reason, left_out=self._left_out)
        self._logged_at, self._left_out = now, 0


#: Those of this process.
FAILED: Final = FailedHandshakes()


def reason_of(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in words: ``tlsv1 alert unknown ca`` is a client that does not trust the certificate."""
    if error.reason == "HTTP_REQUEST":
        return HTTP_TO_HTTPS
    return (error.reason or "unknown").lower().replace("_", " ")


def is_tls(data: bytes) -> bool:
    """Return True if *data*, the first of a connection in the clear, begin a TLS handshake."""
    return data.startswith(_TLS_RECORD)
