"""The pages of policies."""

from __future__ import annotations

import json

from aiohttp import web

from tang_attest.protocol.changes.dry_run import DryRun
from tang_attest.protocol.reference_state import Life
from tang_attest.web.console.desk import Desk
from tang_attest.web.console.forms import malformed
from tang_attest.web.console.guard import Visit
from tang_attest.web.console.rendering import page
from tang_attest.web.console.routes.frame import frame
from tang_attest.web.console.routes.machines import named
from tang_attest.web.console.routes.paging import SIZE, asked, listing
from tang_attest.web.console.views import policy as view

#: Names of machines beside each state.
_NAMES = 3


async def show_list(desk: Desk, visit: Visit) -> web.Response:
    """Show a page of policies, by name."""
    found = await desk.store.attention.page_policies(asked(visit)[0], SIZE + 1, asked(visit)[1])
    rows = listing(visit, found, [each.name for each in found])
    return page("policies.html", {**frame(desk, visit, "Policies"), "list": rows, "Life": Life})


async def show(desk: Desk, visit: Visit) -> web.Response:
    """Show one policy.  Raises ``not-found``."""
    return await _show(desk, visit, None)


async def _show(desk: Desk, visit: Visit, result: DryRun | None) -> web.Response:
    name = named(visit)
    policy = await desk.store.policies.get_policy(name)
    states = view.shown_states(policy)
    users = await desk.store.attention.state_users(name, [state.label for state in states], _NAMES)
    rollout = await desk.store.policies.get_rollout(name)
    picture = None
    if rollout is not None and not rollout.over:
        picture = view.picture(rollout, await desk.store.attention.rollout_counts(rollout.id))
    values = {
        **frame(desk, visit, f"Policy {policy.name}"),
        "policy": policy,
        "rows": view.rows(states, users, rollout, desk.clock.now()),
        "hidden": len(policy.states) - len(states),
        "unseen": users[None],
        "picture": picture,
        "rules": None if policy.rules is None else json.dumps(policy.rules.as_json(), indent=2),
        "result": result,
        "Life": Life,
        "pending": [each for each in await desk.acts.pending() if name in each.policies],
    }
    return page("policy.html", values)


async def dry_run(desk: Desk, visit: Visit) -> web.Response:
    """Show the effect of a change if each machine booted as it did last; nothing is changed.

    Raises ``form-malformed``, ``change-invalid``.
    """
    name = named(visit)
    text = visit.form.text("change")
    if label := visit.form.text("retire"):
        document: object = {"retire": [label]}
    else:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise malformed("The change is not JSON.") from None
    changes = desk.use.policy_changes(visit.author)
    return await _show(desk, visit, await changes.dry_run(name, await changes.parse(name, document)))


async def retire(desk: Desk, visit: Visit) -> web.Response:
    """Let a state count no more.  Raises ``not-found``, ``state-changed``, ``state-in-use``."""
    name = named(visit)
    await desk.use.reference_values(visit.author).retire(name, visit.form.text("label"))
    return _back(name)


async def distrust(desk: Desk, visit: Visit) -> web.Response:
    """Let announced values wait for an approval again.  Raises ``not-found``."""
    name = named(visit)
    await desk.use.reference_values(visit.author).trust_predictions(name, False)
    return _back(name)


async def stop_rollout(desk: Desk, visit: Visit) -> web.Response:
    """Let a rollout reach no further machine.  Raises ``not-found``, ``rollout-changed``."""
    name = named(visit)
    why = visit.form.text("why")
    if len(why) > 200 or not why.isprintable():
        raise malformed("A reason has at most 200 printable characters.")
    await desk.use.rollouts(visit.author).stop(name, why or None)
    return _back(name)


def _back(name: str) -> web.Response:
    return web.Response(status=303, headers={"Location": f"/policies/{name}"})
