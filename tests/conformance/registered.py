"""Comparison of real answers with the registry of codes: docs/protocol.md, 15.1."""

from __future__ import annotations

import re
from typing import Any, Final

from tang_attest.web.registry import BY_CODE, ROUTES

_TARGETS: Final = {
    route: re.compile(re.escape(request.partition(" ")[2]).replace(r"\{kid\}", "[0-9A-Za-z_-]+"))
    for route, request in ROUTES.items()
}


def route_of(target: str) -> str | None:
    """Return the registry's word for the route of *target*; None for an address that is none of the protocol."""
    return next((route for route, pattern in _TARGETS.items() if pattern.fullmatch(target)), None)


def check_registered(target: str, status: int, content_type: str, body: Any) -> None:
    """Fail unless the code of an answer to *target* is in the registry with its status and its route."""
    if not isinstance(body, dict):
        return
    route = route_of(target)
    if content_type == "application/problem+json" and (route or target.startswith("/attest/")):
        each = BY_CODE.get(body["code"])
        assert each is not None, f"{body['code']} is in no registry ({target})"
        assert status == each.status, f"{body['code']} is {each.status} in the registry, {status} at {target}"
        assert route in each.steps or (route is None and each.code == "not-found"), (
            f"{each.code} is not registered for {target}"
        )
    elif route == "evidence" and body.get("outcome") == "refused":
        assert BY_CODE[body["code"]].verdict, f"{body['code']} is no verdict in the registry"
