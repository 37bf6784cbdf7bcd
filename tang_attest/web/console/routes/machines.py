"""The pages of machines."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from tang_attest.errors import Malformed, NotFound
from tang_attest.protocol.enrollment import check_name
from tang_attest.web.console.desk import Desk
from tang_attest.web.console.forms import malformed
from tang_attest.web.console.guard import Visit
from tang_attest.web.console.rendering import page
from tang_attest.web.console.routes.frame import frame
from tang_attest.web.console.routes.paging import SIZE, asked, listing
from tang_attest.web.console.views import machine as view
from tang_attest.web.console.views.common import WAITS_FOR_PERSON

#: Entries of the time line.
_ENTRIES: Final = 40


async def show_list(desk: Desk, visit: Visit) -> web.Response:
    """Show a page of machines, by name."""
    found = await desk.store.attention.page_devices(asked(visit)[0], SIZE + 1, asked(visit)[1])
    rows = listing(visit, [(each, view.condition(each)) for each in found], [each.name for each in found])
    return page("machines.html", {**frame(desk, visit, "Machines"), "list": rows})


async def show(desk: Desk, visit: Visit) -> web.Response:
    """Show one machine.  Raises ``not-found``."""
    name = named(visit)
    device = await desk.store.devices.get_device(name)
    evidence = await desk.store.policies.get_evidence(name, permitted=True)
    refusals = await desk.store.policies.list_observations(name, 1)
    entries = [entry for _, entry in await desk.store.audit.list_audit(name, _ENTRIES)]
    steps = view.time_line(entries)
    grade, reasons = view.grade_of(device)
    values = {
        **frame(desk, visit, device.name),
        "device": device,
        "condition": view.condition(device),
        "grade": grade,
        "reasons": reasons,
        "steps": steps,
        "strip": view.strip(steps),
        "values": []
        if evidence is None
        else [(pcr, value.hex()) for pcr, value in sorted(evidence.snapshot.values.items())],
        "evidence": evidence,
        "refusal": next(iter(refusals), None),
        "asks": device.last_code in WAITS_FOR_PERSON,
        "pending": [each for each in await desk.acts.pending() if getattr(each.act, "device", None) == name],
    }
    return page("machine.html", values)


async def lead_to_refusal(desk: Desk, visit: Visit) -> web.Response:
    """Lead to the newest refused boot of a machine, and to the machine if there is none: messages have this link."""
    name = named(visit)
    newest = await desk.store.policies.list_observations(name, 1)
    target = f"/refusals/{newest[0].id}" if newest else f"/machines/{name}"
    return web.Response(status=303, headers={"Location": target})


async def suspend(desk: Desk, visit: Visit) -> web.Response:
    """Suspend a machine.  Raises ``not-found``, ``device-suspended``, ``form-malformed``."""
    name = named(visit)
    reason = visit.form.text("reason")
    if not 1 <= len(reason) <= 200 or not reason.isprintable():
        raise malformed("A reason has 1 to 200 printable characters.")
    await desk.use.devices(visit.author).suspend(name, reason)
    return web.Response(status=303, headers={"Location": f"/machines/{name}"})


def named(visit: Visit) -> str:
    """Return the name in the address.  Raises ``not-found`` for one that nothing can have."""
    try:
        return check_name(visit.request.match_info["name"])
    except Malformed:
        raise NotFound("not-found", "Nothing has this name.") from None
