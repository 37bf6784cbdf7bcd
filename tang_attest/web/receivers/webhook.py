"""A web server that gets each message as signed JSON, like the webhooks of policies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tang_attest.errors import Unavailable
from tang_attest.web.webhook import post_signed, read_secret


class WebhookReceiver:
    """:class:`tang_attest.service.notifications.deliver.Receiver`."""

    def __init__(self, url: str, secret_file: Path | None) -> None:
        self._url, self._secret_file = url, secret_file

    def check(self) -> None:
        """Raise ``notify-failed`` if the secret cannot be used."""
        try:
            read_secret(self._secret_file)
        except Unavailable as error:
            raise Unavailable("notify-failed", error.sentence) from None

    async def send(self, message: Mapping[str, object]) -> None:
        """See :class:`~tang_attest.service.notifications.deliver.Receiver`."""
        body = json.dumps(message, separators=(",", ":"), sort_keys=True).encode()
        try:
            await post_signed(self._secret_file, self._url, body)
        except Unavailable as error:
            raise Unavailable("notify-failed", error.sentence) from None
