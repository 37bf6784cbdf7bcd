"""Tang's routes: their targets, and plain Tang's answers.

Targets are matched raw, before any library has decoded or normalized them, as tangd matches them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final, Literal

from aiohttp import web

from tang_attest.service.tang.plain import BODY_LIMIT, KeySetProvider, TangStatus, current_keys
from tang_attest.service.unlock.exchanging import run_where

#: tangd answers 414 to a longer target.
TARGET_LIMIT: Final = 4095

_METHODS: Final = {"adv": "GET", "rec": "POST"}


@dataclass(frozen=True, slots=True)
class Route:
    """One of Tang's routes; ``kid`` is the thumbprint in it, which only ``/adv`` may lack."""

    name: Literal["adv", "rec"]
    kid: str | None = None


def match(method: str, raw_target: str, endpoint: str = "") -> Route | int:
    """Return the route of a request, or the status that tangd gives: 404, 405 or 414.

    *endpoint* is a path before every route, such as ``/tang``; slashes around it do not count.
    """
    if len(raw_target.encode("utf-8", "surrogateescape")) > TARGET_LIMIT:
        return 414
    found = _pattern(endpoint.strip("/")).fullmatch(raw_target)
    if found is None:
        return 404
    route = Route("rec", found["rec"]) if found["rec"] else Route("adv", found["adv"])
    return route if method == _METHODS[route.name] else 405


def unmatched(status: int, raw_target: str, endpoint: str = "") -> web.Response:
    """Return tangd's empty answer with *status* of :func:`match`; 405 has ``Allow`` (RFC 9110, 15.5.6)."""
    headers = {}
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        found = _pattern(endpoint.strip("/")).fullmatch(raw_target)
        headers["Allow"] = _METHODS["rec" if found is not None and found["rec"] else "adv"]
    return web.Response(status=status, headers=headers)


@lru_cache
def _pattern(endpoint: str) -> re.Pattern[str]:
    # tangd has three expressions, ^/+adv/+(KID)$, ^/+adv/*$ and ^/+rec/+(KID)$; no target matches two of
    # them.
    prefix = f"/{re.escape(endpoint)}" if endpoint else ""
    kid = "[0-9A-Za-z_-]+"
    return re.compile(f"{prefix}/+(?:adv(?:/+(?P<adv>{kid})|/*)|rec/+(?P<rec>{kid}))")


async def handle_adv(keys: KeySetProvider, kid: str | None) -> web.Response:
    """``GET /adv`` and ``GET /adv/{kid}``."""
    try:
        body = (await current_keys(keys)).advertisement(kid)
    except TangStatus as refusal:
        return web.Response(status=refusal.status)
    return web.Response(body=body, content_type="application/jose+json")


async def handle_rec(keys: KeySetProvider, kid: str, body: bytes) -> web.Response:
    """``POST /rec/{kid}``.

    Raises ``server-tpm-unavailable``, ``server-tpm-foreign``.
    """
    if len(body) > BODY_LIMIT:
        return web.Response(status=413)
    try:
        current = await current_keys(keys)
        reply = await run_where(current.place(kid), current.recover, kid, body)
    except TangStatus as refusal:
        return web.Response(status=refusal.status)
    return web.Response(body=reply, content_type="application/jwk+json")
