"""The page of operators, for administrators."""

from __future__ import annotations

from aiohttp import web

from tang_attest.web.console.desk import Desk
from tang_attest.web.console.guard import Visit
from tang_attest.web.console.rendering import page
from tang_attest.web.console.routes.frame import frame
from tang_attest.web.console.routes.machines import named


async def show(desk: Desk, visit: Visit) -> web.Response:
    """Show the operators, their passkeys and open sessions."""
    found = await desk.use.operators(visit.author).list_operators()
    return page("operators.html", {**frame(desk, visit, "Operators"), "operators": found})


async def sign_out(desk: Desk, visit: Visit) -> web.Response:
    """End every session of an operator.  Raises ``not-found``."""
    await desk.use.operators(visit.author).sign_out(named(visit))
    return web.Response(status=303, headers={"Location": "/operators"})
