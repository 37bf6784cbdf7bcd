"""Authentication of the admin API: the bearer token of a request (RFC 6750, section 2.1), and nothing else of
it.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final

import structlog
from aiohttp import web

from tang_attest.errors import Refused
from tang_attest.service.admin.tokens import AdminTokens, Grant, invalid_token
from tang_attest.service.audit.actors import Caller

#: A scheme has no case (RFC 9110, 11.1); a token is 32 bytes in base64url.
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9_-]{43})", re.IGNORECASE)

_log = structlog.get_logger("admin")


async def authenticate(tokens: AdminTokens, request: web.BaseRequest, caller: Caller) -> Grant:
    """Return the grants of the request's token.

    Raises ``transport-insecure``, and ``admin-token-invalid`` whatever else is wrong; the log has the cause
    and, where there is one, the token's name.  Guessing is not slowed down here: a token has 256 random bits.
    """
    try:
        _check_transport(request)
        return await tokens.authenticate(_token(request))
    except Refused as refusal:
        data = dict(refusal.reasons[0].data)
        _log.warning("not authenticated", request_id=caller.request_id, address=caller.address, **data)
        raise


def _check_transport(request: web.BaseRequest) -> None:
    """Refuse a token that went through a network in the clear, where everybody can read it.

    A proxy in front has to be on the server's own host.
    """
    if not (request.secure or _is_local(request.remote)):
        sentence = "The admin API answers other machines over TLS only."
        raise Refused("transport-insecure", sentence, cause="in the clear")


def _is_local(remote: str | None) -> bool:
    """Return True for this host itself, also over a socket for both families; ``None`` is a Unix socket."""
    if remote is None:
        return True
    address = ip_address(remote)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _token(request: web.BaseRequest) -> str:
    headers = request.headers.getall("Authorization", [])
    match = _BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
    if match is None:
        raise invalid_token("missing" if not headers else "not a bearer token")
    return match[1]
