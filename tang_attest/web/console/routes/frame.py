"""Values that every page of a session needs."""

from __future__ import annotations

from tang_attest.ports.operators import OperatorRole
from tang_attest.web.console.desk import Desk
from tang_attest.web.console.guard import Visit


def frame(desk: Desk, visit: Visit, title: str) -> dict[str, object]:
    """Return title, time, session and rights for the layout."""
    session = visit.session
    return {
        "title": title,
        "now": desk.clock.now(),
        "session": session,
        "here": visit.request.path,
        "may_approve": session.role.includes(OperatorRole.APPROVER),
        "may_administer": session.role.includes(OperatorRole.ADMIN),
    }
