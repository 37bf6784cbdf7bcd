"""Services that Apprise speaks to: the extra ``tang-attest[notify]``, loaded with the first message."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tang_attest.errors import Unavailable
from tang_attest.service.notifications.message import subject_line, text_of
from tang_attest.web.receivers.threads import Aside

_MOST: Final = 64 * 1024


class AppriseReceiver:
    """:class:`tang_attest.service.notifications.deliver.Receiver`: the services whose URLs are in *url_file*."""

    def __init__(self, url_file: Path) -> None:
        self._url_file = url_file
        self._aside = Aside()

    def check(self) -> None:
        """Raise ``notify-failed`` if Apprise is not installed, or the URLs cannot be read."""
        if importlib.util.find_spec("apprise") is None:
            raise _failed("Apprise is not installed; it is the extra tang-attest[notify].")
        self._urls()

    def _urls(self) -> list[str]:
        try:
            with self._url_file.open("rb") as opened:
                lines = opened.read(_MOST).decode().splitlines()
        except OSError as error:
            raise _failed(f"The URLs cannot be read: {self._url_file}: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise _failed(f"The URLs in {self._url_file} are not UTF-8.") from None
        urls = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not urls:
            raise _failed(f"There is no URL in {self._url_file}.")
        return urls

    async def send(self, message: Mapping[str, object]) -> None:
        """See :class:`~tang_attest.service.notifications.deliver.Receiver`."""
        self.check()
        urls = self._urls()
        await self._aside.run(lambda: _send(urls, subject_line(message), text_of(message)))


def _send(urls: list[str], title: str, text: str) -> None:
    import logging

    import apprise  # slow to load, and large

    # It logs URLs, which hold secrets.
    logging.getLogger("apprise").setLevel(logging.CRITICAL)
    services = apprise.Apprise()
    for number, url in enumerate(urls, 1):
        if not services.add(url):
            raise _failed(f"Apprise does not know the service of URL {number} in the file.")
    if not services.notify(body=text, title=title, body_format=apprise.NotifyFormat.TEXT):
        raise _failed("Apprise could not deliver to every service.")


def _failed(sentence: str) -> Unavailable:
    return Unavailable("notify-failed", sentence)
