"""Receivers of messages: a mail server, a web server and a store with a clock that tests move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTP
from typing import Any, cast

from aiohttp import web
from aiohttp.test_utils import TestServer
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword, Session

from tests.ports import free_port


class WebInbox:
    """A web server that keeps what it is sent, and answers the next of *statuses*, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests = list[tuple[str, dict[str, str], Any]]()
        self.url = ""
        self._came = asyncio.Condition()

    async def has(self, count: int) -> None:
        """Wait until there are *count* messages."""
        async with self._came:
            await self._came.wait_for(lambda: len(self.requests) >= count)

    async def answer(self, request: web.Request) -> web.Response:
        """Keep a request."""
        body = json.loads(await request.read())
        async with self._came:
            self.requests.append((request.path, dict(request.headers), body))
            self._came.notify_all()
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return web.Response(status=status)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """The messages so far."""
        return [body for _, _, body in self.requests]


@asynccontextmanager
async def web_inbox(*statuses: int) -> AsyncIterator[WebInbox]:
    """A running :class:`WebInbox`; 200 by default."""
    inbox, app = WebInbox(*statuses or (200,)), web.Application()
    app.router.add_route("*", "/{path:.*}", inbox.answer)
    async with TestServer(app) as server:
        inbox.url = str(server.make_url("/inbox"))
        yield inbox


class MailInbox:
    """A mail server that takes one user, with *password*, and keeps the mails."""

    def __init__(self, password: str, refusal: str | None = None) -> None:
        self.password, self.refusal = password, refusal
        self.mails = list[EmailMessage]()
        self.envelopes = list[Envelope]()

    def authenticate(
        self, _server: object, _session: Session, _envelope: Envelope, _mechanism: str, data: object
    ) -> AuthResult:
        """Check a password."""
        given = cast(LoginPassword, data)
        return AuthResult(success=given.password == self.password.encode(), handled=False)

    async def handle_DATA(self, _server: object, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Keep a mail."""
        if self.refusal is not None:
            return self.refusal
        parsed = BytesParser(policy=SMTP).parsebytes(cast(bytes, envelope.content))
        self.mails.append(parsed)
        self.envelopes.append(envelope)
        return "250 kept"


class RunningMail(Controller):
    """A mail server in a thread of its own."""

    def __init__(self, inbox: MailInbox, **options: Any) -> None:
        super().__init__(inbox, hostname="127.0.0.1", port=free_port(), **options)
