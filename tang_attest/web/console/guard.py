"""Admission: the session behind a cookie, and the origin and token of a form.

* A page comes from a session, or is one of those for signing in.
* A form comes from a page of this origin (``Origin``), and with a session from a page of that session (its token).
* The cookie is ``SameSite=Strict``: no other site's link or form carries it.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from aiohttp import web

from tang_attest.errors import Refused, TangAttestError
from tang_attest.ports.operators import OperatorRole
from tang_attest.service.audit.actors import Author, Caller
from tang_attest.service.operators.sign_in import OperatorSession, SignIn
from tang_attest.web.console.forms import SentForm

#: The prefix binds the cookie to this host and to TLS (RFC 6265bis, 4.1.3.2).
COOKIE: Final = "__Host-tang-attest"
#: The header of requests that our script makes without a person.
LIVE: Final = "X-Live"
#: Characters of a session's secret are 43; a longer cookie is none of ours.
_MAX_SECRET: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request: its session if it has one, its caller, and its form if it is a POST."""

    request: web.Request
    caller: Caller
    found: OperatorSession | None
    form: SentForm = field(default_factory=SentForm)

    @property
    def session(self) -> OperatorSession:
        """Return the session.  Raises ``sign-in-required``."""
        if self.found is None:
            raise Refused("sign-in-required", "Nobody is signed in here.")
        return self.found

    @property
    def author(self) -> Author:
        """Return the author of this operator's changes for the audit record."""
        return self.session.author(self.caller)


async def session_of(request: web.Request, sign_in: SignIn, *, used: bool = True) -> OperatorSession | None:
    """Return the session of the request's cookie; ``None`` without one, and for one that is over.

    A page that renews itself says so (:data:`LIVE`), and does not count as use.
    """
    secret = request.cookies.get(COOKIE, "")
    if not secret or len(secret) > _MAX_SECRET:
        return None
    try:
        return await sign_in.session(secret, used=used and LIVE not in request.headers)
    except TangAttestError as error:
        if error.code == "sign-in-required":
            return None
        raise


def require_role(session: OperatorSession | None, role: OperatorRole | None) -> None:
    """Raise ``sign-in-required`` or ``role-missing`` unless *session* has the rights of *role* (``None``: nobody's)."""
    if role is None:
        return
    if session is None:
        raise Refused("sign-in-required", "Nobody is signed in here.")
    session.require(role)


def require_origin(request: web.Request, origin: str) -> None:
    """Raise ``origin-foreign`` unless *request* says that a page of *origin* sent it."""
    if request.headers.getall("Origin", ()) != [origin]:
        raise Refused("origin-foreign", "The form came from a page of another address.")


def require_token(session: OperatorSession | None, form: SentForm) -> None:
    """Raise ``form-expired`` unless *form* has the token of *session*; without a session there is none."""
    if session is None:
        return
    if not hmac.compare_digest(form.text("csrf").encode(), session.csrf.encode()):
        raise Refused("form-expired", "The form belongs to another session.")


def comes_from_elsewhere(request: web.Request) -> bool:
    """Return True for a link of another site that was followed: its request carries no strict cookie."""
    headers = request.headers
    return (
        headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")
        and headers.get("Sec-Fetch-Mode") == "navigate"
        and request.method == "GET"
    )


def client_of(request: web.Request) -> str | None:
    """Return the browser's address by the proxy on this host: the last one in X-Forwarded-For, if it can be read.

    The last address is the proxy's own word; a browser can write those before it.
    """
    named = ",".join(request.headers.getall("X-Forwarded-For", ())).rpartition(",")[2].strip()
    try:
        return str(ip_address(named))
    except ValueError:
        return None


def give_cookie(response: web.StreamResponse, secret: str, seconds: int) -> None:
    """Let the browser keep the session's *secret* for *seconds*."""
    response.set_cookie(
        COOKIE, secret, max_age=seconds, path="/", secure=True, httponly=True, samesite="Strict"
    )


def take_cookie(response: web.StreamResponse) -> None:
    """Let the browser forget the session."""
    response.del_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")
