"""The receivers that the settings name."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Protocol

from tang_attest.config import AppriseSettings, MailSettings, NtfySettings, ReceiverSettings, Settings
from tang_attest.errors import TangAttestError, Unavailable
from tang_attest.service.notifications.deliver import Receiver
from tang_attest.service.notifications.message import without_names
from tang_attest.web.receivers.apprise import AppriseReceiver
from tang_attest.web.receivers.mail import MailReceiver, MailTerms
from tang_attest.web.receivers.ntfy import NtfyReceiver
from tang_attest.web.receivers.webhook import WebhookReceiver


class _Checked(Receiver, Protocol):
    def check(self) -> None:
        """Raise ``notify-failed`` for a fault that shows without sending."""


class _Discreet:
    """A receiver that learns no names."""

    def __init__(self, receiver: _Checked) -> None:
        self._receiver = receiver

    def check(self) -> None:
        self._receiver.check()

    async def send(self, message: Mapping[str, object]) -> None:
        await self._receiver.send(without_names(message))


def receivers(settings: Settings) -> dict[str, _Checked]:
    """Return the receivers, by name."""
    return {
        name: _made(each, settings) if each.names else _Discreet(_made(each, settings))
        for name, each in settings.notify.items()
    }


def _made(each: ReceiverSettings, settings: Settings) -> _Checked:
    if isinstance(each, MailSettings):
        host, port = each.address
        return MailReceiver(
            MailTerms(
                host=host,
                port=port,
                tls=each.tls,
                sender=each.sender,
                to=tuple(each.to),
                user=each.user,
                password_file=each.password_file,
            )
        )
    if isinstance(each, NtfySettings):
        return NtfyReceiver(each.url, each.token_file)
    if isinstance(each, AppriseSettings):
        return AppriseReceiver(each.url_file)
    return WebhookReceiver(each.url, each.secret_file or settings.webhook_secret)


def check_receivers(settings: Settings) -> Iterator[TangAttestError]:
    """Yield a problem for each receiver that could not get a message; nothing is sent."""
    for name, receiver in receivers(settings).items():
        try:
            receiver.check()
        except Unavailable as error:
            yield Unavailable(error.code, f"Receiver '{name}': {error.sentence}")


def server_name() -> str:
    """Return the name of this server for messages."""
    return socket.gethostname()


def console_address(settings: Settings) -> str | None:
    """Return the address of the console, if the settings name it."""
    return settings.console_url
