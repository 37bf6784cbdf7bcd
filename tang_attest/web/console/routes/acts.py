"""Signed acts: a form names one, a page shows its text, and a passkey signs it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from tang_attest.errors import NotFound
from tang_attest.protocol.coverage import BootPart
from tang_attest.service.operators import acts
from tang_attest.service.operators.acts import Act
from tang_attest.service.operators.signed_acts import SignedRequest
from tang_attest.web.console.desk import Desk
from tang_attest.web.console.forms import SentForm, local_path, malformed
from tang_attest.web.console.guard import Visit
from tang_attest.web.console.rendering import page
from tang_attest.web.console.routes.enroll import show_token
from tang_attest.web.console.routes.frame import frame
from tang_attest.web.console.views.acts import titled

#: Characters of a credential's JSON.
_MAX_CREDENTIAL: Final = 16 * 1024
#: Machines of one approval.
_MAX_BOOTS: Final = 200
_LIMITS: Final = {"none": None, "30": 30, "60": 60, "480": 480, "1440": 1440}


def act_of(form: SentForm) -> Act:
    """Return the act that *form* names.  Raises ``form-malformed``."""
    if (make := _MAKERS.get(form.text("act"))) is None:
        raise malformed("The form names no act.")
    return make(form)


def _approval(form: SentForm) -> Act:
    boots = tuple(_boot(text) for text in form.all("boot"))
    if not 1 <= len(boots) <= _MAX_BOOTS:
        raise malformed(f"An approval is for 1 to {_MAX_BOOTS} machines.")
    until = form.choice("until", ("retired", "once", *_LIMITS))
    try:
        accepted = tuple(BootPart(text) for text in form.all("accept"))
    except ValueError:
        raise malformed("There is no such part of a boot.") from None
    return acts.ApproveBoots(
        boots=boots,
        only_this_device=form.choice("for", ("machine", "policy")) == "machine",
        once=until == "once",
        minutes=_LIMITS.get(until),
        accepted=accepted,
    )


def _boot(text: str) -> tuple[str, int]:
    device, _, number = text.rpartition(":")
    if not (number.isascii() and number.isdecimal() and len(number) <= 15):
        raise malformed("A refused boot is named by its machine and its number.")
    return device, int(number)


def _token(form: SentForm) -> Act:
    return acts.IssueToken(
        name=form.text("name") or None,
        policy=form.text("policy") or None,
        minutes=form.number("minutes", 5, 30 * 1440),
        machines=form.number("machines", 1, 100_000),
        labels=tuple(form.text("labels").replace(",", " ").split()),
        allow_unverified_ek=form.text("unverified") == "yes",
    )


_MAKERS: Final[Mapping[str, Callable[[SentForm], Act]]] = {
    "approve": _approval,
    "token": _token,
    "announced": lambda form: acts.ApproveAnnounced(form.text("policy"), form.text("label")),
    "reinstate": lambda form: acts.Reinstate(form.text("policy"), form.text("label")),
    "trust": lambda form: acts.TrustPredictions(form.text("policy")),
    "allow": lambda form: acts.AllowUnlock(form.text("device"), form.number("minutes", 1, 7 * 1440)),
    "resume": lambda form: acts.ResumeDevice(form.text("device")),
    "remove": lambda form: acts.RemoveDevice(form.text("device")),
}


async def prepare(desk: Desk, visit: Visit) -> web.Response:
    """Show the text of an act, for the operator to sign.  Raises as :meth:`SignedActs.prepare`."""
    act = await _joined(desk, visit.form) if visit.form.text("act") == "join" else act_of(visit.form)
    request = await desk.acts.prepare(visit.session, act)
    return page("confirm.html", _values(desk, visit, act, request))


async def _joined(desk: Desk, form: SentForm) -> Act:
    """Return the act that another operator signed, and that waits for one more.  Raises ``not-found``."""
    for approval in await desk.acts.pending():
        if approval.id == form.text("approval"):
            return approval.act
    raise NotFound("not-found", "No such approval waits for an operator.")


def _values(desk: Desk, visit: Visit, act: Act, request: SignedRequest) -> dict[str, object]:
    title, sentence = titled(act)
    return {
        **frame(desk, visit, title),
        "sentence": sentence,
        "request": request,
        "lines": request.text.splitlines(),
        "back": local_path(visit.form.text("back")),
        "dangerous": isinstance(act, acts.RemoveDevice),
    }


def credential_of(form: SentForm) -> dict[str, object]:
    """Return the credential in *form*, the JSON of ``PublicKeyCredential.toJSON()``.  Raises ``form-malformed``."""
    text = form.text("credential")
    if not text:
        raise malformed("The passkey signed nothing; JavaScript has to be on for it.")
    if len(text) > _MAX_CREDENTIAL:
        raise malformed("This is not the answer of a passkey.")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise malformed("This is not the answer of a passkey.")
    return found


async def perform(desk: Desk, visit: Visit) -> web.Response:
    """Run the act that the operator signed.  Raises as :meth:`SignedActs.perform`."""
    number = visit.request.match_info["id"]
    outcome = await desk.acts.perform(visit.session, number, credential_of(visit.form), visit.caller)
    if outcome.token is not None:
        return await show_token(desk, visit, outcome.token)
    return web.Response(status=303, headers={"Location": local_path(visit.form.text("back"))})
