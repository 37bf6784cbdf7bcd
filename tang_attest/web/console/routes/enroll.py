"""The page that makes an enrollment token, and shows the machine appearing."""

from __future__ import annotations

import json
from typing import Final

from aiohttp import web

from tang_attest.ports.audit import AuditSearch
from tang_attest.web.console.desk import Desk
from tang_attest.web.console.guard import Visit
from tang_attest.web.console.rendering import page
from tang_attest.web.console.routes.frame import frame

#: Enrollments on the page.
_SHOWN: Final = 10


async def show(desk: Desk, visit: Visit) -> web.Response:
    """Show the form, and the newest enrollments."""
    return page("enroll.html", {**await _values(desk, visit), "token": None})


async def show_token(desk: Desk, visit: Visit, token: str) -> web.Response:
    """Show *token*, this once, with the commands to paste."""
    return page("enroll.html", {**await _values(desk, visit), "token": token})


async def _values(desk: Desk, visit: Visit) -> dict[str, object]:
    search = AuditSearch(events=("enroll",))
    found = await desk.store.audit.list_audit(None, _SHOWN, None, search)
    thumbprints = await desk.thumbprints()
    pin = {
        "url": desk.machines,
        "name": "NAME",
        "token": "@/root/token",
        **({"thp": thumbprints[0]} if thumbprints else {}),
    }
    return {
        **frame(desk, visit, "Enroll"),
        "enrolled": [entry for _, entry in found],
        "pin": json.dumps(pin, separators=(",", ":")),
        "machines": desk.machines,
    }
