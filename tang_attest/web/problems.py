"""The one table from errors to statuses, and the wire format of a problem (RFC 9457)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from aiohttp import web
from pydantic import TypeAdapter

from tang_attest.errors import Conflict, Malformed, NotFound, Refused, TangAttestError, Unavailable
from tang_attest.protocol.challenge import VERSIONS, Challenge
from tang_attest.protocol.policy import differing_pcrs
from tang_attest.protocol.values.sizes import MAX_EVENT_LOG

#: Write a value as compact JSON, in a quarter of the time of ``json``.
to_json: Final = TypeAdapter[Any](Any).dump_json

#: The response's key for its problem's code, for the log line.
CODE: Final = web.ResponseKey("code", str)
#: The request's key for its route's name, for the metrics.
ROUTE: Final = web.RequestKey("route", str)

_STATUS_BY_CODE: Final[Mapping[str, int]] = {
    "admin-token-invalid": 401,
    "evidence-required": 401,
    "nonce-expired": 401,
    "nonce-used": 403,
    "pcr-mismatch": 403,
    "token-invalid": 403,
    "clock-backwards": 403,
    "token-used": 403,
    "token-used-up": 403,
    "ek-not-registered": 403,
    "token-revoked": 403,
    "state-retired": 403,
    "state-used-up": 403,
    "state-not-rolled-out": 403,
    "approval-required": 403,
    "device-stale": 403,
    "state-learned": 403,
    "device-suspended": 403,
    "key-retired": 403,
    "method-not-allowed": 405,
    "request-slow": 408,
    "request-too-large": 413,
    "media-type-unsupported": 415,
    "encoding-unsupported": 415,
    "too-many-requests": 429,
    "internal": 500,
}
_STATUS_BY_CLASS: Final[tuple[tuple[type[TangAttestError], int, str], ...]] = (
    (Malformed, 400, "Malformed"),
    (Refused, 403, "Refused"),
    (NotFound, 404, "Not found"),
    (Conflict, 409, "Conflict"),
    (Unavailable, 503, "Unavailable"),
)


class MethodNotAllowed(Malformed):
    """The address exists, but not with this method; ``allowed`` are its methods."""

    def __init__(self, method: str, allowed: Sequence[str]) -> None:
        self.allowed = tuple(allowed)
        super().__init__("method-not-allowed", f"{method[:16]} is no method of this address.")


class Unread(Malformed):
    """A request whose body was not read to its end: its connection is of no use afterwards."""


def status_of(error: TangAttestError) -> int:
    """Return the HTTP status that answers *error*; never 3xx, which stock clients take for success."""
    status = _STATUS_BY_CODE.get(error.code)
    if status is None:
        status = next((status for kind, status, _ in _STATUS_BY_CLASS if isinstance(error, kind)), 500)
    return status


def problem(error: TangAttestError, request_id: str, challenge: Challenge | None = None) -> web.Response:
    """Return *error* as a response; it names the PCRs that differ, never their values."""
    status = status_of(error)
    body = _members(error, status, request_id)
    if isinstance(error, Refused) and (pcrs := differing_pcrs(error)):
        body["pcrs"] = list(pcrs)
    headers = {"Cache-Control": "no-store"}
    if challenge is not None:
        body["challenge"] = challenge_json(challenge)
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer" if error.code == "admin-token-invalid" else "TPM2-Quote"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if error.code == "encoding-unsupported":
        headers["Accept-Encoding"] = "identity"
    if (wait := _retry_after(error)) is not None:
        headers["Retry-After"] = str(wait)
    response = web.Response(
        status=status,
        body=to_json(body),
        content_type="application/problem+json",
        headers=headers,
    )
    response[CODE] = error.code
    if isinstance(error, Unread) or status == 429:
        response.force_close()
    return response


def raw_problem(error: TangAttestError, status: int | None = None) -> bytes:
    """Return *error* as bytes, the last of a connection: for requests that no handler sees.

    *status* is by default the error's own.
    """
    status = status or status_of(error)
    body = to_json(_members(error, status, secrets.token_hex(8)))
    wait = _retry_after(error)
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        *([] if wait is None else [f"Retry-After: {wait}"]),
        "Content-Type: application/problem+json",
        "Cache-Control: no-store",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


def _members(error: TangAttestError, status: int, request_id: str) -> dict[str, object]:
    return {
        "type": f"urn:tang-attest:{error.code}",
        "title": next((title for kind, _, title in _STATUS_BY_CLASS if isinstance(error, kind)), "Error"),
        "status": status,
        "code": error.code,
        "detail": error.sentence,
        "action": error.action,
        "request_id": request_id,
    }


def _retry_after(error: TangAttestError) -> object:
    return dict(error.reasons[0].data).get("retry_after")


async def hide_server(_request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Remove the server's versions from the answer."""
    response.headers.pop("Server", None)


def challenge_json(challenge: Challenge) -> dict[str, object]:
    """Return a challenge in the format of docs/protocol.md, 3.1 and 10.1."""
    words = {"quote": True, "event-log": challenge.event_log_wanted, "ima": challenge.ima_offset is not None}
    body: dict[str, object] = {
        "nonce": challenge.nonce,
        "selection": str(challenge.selection),
        "expires_in": challenge.expires_in,
        "evidence": [word for word, wanted in words.items() if wanted],
    }
    if challenge.event_log_wanted:
        # It also tells the client that this server takes the size of a larger log.
        body["event_log_limit"] = MAX_EVENT_LOG
    more = {"ima_offset": challenge.ima_offset, "cap_pcr": challenge.cap_pcr, "versions": VERSIONS}
    return body | {name: value for name, value in more.items() if value is not None}
