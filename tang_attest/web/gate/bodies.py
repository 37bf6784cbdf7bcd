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

_CHUNKED: Final = "chunked"
_IDENTITY: Final = re.compile(r"(?:[ \t,]|identity)*", re.IGNORECASE)

#: Errors of a body whose client hung up, or whose chunks cannot be read.
_UNREADABLE: Final = (ConnectionError, web.RequestPayloadError, HttpProcessingError)

#: The request's key for the limits that its body is read under.
LIMITER: Final = web.RequestKey("limiter", Limiter)


def check_encoding(request: web.BaseRequest) -> None:
    """Raise ``encoding-unsupported`` for a compressed body: a few bytes may unpack to any number of them.

    A transfer coding other than ``chunked`` would compress it as well (RFC 9112, 7).
    """
    encodings = ",".join(request.headers.getall("Content-Encoding", ()))
    if encodings and request.body_exists and not _IDENTITY.fullmatch(encodings):
        raise Unread("encoding-unsupported", "The body has a Content-Encoding.")
    if request.headers.get("Transfer-Encoding", _CHUNKED).lower() != _CHUNKED:
        raise Unread("encoding-unsupported", "The body has a Transfer-Encoding other than chunked.")


def is_small(request: web.BaseRequest) -> bool:
    """Return True when the head declares a body of :data:`SMALL_BODY` at most."""
    size = request.content_length
    return size is not None and size <= SMALL_BODY


async def read_body(request: web.BaseRequest, limit: int = MAX_BODY) -> bytes:
    """Return the body of *request*, of at most *limit* bytes.

    Raises ``request-too-large``, ``request-slow``, ``unavailable`` when too many bodies are on their way, and
    ``request-malformed`` when the client hangs up or its chunks cannot be read.
    """
    size = request.content_length
    if size is not None and size > limit:
        raise _too_large(limit)
    content, limiter = request.content, request[LIMITER]
    if content.is_eof():  # it arrived with the head
        return _arrived(request, limit)
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


def _arrived(request: web.BaseRequest, limit: int) -> bytes:
    try:
        body = request.content.read_nowait()
    except _UNREADABLE:
        raise _unreadable() from None
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def _read(request: web.BaseRequest, limit: int, incoming: Incoming) -> bytes:
    body = bytearray()
    try:
        await _invite(request)
        while chunk := await request.content.readany():
            if len(body) + len(chunk) > limit:
                raise _too_large(limit)
            incoming.add(len(chunk))
            body += chunk
    except _UNREADABLE:
        raise _unreadable() from None
    return bytes(body)


def check_expectation(request: web.BaseRequest) -> None:
    """Raise ``request-malformed`` for an ``Expect`` that cannot be met (RFC 9110, 10.1.1), beside a target
    that is no path.

    Requests of routes are answered all the same, as tangd does.
    """
    expected = "" if request.raw_path.startswith("/") else request.headers.get("Expect", "")
    if expected and expected.lower() != "100-continue":
        raise Unread("request-malformed", "Nothing here meets this expectation.")


async def expect_later(_request: web.BaseRequest) -> None:
    """Leave ``Expect: 100-continue`` unanswered: :func:`read_body` answers it, if the body is read."""


async def _invite(request: web.BaseRequest) -> None:
    """Answer ``100 Continue`` to a client that waits for it (RFC 9110, 10.1.1)."""
    if request.version == HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer has not begun


def _unreadable() -> Malformed:
    return Unread("request-malformed", "The body ended early, or its chunks cannot be read.")


def _too_large(limit: int) -> Malformed:
    return Unread("request-too-large", f"The body has more than {limit} bytes.")
