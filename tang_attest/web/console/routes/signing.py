"""Sign-in, sign-out, and the registration of a passkey from a one-time link."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tang_attest.web.console.desk import Desk
from tang_attest.web.console.forms import local_path
from tang_attest.web.console.guard import Visit, give_cookie, take_cookie
from tang_attest.web.console.rendering import page
from tang_attest.web.console.routes.acts import credential_of

#: Characters of a one-time token are 43; a longer one is none of ours.
_MAX_TOKEN: Final = 100


def _frame(desk: Desk, title: str) -> dict[str, object]:
    return {"title": title, "now": desk.clock.now(), "session": None, "here": ""}


async def show(desk: Desk, visit: Visit) -> web.Response:
    """Show the sign-in; an operator who is signed in goes on."""
    target = local_path(visit.request.query.get("next", ""))
    if visit.found is not None:
        return web.Response(status=303, headers={"Location": target})
    values = {"options": await desk.sign_in.assertion_options(), "next": target}
    return page("sign_in.html", _frame(desk, "Sign in") | values)


async def sign_in(desk: Desk, visit: Visit) -> web.Response:
    """Open a session.  Raises ``passkey-unknown``, ``passkey-invalid``, ``form-malformed``."""
    secret, session = await desk.sign_in.sign_in(credential_of(visit.form), visit.caller)
    response = web.Response(status=303, headers={"Location": local_path(visit.form.text("next"))})
    give_cookie(response, secret, int((session.ends_at - desk.clock.now()).total_seconds()))
    return response


async def sign_out(desk: Desk, visit: Visit) -> web.Response:
    """End the session."""
    await desk.sign_in.sign_out(visit.session, visit.caller)
    response = web.Response(status=303, headers={"Location": "/sign-in"})
    take_cookie(response)
    return response


async def show_registration(desk: Desk, _visit: Visit) -> web.Response:
    """Show the page of a one-time link, whose token is in the fragment: browsers keep that to themselves."""
    return page("register.html", _frame(desk, "Register a passkey") | {"options": None, "token": ""})


async def begin_registration(desk: Desk, visit: Visit) -> web.Response:
    """Ask for a passkey.  Raises ``link-invalid``, ``link-used``, ``link-expired``."""
    token = visit.form.text("token")[:_MAX_TOKEN]
    values = {"options": await desk.sign_in.registration_options(token), "token": token}
    return page("register.html", _frame(desk, "Register a passkey") | values)


async def register(desk: Desk, visit: Visit) -> web.Response:
    """Register the passkey, and lead to the sign-in.  Raises as :meth:`SignIn.register`."""
    token = visit.form.text("token")[:_MAX_TOKEN]
    await desk.sign_in.register(token, credential_of(visit.form), visit.caller)
    return web.Response(status=303, headers={"Location": "/sign-in"})


def landing(request: web.Request) -> web.Response:
    """Return the page that leads to the same address once more.

    The browser sends no ``SameSite=Strict`` cookie with a link of another site, but does with this page's.
    """
    values = {
        "session": None,
        "here": "",
        "title": "One moment",
        "sentence": "This link came from elsewhere, so it is opened once more.",
        "action": "",
        "code": None,
        "request_id": None,
        "link": local_path(str(request.rel_url)),
        "refresh": local_path(str(request.rel_url)),
    }
    return page("message.html", values)
