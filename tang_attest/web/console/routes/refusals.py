"""The page of one refused boot, on which it is approved or dismissed."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from tang_attest.web.console.desk import Desk
from tang_attest.web.console.guard import Visit
from tang_attest.web.console.rendering import page
from tang_attest.web.console.routes.frame import frame
from tang_attest.web.console.routes.waiting import LIMIT
from tang_attest.web.console.views import refusal as view
from tang_attest.web.console.views.common import parts_to_accept, pcrs
from tang_attest.web.console.views.waiting import alike

#: Entries of the machine that are read for what came after the refusal.
_ENTRIES: Final = 50


async def show(desk: Desk, visit: Visit) -> web.Response:
    """Show one refused boot.  Raises ``observation-missing``."""
    number = int(visit.request.match_info["number"])
    observation = await desk.explanations.find(number)
    found = await desk.explanations.explain(observation)
    now = desk.clock.now()
    groups = alike(await desk.store.attention.attention(LIMIT), now)
    group = next((each for each in groups if any(boot.id == number for _, boot in each.machines)), None)
    entries = [entry for _, entry in await desk.store.audit.list_audit(observation.device, _ENTRIES)]
    changes, hidden = await asyncio.to_thread(view.changes, found)
    approved = not found.reasons
    values = {
        **frame(desk, visit, f"{observation.device} was refused"),
        "found": found,
        "seen": observation,
        "subject": pcrs(found.differences),
        "values": view.values(found),
        "changes": changes,
        "hidden": hidden,
        "approved": approved,
        "sequel": view.sequel(observation, entries),
        "others": [(each.name, boot.id) for each, boot in group.machines if boot.id != number]
        if group
        else [],
        "pending": [each for each in await desk.acts.pending() if _concerns(each.act, number)],
        "parts": parts_to_accept(),
    }
    return page("refusal.html", values)


def _concerns(act: object, number: int) -> bool:
    return any(observation == number for _, observation in getattr(act, "boots", ()))


async def dismiss(desk: Desk, visit: Visit) -> web.Response:
    """Forget a refused boot that nobody is going to approve.  Raises ``observation-missing``."""
    observation = await desk.explanations.find(int(visit.request.match_info["number"]))
    await desk.use.reference_values(visit.author).dismiss([observation])
    return web.Response(status=303, headers={"Location": "/"})
