"""The application: which target goes where, limits, request ids, and the single place that turns errors into answers."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from tang_attest.errors import Malformed, NotFound, TangAttestError, Unavailable
from tang_attest.service.caller import Caller
from tang_attest.service.plain_tang import KeySetProvider, current_keys
from tang_attest.web import tang_routes
from tang_attest.web.admin_routes import PREFIX as ADMIN_PREFIX
from tang_attest.web.admin_routes import AdminRoutes
from tang_attest.web.attest_routes import AttestRoutes
from tang_attest.web.problems import CODE, problem
from tang_attest.web.tang_routes import handle_adv, handle_rec

#: An unlock request with the largest event log has about 180 KiB (docs/protocol.md, 3.3, step 1).
MAX_BODY: Final = 256 * 1024
#: aiohttp's own limit on the request line; longer targets than Tang's 4,095 still get a proper 414 up to here.
MAX_LINE: Final = 16 * 1024

_log = structlog.get_logger("web")

_Handler = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]
_KeyHandler = Callable[[web.Request, Caller, str], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Site:
    """What is served.

    ``attest`` are the attested routes, or ``None`` for a mere tangd; ``admin`` the admin API, if it is on here;
    ``advertised`` the keys that ``/adv`` shows;
    ``plain`` the keys that answer without evidence, or ``None`` (the default) when none does.  ``endpoint`` is a
    path before every route; exchanges run in ``executor``.
    """

    attest: AttestRoutes | None
    advertised: KeySetProvider
    plain: KeySetProvider | None
    executor: Executor
    endpoint: str = ""
    admin: AdminRoutes | None = None


_ABOUT_KEY: Final = re.compile(r"/attest/(adv|announce|agent)/([0-9A-Za-z_-]+)(/evidence)?")
_AGENT: Final = "/attest/agent/"


def make_app(site: Site) -> web.Application:
    """The aiohttp application for *site*."""
    app = web.Application(client_max_size=MAX_BODY)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await _answer(site, request)

    # Tang's routes are matched on the raw target, which aiohttp's router has already decoded: one route takes all.
    # A dot would leave out line ends, for aiohttp to answer.
    app.router.add_route("*", r"/{target:[\s\S]*}", answer)
    return app


async def _answer(site: Site, request: web.Request) -> web.StreamResponse:
    caller = Caller(request.remote, secrets.token_hex(8))
    response = await _respond(site, request, caller)
    level = _log.warning if response.status >= 500 else _log.info
    if response.status < 300 and _AGENT in request.raw_path:
        level = _log.debug  # a thousand machines that are well are no news
    level(
        "request",
        request_id=caller.request_id,
        address=caller.address,
        method=request.method,
        target=request.raw_path[:200],
        status=response.status,
        code=response.get(CODE, "ok"),
    )
    return response


async def _respond(site: Site, request: web.Request, caller: Caller) -> web.StreamResponse:
    try:
        return await _route(site, request, caller)
    except web.HTTPRequestEntityTooLarge:
        error: TangAttestError = Malformed("request-too-large", f"The body has more than {MAX_BODY} bytes.")
    except TangAttestError as expected:
        error = expected
    except Exception:  # noqa: BLE001 - the next line says why
        # A defect of ours: the client learns nothing, the log learns everything, nothing is released.
        _log.exception("defect", request_id=caller.request_id)
        error = Unavailable("internal", "The server failed to handle the request.")
    return problem(error, caller.request_id)


async def _route(site: Site, request: web.Request, caller: Caller) -> web.StreamResponse:
    target, admin_prefix = request.raw_path, f"{site.endpoint}{ADMIN_PREFIX}"
    if site.admin is not None and target.startswith(f"{admin_prefix}/"):
        return await site.admin.answer(request, target.removeprefix(admin_prefix), caller)
    if site.attest is not None and target.startswith(f"{site.endpoint}/attest/"):
        return await _attest(site.attest, request, target.removeprefix(site.endpoint), caller)
    return await _tang(site, request, target, caller)


async def _tang(site: Site, request: web.Request, target: str, caller: Caller) -> web.StreamResponse:
    route = tang_routes.match(request.method, target, site.endpoint)
    if isinstance(route, int):
        return web.Response(status=route)
    if route.kid is None or route.name == "adv":
        return await handle_adv(site.advertised, route.kid)
    if site.plain is not None and (site.attest is None or (await current_keys(site.plain)).find(route.kid)):
        return await handle_rec(site.plain, route.kid, await request.read(), site.executor)
    if site.attest is None:
        return web.Response(status=404)
    return await site.attest.rec(request, caller, route.kid)


async def _attest(
    routes: AttestRoutes, request: web.Request, target: str, caller: Caller
) -> web.StreamResponse:
    posts: dict[str, _Handler] = {"/attest/enroll": routes.begin, "/attest/enroll/finish": routes.finish}
    if handler := posts.get(target):
        return await handler(request, caller) if request.method == "POST" else web.Response(status=405)
    if about := _ABOUT_KEY.fullmatch(target):
        about_keys: dict[str, tuple[str, _KeyHandler]] = {
            "adv": ("GET", routes.advertise),
            "announce": ("POST", routes.announce),
            "agent": ("POST", routes.poll),
            "agent/evidence": ("POST", routes.prove),
        }
        method, about_key = about_keys.get(about[1] + (about[3] or ""), (None, None))
        if about_key is not None:
            if request.method != method:
                return web.Response(status=405)
            return await about_key(request, caller, about[2])
    raise NotFound("not-found", "There is nothing at this address.")
