"""Webhooks: signed notifications to another server, the only HTTP request that this program makes."""

from __future__ import annotations

import hashlib
import hmac
import time
from pathlib import Path
from typing import Final

import aiohttp

from tang_attest.errors import Unavailable
from tang_attest.web.trust import connector_for

LIMIT_S: Final = 10.0
#: The least bytes of a secret; a shorter one could be guessed.
_LEAST_SECRET: Final = 16
_MOST_SECRET: Final = 4096


async def post_signed(secret_file: Path | None, url: str, body: bytes, limit_s: float = LIMIT_S) -> None:
    """POST *body* to *url*; any 2xx is success, and a redirection is none.  Raises ``webhook-failed``.

    ``Tang-Attest-Signature`` is ``sha256=`` and the HMAC-SHA-256, in hex, over the header
    ``Tang-Attest-Timestamp`` (seconds since 1970), a newline and the body.
    """
    timestamp = str(int(time.time()))
    mac = hmac.new(read_secret(secret_file), f"{timestamp}\n".encode() + body, hashlib.sha256)
    headers = {
        "Content-Type": "application/json",
        "Tang-Attest-Timestamp": timestamp,
        "Tang-Attest-Signature": f"sha256={mac.hexdigest()}",
    }
    limit = aiohttp.ClientTimeout(total=limit_s)
    connector = await connector_for(url)
    try:
        async with (
            aiohttp.ClientSession(
                connector=connector, timeout=limit, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            status = response.status
    except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
        raise Unavailable("webhook-failed", f"The webhook was not reached: {type(error).__name__}.") from None
    if not 200 <= status < 300:
        raise Unavailable("webhook-failed", f"The webhook answered {status}.")


def read_secret(file: Path | None) -> bytes:
    """Return the secret in *file*, without white space around it.  Raises ``webhook-failed``."""
    if file is None:
        raise Unavailable("webhook-failed", "There is no webhook secret; an unsigned webhook is not sent.")
    try:
        with file.open("rb") as opened:
            secret = opened.read(_MOST_SECRET).strip()
    except OSError as error:
        raise Unavailable("webhook-failed", f"The webhook secret cannot be read: {error.strerror}.") from None
    if len(secret) < _LEAST_SECRET:
        raise Unavailable("webhook-failed", f"The webhook secret has fewer than {_LEAST_SECRET} bytes.")
    return secret
