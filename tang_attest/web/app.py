"""The application: routing, limits, request ids, and the single place that turns errors into answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
from aiohttp import web

from tang_attest.errors import TangAttestError, Unavailable
from tang_attest.service.audit.actors import Caller
from tang_attest.service.tang.plain import BODY_LIMIT, KeySetProvider, current_keys
from tang_attest.web import tang_routes
from tang_attest.web.admin import PREFIX as ADMIN_PREFIX
from tang_attest.web.gate.bodies import LIMITER, check_encoding, check_expectation, read_body
from tang_attest.web.gate.limits import Limiter
from tang_attest.web.gate.tls import shown_name
from tang_attest.web.monitoring.health import Health
from tang_attest.web.problems import CODE, ROUTE, MethodNotAllowed, problem
from tang_attest.web.tang_routes import handle_adv, handle_rec

if TYPE_CHECKING:  # slow to load, and a server without them does not
    from tang_attest.web.admin.routes import AdminRoutes
    from tang_attest.web.attest_routes import AttestRoutes
    from tang_attest.web.monitoring.metrics import Metrics

#: aiohttp's own limit on the request line; longer targets than Tang's 4,095 still get a proper 414 up to
#: here.
MAX_LINE: Final = 16 * 1024

_log = structlog.get_logger("web")

#: Returns the answer to a request, and raises nothing.
Answerer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Site:
    """The routes of a server, and the keys and limits behind them.

    ``attest`` are the attested routes, or ``None`` for a mere tangd.  ``admin`` is the admin API, if it is
    on.  ``advertised`` are the keys that ``/adv`` shows; ``plain`` are those that answer without evidence, or
    ``None`` when none does.  ``endpoint`` is a path before every route.  ``health`` answers /healthz and /readyz; ``metrics`` counts each request.
    """

    attest: AttestRoutes | None
    advertised: KeySetProvider
    plain: KeySetProvider | None
    endpoint: str = ""
    _: KW_ONLY
    admin: AdminRoutes | None = None
    limiter: Limiter = field(default_factory=Limiter)
    health: Health | None = None
    metrics: Metrics | None = None


_AGENT: Final = "/attest/agent/"


def make_app(site: Site) -> Answerer:
    """Return the function that answers each request of *site*, also one whose target is no path
    (``OPTIONS *``).

    It is none of aiohttp's applications: Tang's routes are matched on the raw target, which aiohttp's router
    has already decoded.
    """
    return partial(_answer, site)


async def _answer(site: Site, request: web.BaseRequest) -> web.StreamResponse:
    request[LIMITER] = site.limiter
    caller = Caller(request.remote, secrets.token_hex(8))
    started = time.monotonic()
    response = await _respond(site, request, caller)
    code = response.get(CODE, "ok")
    if site.metrics is not None:
        seconds = time.monotonic() - started
        site.metrics.answered(request.get(ROUTE, "none"), response.status, code, seconds)
    level = _log.warning if response.status >= 500 else _log.info
    # Rounds of machines that are well, and requests over the limits, would fill the log.
    if response.status == 429 or (code == "ok" and response.status < 300 and _AGENT in request.raw_path):
        level = _log.debug
    shown = shown_name(request.transport)
    level(
        "request",
        request_id=caller.request_id,
        address=caller.address,
        **({} if shown is None else {"certificate": shown}),
        method=request.method,
        target=request.raw_path[:200],
        status=response.status,
        code=code,
    )
    return response


async def _respond(site: Site, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
    try:
        site.limiter.admit(caller.address)
        check_encoding(request)
        check_expectation(request)
        return await _route(site, request, caller)
    except TangAttestError as expected:
        error: TangAttestError = expected
    except Exception:  # noqa: BLE001 - the next line says why
        # A defect of ours: the client learns nothing, the log learns everything, nothing is released.
        _log.exception("defect", request_id=caller.request_id)
        error = Unavailable("internal", "The server failed to handle the request.")
    return problem(error, caller.request_id)


async def _route(site: Site, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
    target, admin_prefix = request.raw_path, f"{site.endpoint}{ADMIN_PREFIX}"
    if site.admin is not None and target.startswith(f"{admin_prefix}/"):
        request[ROUTE] = "admin"
        with site.limiter.work():
            return await site.admin.answer(request, target.removeprefix(admin_prefix), caller)
    if site.attest is not None and target.startswith(f"{site.endpoint}/attest/"):
        return await _attest(site, site.attest, request, target.removeprefix(site.endpoint), caller)
    if site.health is not None and (check := site.health.find(target.removeprefix(site.endpoint))):
        request[ROUTE] = "health"
        return await check(request)
    with site.limiter.work():
        return await _tang(site, request, target, caller)


async def _tang(site: Site, request: web.BaseRequest, target: str, caller: Caller) -> web.StreamResponse:
    route = tang_routes.match(request.method, target, site.endpoint)
    if isinstance(route, int):
        return tang_routes.unmatched(route, target, site.endpoint)
    request[ROUTE] = route.name
    if route.kid is None or route.name == "adv":
        return await handle_adv(site.advertised, route.kid)
    if site.plain is not None and (site.attest is None or (await current_keys(site.plain)).find(route.kid)):
        return await handle_rec(site.plain, route.kid, await read_body(request, BODY_LIMIT))
    if site.attest is None:
        return web.Response(status=404)
    request[ROUTE] = "unlock"
    site.limiter.admit_about(route.kid, caller.address)
    return await site.attest.rec(request, caller, route.kid)


async def _attest(
    site: Site, routes: AttestRoutes, request: web.BaseRequest, target: str, caller: Caller
) -> web.StreamResponse:
    from tang_attest.web import attest_routes  # loaded by now: *routes* come from there

    route, captured = attest_routes.find(target)
    request[ROUTE] = route.name
    if request.method != route.method:
        raise MethodNotAllowed(request.method, [route.method])
    if kid := captured.get("kid"):
        site.limiter.admit_about(kid, caller.address)
    # A held request comes from a machine that showed a ticket, waits for most of a minute, and does no work.
    with nullcontext() if route.held else site.limiter.work():
        return await route.handler(routes, request, caller, **captured)
