"""The console's application: routes, headers, and the single place that turns errors into pages."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final
from urllib.parse import quote

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from tang_attest.errors import NotFound, TangAttestError, Unavailable
from tang_attest.ports.operators import OperatorRole
from tang_attest.service.audit.actors import Caller
from tang_attest.web.console.desk import Desk
from tang_attest.web.console.events import LiveEvents
from tang_attest.web.console.forms import SentForm, read_form
from tang_attest.web.console.guard import (
    Visit,
    client_of,
    comes_from_elsewhere,
    require_origin,
    require_role,
    require_token,
    session_of,
)
from tang_attest.web.console.rendering import STATIC, page, static
from tang_attest.web.console.routes import (
    acts,
    audit,
    enroll,
    machines,
    operators,
    policies,
    refusals,
    signing,
    waiting,
)
from tang_attest.web.gate.bodies import LIMITER, expect_later
from tang_attest.web.gate.limits import Limiter
from tang_attest.web.problems import CODE, MethodNotAllowed, hide_server, status_of

VIEWER, APPROVER, ADMIN = OperatorRole.VIEWER, OperatorRole.APPROVER, OperatorRole.ADMIN

#: Headers of every answer.
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With no-referrer, browsers would send the origin of a form as null.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_HSTS: Final = "max-age=31536000"
_log = structlog.get_logger("console")

Answer = Callable[[Desk, Visit], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class ConsoleRoute:
    """One route: ``role`` is the least that its visitors need; ``None`` is for those who sign in."""

    method: str
    path: str
    role: OperatorRole | None
    answer: Answer


PAGES: Final = (
    ConsoleRoute("GET", "/", VIEWER, waiting.show),
    ConsoleRoute("GET", "/machines", VIEWER, machines.show_list),
    ConsoleRoute("GET", "/machines/{name}", VIEWER, machines.show),
    ConsoleRoute("GET", "/machines/{name}/refusal", VIEWER, machines.lead_to_refusal),
    ConsoleRoute("POST", "/machines/{name}/suspend", APPROVER, machines.suspend),
    ConsoleRoute("GET", "/refusals/{number:[0-9]{1,15}}", VIEWER, refusals.show),
    ConsoleRoute("POST", "/refusals/{number:[0-9]{1,15}}/dismiss", APPROVER, refusals.dismiss),
    ConsoleRoute("GET", "/policies", VIEWER, policies.show_list),
    ConsoleRoute("GET", "/policies/{name}", VIEWER, policies.show),
    ConsoleRoute("POST", "/policies/{name}/dry-run", VIEWER, policies.dry_run),
    ConsoleRoute("POST", "/policies/{name}/retire", ADMIN, policies.retire),
    ConsoleRoute("POST", "/policies/{name}/distrust", ADMIN, policies.distrust),
    ConsoleRoute("POST", "/policies/{name}/rollout/stop", APPROVER, policies.stop_rollout),
    ConsoleRoute("GET", "/audit", VIEWER, audit.show),
    ConsoleRoute("GET", "/audit.csv", VIEWER, audit.download),
    ConsoleRoute("POST", "/audit/check", VIEWER, audit.check),
    ConsoleRoute("GET", "/enroll", ADMIN, enroll.show),
    ConsoleRoute("GET", "/operators", ADMIN, operators.show),
    ConsoleRoute("POST", "/operators/{name}/sign-out", ADMIN, operators.sign_out),
    ConsoleRoute("POST", "/acts", VIEWER, acts.prepare),
    ConsoleRoute("POST", "/acts/{id}", VIEWER, acts.perform),
    ConsoleRoute("GET", "/sign-in", None, signing.show),
    ConsoleRoute("POST", "/sign-in", None, signing.sign_in),
    ConsoleRoute("POST", "/sign-out", VIEWER, signing.sign_out),
    ConsoleRoute("GET", "/register", None, signing.show_registration),
    ConsoleRoute("POST", "/register", None, signing.begin_registration),
    ConsoleRoute("POST", "/register/passkey", None, signing.register),
)


def make_console(desk: Desk, limiter: Limiter | None = None) -> web.Application:
    """Return the aiohttp application of the console."""
    events, limits = LiveEvents(desk), limiter or Limiter()

    @web.middleware
    async def logged(request: web.Request, handler: Handler) -> web.StreamResponse:
        if desk.forwarded and (address := client_of(request)) is not None:
            request = request.clone(remote=address)
        request[LIMITER] = limits
        return await _logged(desk, request, handler)

    app = web.Application(middlewares=[logged])
    app.on_response_prepare.append(hide_server)
    app.on_response_prepare.append(partial(_add_headers, desk.origin))
    app.on_shutdown.append(events.close)
    app.cleanup_ctx.append(partial(_watched, events))
    for name in STATIC:
        app.router.add_get(f"/static/{name}", partial(_send_static, name))
    for each in PAGES:
        app.router.add_route(each.method, each.path, partial(_visit, desk, each), expect_handler=expect_later)
        if each.method == "GET":
            app.router.add_route("HEAD", each.path, partial(_visit, desk, each))
    app.router.add_get(
        "/events",
        partial(_visit, desk, ConsoleRoute("GET", "/events", VIEWER, events.answer)),
        allow_head=False,
    )
    return app


async def _watched(events: LiveEvents, _app: web.Application) -> AsyncIterator[None]:
    async with events.watching():
        yield


async def _send_static(name: str, _request: web.Request) -> web.Response:
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return web.Response(body=static(name), content_type=STATIC[name], charset="utf-8", headers=headers)


async def _add_headers(origin: str, _request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)
    if origin.startswith("https:"):
        response.headers["Strict-Transport-Security"] = _HSTS
    response.headers.setdefault("Cache-Control", "no-store")


async def _visit(desk: Desk, route: ConsoleRoute, request: web.Request) -> web.StreamResponse:
    """Answer a request of *route* once its session, role, origin and token are in order."""
    if request.method == "POST":
        require_origin(request, desk.origin)
    found = await session_of(request, desk.sign_in)
    require_role(found, route.role)
    caller = Caller(request.remote, request[_REQUEST_ID])
    form = SentForm()
    if request.method == "POST":
        form = await read_form(request)
        if route.role is not None:
            require_token(found, form)
    return await route.answer(desk, Visit(request=request, caller=caller, found=found, form=form))


_REQUEST_ID: Final = web.RequestKey("request-id", str)


async def _logged(desk: Desk, request: web.Request, handler: Handler) -> web.StreamResponse:
    request[_REQUEST_ID] = secrets.token_hex(8)
    response = await _answered(desk, request, handler)
    code = response.get(CODE, "ok")
    resource = request.match_info.route.resource
    level = _log.warning if response.status >= 500 else _log.info
    level(
        "request",
        request_id=request[_REQUEST_ID],
        address=request.remote,
        method=request.method[:16],
        page=None if resource is None else resource.canonical,
        status=response.status,
        code=code,
    )
    return response


async def _answered(desk: Desk, request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        request[LIMITER].admit(request.remote)
        with request[LIMITER].work():
            return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        problem: TangAttestError = MethodNotAllowed(request.method, sorted(error.allowed_methods))
    except web.HTTPException:
        problem = NotFound("not-found", "The console has no such page.")
    except TangAttestError as expected:
        problem = expected
    except Exception:  # noqa: BLE001 - the next line says why
        # A defect of ours: the visitor learns nothing, the log learns everything.
        _log.exception("defect", request_id=request[_REQUEST_ID])
        problem = Unavailable("internal", "The server failed to handle the request.")
    return error_page(desk, request, problem)


def error_page(desk: Desk, request: web.Request, error: TangAttestError) -> web.Response:
    """Return the page about *error*: one sentence, one action; a page that takes a session leads to the sign-in."""
    if error.code == "sign-in-required" and request.method in ("GET", "HEAD"):
        response = _ask_to_sign_in(request)
    else:
        values = {
            "now": desk.clock.now(),
            "session": None,
            "here": "",
            "title": _TITLES.get(error.code, "This did not work"),
            "sentence": error.sentence,
            "action": error.action,
            "code": error.code,
            "request_id": request[_REQUEST_ID],
            "link": "/sign-in" if error.code == "sign-in-required" else "/",
            "refresh": None,
        }
        response = page("message.html", values, status=_status(error))
        if isinstance(error, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(error.allowed)
    response[CODE] = error.code
    return response


_TITLES: Final = {
    "not-found": "There is no such page",
    "role-missing": "This takes another role",
    "sign-in-required": "Sign in first",
    "unavailable": "The database is away",
}


def _status(error: TangAttestError) -> int:
    return 401 if error.code == "sign-in-required" else status_of(error)


def _ask_to_sign_in(request: web.Request) -> web.Response:
    """Lead to the sign-in; a link of another site first leads to itself, and then carries the cookie."""
    if comes_from_elsewhere(request):
        return signing.landing(request)
    target = "" if request.rel_url.path == "/" else f"?next={quote(str(request.rel_url), safe='')}"
    return web.Response(status=303, headers={"Location": f"/sign-in{target}"})
