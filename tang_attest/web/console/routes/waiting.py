"""The page of what waits for a person."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tang_attest.web.console.desk import Desk
from tang_attest.web.console.guard import Visit
from tang_attest.web.console.rendering import page
from tang_attest.web.console.routes.frame import frame
from tang_attest.web.console.views import waiting as view
from tang_attest.web.console.views.common import counted

#: Rows of each kind that are read; a longer list says so.
LIMIT: Final = 200
_SHOWN: Final = 50


async def show(desk: Desk, visit: Visit) -> web.Response:
    """Show the list."""
    found = await desk.store.attention.attention(LIMIT)
    now = desk.clock.now()
    entries = view.entries(found, await desk.acts.pending(), now)
    more = {kind: count for kind, count in found.counts.items() if count > LIMIT}
    values = {
        **frame(desk, visit, "Waiting"),
        "entries": entries[:_SHOWN],
        "hidden": max(0, len(entries) - _SHOWN),
        "more": [counted(count, "row", f"{kind} in all") for kind, count in more.items()],
        "summary": counted(len(entries), "thing waits", "things wait") if entries else "Nothing waits",
    }
    return page("waiting.html", values)
