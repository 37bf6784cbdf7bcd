"""The whole story without a browser: refused, seen, approved with a passkey, opened, recorded."""

from __future__ import annotations

import json
from typing import Any

from tests.attester import Attester
from tests.server import Server
from tests.web.console.conftest import Enter
from tests.web.console.visitor import Visitor


async def refuse(server: Server, attester: Attester, name: str = "pi-b") -> str:
    """Enroll a machine and let it boot something else; its kid."""
    kid = await server.enroll(attester, name)
    attester.reset_count += 1
    attester.pcrs["sha256"][4] = b"\x04" * 32
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    return kid


async def test_a_refused_boot_is_approved_and_opens(server: Server, enter: Enter) -> None:
    """One entry, one page, one signature; the page then tells of the machine's next attempt."""
    attester = Attester()
    kid = await refuse(server, attester)
    visitor = await enter("approver")
    shown = await visitor.get("/")
    assert "pi-b was refused" in shown.text
    assert "PCR 4 not as approved" in shown.text
    refusal = await visitor.get("/refusals/1")
    done = await visitor.act(next(refusal.forms_about("approve")))
    assert (done.status, done.headers["Location"]) == (303, "/refusals/1"), done.text
    assert "It waits for its next attempt" in (await visitor.get("/refusals/1")).text
    assert "pi-b may boot" in (await visitor.get("/")).text
    server.clock.advance(seconds=9)
    assert (await server.unlock(attester, kid)).status == 200
    assert "Opened, 9 s later." in (await visitor.get("/refusals/1")).text
    assert "Nothing waits" in (await visitor.get("/")).text
    state = (await server.store.policies.get_policy("pi-b")).states[-1]
    assert (state.created_by, state.limits.device) == ("console:approver", "pi-b")


async def test_the_same_difference_is_one_entry_and_one_signature(server: Server, enter: Enter) -> None:
    """Two machines under one policy with the same new value."""
    attesters = {"pi-a": Attester(), "pi-b": Attester()}
    kids = {}
    for name, attester in attesters.items():
        terms: dict[str, Any] = {} if name == "pi-a" else {"policy": "pi-a"}
        kids[name] = await server.enroll(attester, name, **terms)
    for name, attester in attesters.items():
        attester.reset_count += 1
        attester.pcrs["sha256"][4] = b"\x04" * 32
        server.clock.advance(seconds=1)
        assert (await server.unlock(attester, kids[name])).code == "pcr-mismatch"
    visitor = await enter("approver")
    shown = await visitor.get("/")
    assert "2 machines were refused, with the same difference" in shown.text
    form = next((await visitor.get("/refusals/2")).forms_about("approve"))
    assert [value for name, value in form.fields if name == "boot"] == ["pi-b:2", "pi-a:1"]
    assert (await visitor.act(form)).status == 303
    for name, attester in attesters.items():
        assert (await server.unlock(attester, kids[name])).status == 200


async def test_a_refused_boot_is_dismissed(server: Server, enter: Enter) -> None:
    """Without a signature: nothing opens by it."""
    await refuse(server, Attester())
    visitor = await enter("approver")
    form = (await visitor.get("/refusals/1")).form("/refusals/1/dismiss")
    assert (await visitor.send(form)).status == 303
    gone = await visitor.get("/refusals/1")
    assert (gone.status, "observation-missing" in gone.text) == (404, True)
    (_, entry) = next(iter(await server.store.audit.list_audit("pi-b", 1)))
    assert (entry.event, entry.actor) == ("observation dismiss", "console:approver")


async def test_an_unlock_waits_for_a_person(server: Server, enter: Enter) -> None:
    """A policy that asks a person each time: the console allows, and the machine opens."""
    from tang_attest.protocol.conditions import Conditions

    attester = Attester()
    kid = await server.enroll(attester)
    await server.conditions.set("pi-b", Conditions(approval=True))
    attester.reset_count += 1
    assert (await server.unlock(attester, kid)).code == "approval-required"
    visitor = await enter("approver")
    assert "pi-b asks to unlock" in (await visitor.get("/")).text
    machine = await visitor.get("/machines/pi-b")
    form = next(machine.forms_about("allow"))
    assert (await visitor.act(form, {"minutes": "30"})).status == 303
    assert "Allowed to unlock" in (await visitor.get("/machines/pi-b")).text
    assert (await server.unlock(attester, kid)).status == 200


async def test_a_machine_is_suspended_resumed_and_removed(server: Server, enter: Enter) -> None:
    """Suspending takes a reason, resuming a signature, removing an administrator and a signature."""
    attester = Attester()
    kid = await server.enroll(attester)
    visitor = await enter("admin")
    form = (await visitor.get("/machines/pi-b")).form("/machines/pi-b/suspend")
    assert (await visitor.send(form)).status == 400
    assert (await visitor.send(form, {"reason": "lost on a train"})).status == 303
    attester.reset_count += 1
    assert (await server.unlock(attester, kid)).code == "device-suspended"
    listed = (await visitor.get("/")).text
    assert listed.count("pi-b is suspended") == 1
    assert "lost on a train" in listed
    assert (
        await visitor.act(next((await visitor.get("/machines/pi-b")).forms_about("resume")))
    ).status == 303
    assert (await server.unlock(attester, kid)).status == 200
    removed = await visitor.act(next((await visitor.get("/machines/pi-b")).forms_about("remove")))
    assert removed.headers["Location"] == "/machines"
    assert (await visitor.get("/machines/pi-b")).status == 404


async def test_a_token_is_shown_once_and_the_machine_appears(server: Server, enter: Enter) -> None:
    """With the command to paste; the record and the log do not have the token."""
    visitor = await enter("admin")
    form = next((await visitor.get("/enroll")).forms_about("token"))
    made = await visitor.act(form, {"name": "pi-z", "minutes": "60", "unverified": "yes"})
    assert made.status == 200
    token = made.body.split('data-testid="token">')[1].split("<")[0]
    assert len(token) == 43
    assert "clevis luks bind" in made.text
    assert (await visitor.get("/enroll")).body.count(token) == 0
    attester = Attester()
    begun = await server.begin(attester, "pi-z", token)
    assert begun.status == 200, begun
    done = await server.finish(attester, "pi-z", begun)
    assert done.code in ("ok", "uncovered"), done
    record = json.dumps([entry.members() for _, entry in await server.store.audit.list_audit()], default=str)
    assert token not in record
    assert "pi-z" in (await visitor.get("/enroll")).text


async def test_a_passkey_is_registered_from_the_link(server: Server, stranger: Visitor) -> None:
    """The page takes the code that the link has behind its #, once, and leads to the sign-in."""
    from tang_attest.ports.operators import OperatorRole
    from tests.service.operators.authenticator import Passkey

    link = await server.operators.add("ada", OperatorRole.VIEWER)
    stranger.passkey = Passkey()
    first = (await stranger.get("/register")).form("/register")
    asked = await stranger.send(first, {"token": link.token})
    form = asked.form("/register/passkey")
    assert form.options is not None
    credential = json.dumps(stranger.passkey.create(form.options))
    done = await stranger.send(form, {"credential": credential})
    assert done.headers["Location"] == "/sign-in", done.text
    again = await stranger.send(first, {"token": link.token})
    assert (again.status >= 400, "link-used" in again.text) == (True, True)
    entered = await stranger.sign_in()
    assert entered.headers["Location"] == "/"
    assert (await stranger.get("/")).status == 200
