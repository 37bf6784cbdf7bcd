"""ntfy: push messages to phones, by its HTTP API (https://docs.ntfy.sh/publish/)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import aiohttp

from tang_attest.errors import Unavailable
from tang_attest.service.notifications.message import subject_line, text_of
from tang_attest.web.receivers.secrets import read_line
from tang_attest.web.trust import connector_for

_LIMIT_S: Final = 15.0
#: Bytes of a message; ntfy makes an attachment of a longer one.
_LONGEST: Final = 3500


class NtfyReceiver:
    """:class:`tang_attest.service.notifications.deliver.Receiver`: the topic at *url*, with an access token."""

    def __init__(self, url: str, token_file: Path | None) -> None:
        self._url, self._token_file = url, token_file

    def check(self) -> None:
        """Raise ``notify-failed`` if the token cannot be read."""
        self._headers()

    def _headers(self) -> dict[str, str]:
        if self._token_file is None:
            return {}
        return {"Authorization": f"Bearer {read_line(self._token_file, 'access token')}"}

    async def send(self, message: Mapping[str, object]) -> None:
        """See :class:`~tang_attest.service.notifications.deliver.Receiver`."""
        # As JSON to the server's root: a header could not hold every character of a title.
        parts = urlsplit(self._url)
        path, _, topic = parts.path.rstrip("/").rpartition("/")
        body: dict[str, object] = {
            "topic": topic,
            "title": subject_line(message),
            "message": text_of(message).encode()[:_LONGEST].decode(errors="ignore"),
            "tags": ["lock"],
        }
        if message["url"]:
            body["click"] = message["url"]
        connector = await connector_for(self._url)
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=aiohttp.ClientTimeout(total=_LIMIT_S),
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as session,
                session.post(
                    urlunsplit((parts.scheme, parts.netloc, f"{path}/", "", "")),
                    json=body,
                    headers=self._headers(),
                    allow_redirects=False,
                ) as response,
            ):
                status = response.status
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
            raise Unavailable("notify-failed", f"ntfy was not reached: {type(error).__name__}.") from None
        if not 200 <= status < 300:
            hint = "; see the access token" if status in (401, 403) else ""
            raise Unavailable("notify-failed", f"ntfy answered {status}{hint}.")
