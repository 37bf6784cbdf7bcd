"""Reading a request's body: whole, in time, and never too many at once."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from tang_attest.errors import Malformed
from tang_attest.web.limits import Limiter

#: An unlock request with the largest event log has about 180 KiB (docs/protocol.md, 3.3, step 1).
MAX_BODY: Final = 256 * 1024

#: The limits of an application.
LIMITER: Final = web.AppKey("limiter", Limiter)


async def read_body(request: web.Request) -> bytes:
    """The body of *request*.

    Raises ``request-too-large``, ``request-slow``, and ``unavailable`` when too many bodies are on their way.
    """
    size = MAX_BODY if request.content_length is None else request.content_length
    if size > MAX_BODY:
        raise _too_large()
    if request.content.is_eof():  # it came with the head
        return await _read(request)
    limiter = request.app[LIMITER]
    with limiter.body(request.remote, size):
        try:
            async with asyncio.timeout(limiter.limits.body_s):
                return await _read(request)
        except TimeoutError:
            limiter.refused["slow"] += 1
            raise Malformed("request-slow", "The body did not come in time.") from None


async def _read(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large() from None


def _too_large() -> Malformed:
    return Malformed("request-too-large", f"The body has more than {MAX_BODY} bytes.")
