"""/healthz (the process answers) and /readyz (it could open a disk)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from tang_attest.errors import TangAttestError
from tang_attest.service.upkeep.readiness import Readiness
from tang_attest.web.problems import hide_server

if TYPE_CHECKING:
    from tang_attest.web.monitoring.metrics import Metrics

_ALIVE: Final = "/healthz"
_READY: Final = "/readyz"


def make_app(metrics: Metrics, health: Health | None) -> web.Application:
    """Return the application for Prometheus, on an address of its own: /metrics, /healthz and /readyz."""
    app = web.Application()
    app.on_response_prepare.append(hide_server)

    async def show(_request: web.BaseRequest) -> web.Response:
        return web.Response(body=await metrics.text(), headers={"Content-Type": metrics.content_type})

    app.router.add_get("/metrics", show)
    if health is not None:
        app.router.add_get(_ALIVE, health.alive)
        app.router.add_get(_READY, health.ready)
    return app


@dataclass(frozen=True, slots=True)
class Health:
    """The health routes; they are open to everybody, so an answer holds a code and nothing else."""

    readiness: Readiness

    def find(self, target: str) -> Callable[[web.BaseRequest], Awaitable[web.Response]] | None:
        """Return the handler of *target*, if it is one of the two."""
        return {_ALIVE: self.alive, _READY: self.ready}.get(target)

    async def alive(self, _request: web.BaseRequest) -> web.Response:
        """Answer 200: this process answers."""
        return _answer(200, "ok")

    async def ready(self, _request: web.BaseRequest) -> web.Response:
        """Answer 200, or 503 with the code of the missing part: the database, its schema, the keys."""
        try:
            await self.readiness.check()
        except TangAttestError as error:
            return _answer(503, error.code)
        return _answer(200, "ok")


def _answer(status: int, code: str) -> web.Response:
    return web.Response(
        status=status,
        body=json.dumps({"code": code}).encode(),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
