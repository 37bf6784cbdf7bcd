"""Reading of request bodies: whole, in time, undecoded, and never too many at once."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from aiohttp import HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError

from tang_attest.errors import Malformed
from tang_attest.web.gate.connections import connection_of
from tang_attest.web.gate.limits import Incoming, Limiter
from tang_attest.web.problems import Unread

#: An unlock request with the largest event log has about 180 KiB (docs/protocol.md, 3.3, step 1).
MAX_BODY: Final = 256 * 1024
#: The limit of bodies without evidence: a point, a ticket, an application with its EK certificate.
SMALL_BODY: Final = 4 * 1024
MAX_APPLICATION: Final = 32 * 1024

_IDENTITY: Final = re.compile(r"(?:[ \t,]|identity)*", re.IGNORECASE)

#: The limits of an application.
LIMITER: Final = web.AppKey("limiter", Limiter)


def check_encoding(request: web.Request) -> None:
    """Raise ``encoding-unsupported`` for a compressed body: a few bytes may unpack to any number of them."""
    encodings = ",".join(request.headers.getall("Content-Encoding", ()))
    if encodings and request.body_exists and not _IDENTITY.fullmatch(encodings):
        raise Unread("encoding-unsupported", "The body has a Content-Encoding.")


def is_small(request: web.Request) -> bool:
    """Return True when the head declares a body of :data:`SMALL_BODY` at most."""
    size = request.content_length
    return size is not None and size <= SMALL_BODY


async def read_body(request: web.Request, limit: int = MAX_BODY) -> bytes:
    """Return the body of *request*, of at most *limit* bytes.

    Raises ``request-too-large``, ``request-slow``, ``unavailable`` when too many bodies are on their way, and
    ``request-malformed`` when the client hangs up or its chunks cannot be read.
    """
    size = request.content_length
    if size is not None and size > limit:
        raise _too_large(limit)
    content, limiter = request.content, request.app[LIMITER]
    if content.is_eof():  # it arrived with the head
        return await _read(request, limit, None)
    connection = connection_of(request)
    with limiter.body(request.remote) as incoming:
        if connection is not None:
            connection.reading()
        try:
            async with asyncio.timeout(limiter.limits.body_s):
                return await _read(request, limit, incoming)
        except TimeoutError:
            limiter.refused["slow"] += 1
            raise Unread("request-slow", "The body did not come in time.") from None
        finally:
            if connection is not None:
                connection.begun()


async def _read(request: web.Request, limit: int, incoming: Incoming | None) -> bytes:
    body = bytearray()
    try:
        if incoming is not None:
            await _invite(request)
        while chunk := await request.content.readany():
            if len(body) + len(chunk) > limit:
                raise _too_large(limit)
            if incoming is not None:
                incoming.add(len(chunk))
            body += chunk
    except (ConnectionError, web.RequestPayloadError, HttpProcessingError):
        raise Unread("request-malformed", "The body ended early, or its chunks cannot be read.") from None
    return bytes(body)


async def expect_later(_request: web.Request) -> None:
    """Leave ``Expect: 100-continue`` unanswered: :func:`read_body` answers it, if the body is read."""


async def _invite(request: web.Request) -> None:
    """Answer ``100 Continue`` to a client that waits for it (RFC 9110, 10.1.1)."""
    if request.version == HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


def _too_large(limit: int) -> Malformed:
    return Unread("request-too-large", f"The body has more than {limit} bytes.")
