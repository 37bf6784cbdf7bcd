"""Routes that stock Tang does not have, and ``/rec`` for keys that belong to a device."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from aiohttp import web

from tang_attest.errors import Malformed, NotFound, Refused
from tang_attest.protocol.challenge import Challenge
from tang_attest.protocol.quote import Evidence
from tang_attest.protocol.values.base64url import b64u
from tang_attest.protocol.values.sizes import MAX_EVENT_LOG
from tang_attest.service.audit.actors import Caller
from tang_attest.service.enrollment.enroll import Enroll
from tang_attest.service.policies.announce import Announce, Announcement
from tang_attest.service.rounds.agents import Agents
from tang_attest.service.tang.server_keys import ServerKeys
from tang_attest.service.unlock.unlock import Unlock
from tang_attest.web.gate.bodies import MAX_APPLICATION, SMALL_BODY, is_small, read_body
from tang_attest.web.problems import CODE, challenge_json, problem
from tang_attest.web.wire import (
    AnnounceBody,
    AttestMember,
    EnrollBody,
    FinishBody,
    PollBody,
    ProveBody,
    SelectionBody,
    parse_json,
    validate,
)

_Understood = TypeVar("_Understood")

#: The answer to a point alone; it is never raised.
_MISSING: Final = Refused("evidence-required", "This key answers only a machine that proves what it booted.")


@dataclass(frozen=True, slots=True)
class AttestRoutes:
    """The handlers; each takes the request's caller, and the ``kid`` that the route captured.

    A client without a known key, token or session is refused before anything of a large body is read or
    decoded.
    """

    unlock: Unlock
    enroll: Enroll
    announcements: Announce
    agents: Agents
    keys: ServerKeys

    async def rec(self, request: web.BaseRequest, caller: Caller, kid: str) -> web.Response:
        """``POST /rec/{kid}`` for a device's key: a challenge, or Y (docs/protocol.md, section 3)."""
        jwk, evidence = await self._about(request, kid, _point_and_evidence)
        if evidence is None:
            return problem(_MISSING, caller.request_id, await self.unlock.challenge(kid))
        try:
            reply = await self.unlock.respond(kid, jwk, evidence, caller)
        except Refused as refusal:
            return await _renewed(refusal, caller, kid, self.unlock.challenge)
        return web.Response(
            body=reply.encode(), content_type="application/jwk+json", headers={"Cache-Control": "no-store"}
        )

    async def begin(self, request: web.BaseRequest, caller: Caller) -> web.Response:
        """``POST /attest/enroll`` (docs/protocol.md, 4.1)."""
        value = parse_json(await read_body(request, MAX_APPLICATION))
        try:
            application = validate(EnrollBody, value).application()
        except Malformed:
            await self.enroll.check_token(value.get("token"))
            raise
        begun = await self.enroll.begin(application, caller)
        challenge = challenge_json(begun.challenge)
        challenge.pop("evidence")
        if begun.log_wanted:
            challenge["event_log_limit"] = MAX_EVENT_LOG
        return _json(
            200,
            {
                "session": begun.session,
                "credential_blob": b64u(begun.activation.credential_blob),
                "encrypted_secret": b64u(begun.activation.encrypted_secret),
                **challenge,
            },
        )

    async def propose(self, request: web.BaseRequest, _caller: Caller) -> web.Response:
        """``POST /attest/enroll/selection`` (docs/protocol.md, 4.1)."""
        value = parse_json(await read_body(request))
        self.enroll.check_session(value.get("session"))
        body = validate(SelectionBody, value)
        session, selection, reasons = await self.enroll.propose(body.session, body.event_log)
        return _json(200, {"session": session, "selection": str(selection), "reason": "; ".join(reasons)})

    async def finish(self, request: web.BaseRequest, caller: Caller) -> web.Response:
        """``POST /attest/enroll/finish`` (docs/protocol.md, 4.2)."""
        value = parse_json(await read_body(request))
        self.enroll.check_session(value.get("session"))
        body = validate(FinishBody, value)
        device = await self.enroll.finish(body.session, body.proof, body.evidence(), caller)
        enrolled = await self.keys.enrolled(device)
        return _json(201, enrolled)

    async def announce(self, request: web.BaseRequest, caller: Caller, kid: str) -> web.Response:
        """``POST /attest/announce/{kid}``: a challenge, or the resulting state (docs/protocol.md, 9)."""
        body = await self._about(request, kid, _announced)
        if body is None:
            return _json(200, challenge_json(await self.announcements.challenge(kid)))
        try:
            state, new = await self.announcements.announce(kid, *body, caller)
        except Refused as refusal:
            return await _renewed(refusal, caller, kid, self.announcements.challenge)
        return _json(201 if new else 200, {"label": state.label, "state": state.life, "known": not new})

    async def poll(self, request: web.BaseRequest, _caller: Caller, kid: str) -> web.Response:
        """``POST /attest/agent/{kid}``: held, then a challenge, or 204 (docs/protocol.md, 10.1)."""
        body = await self._about(request, kid, lambda data: validate(PollBody, parse_json(data)))
        challenge = await self.agents.poll(kid, body.ticket)
        if challenge is None:
            return web.Response(status=204, headers={"Cache-Control": "no-store"})
        return _json(200, {"challenge": challenge_json(challenge)})

    async def prove(self, request: web.BaseRequest, caller: Caller, kid: str) -> web.Response:
        """``POST /attest/agent/{kid}/evidence``: the outcome of the round (docs/protocol.md, 10.2)."""
        evidence = await self._about(
            request, kid, lambda data: validate(ProveBody, parse_json(data)).evidence()
        )
        try:
            ended, ticket = await self.agents.answer(kid, evidence)
        except Refused as refusal:
            return await _renewed(refusal, caller, kid, self.agents.challenge)
        code = ended.reasons[0].code if ended.reasons else "ok"
        response = _json(200, {"outcome": ended.outcome, "code": code, "ticket": ticket})
        response[CODE] = code
        return response

    async def _about(
        self, request: web.BaseRequest, kid: str, understand: Callable[[bytes], _Understood]
    ) -> _Understood:
        """Return the body of a request about *kid*, as *understand* reads it.

        Raises ``key-unknown`` before a large body is read, and in place of any other error of a small one.  A
        small body is read first, because the use case looks the key up anyway, and a second lookup costs more
        than the body.
        """
        if not is_small(request):
            await self.unlock.check_known(kid)
            return understand(await read_body(request))
        body = await read_body(request, SMALL_BODY)
        try:
            return understand(body)
        except Malformed:
            await self.unlock.check_known(kid)
            raise

    async def advertise(self, _request: web.BaseRequest, _caller: Caller, kid: str) -> web.Response:
        """``GET /attest/adv/{kid}`` (docs/protocol.md, section 5)."""
        return web.Response(
            body=await self.keys.device_advertisement(kid), content_type="application/jose+json"
        )


@dataclass(frozen=True, slots=True)
class AttestRoute:
    """A target below ``/attest/``: its name in metrics, its method, the pattern of its path, and its handler.

    The groups of the pattern are the handler's keyword arguments.  A request of a *held* route waits without
    work.
    """

    name: str
    method: str
    path: re.Pattern[str]
    handler: Callable[..., Awaitable[web.StreamResponse]]
    held: bool = False


_KID: Final = "(?P<kid>[0-9A-Za-z_-]+)"
TABLE: Final = (
    AttestRoute("enroll", "POST", re.compile("/attest/enroll"), AttestRoutes.begin),
    AttestRoute("enroll", "POST", re.compile("/attest/enroll/selection"), AttestRoutes.propose),
    AttestRoute("enroll", "POST", re.compile("/attest/enroll/finish"), AttestRoutes.finish),
    AttestRoute("adv", "GET", re.compile(f"/attest/adv/{_KID}"), AttestRoutes.advertise),
    AttestRoute("announce", "POST", re.compile(f"/attest/announce/{_KID}"), AttestRoutes.announce),
    AttestRoute("agent", "POST", re.compile(f"/attest/agent/{_KID}"), AttestRoutes.poll, held=True),
    AttestRoute("agent-evidence", "POST", re.compile(f"/attest/agent/{_KID}/evidence"), AttestRoutes.prove),
)


def find(target: str) -> tuple[AttestRoute, dict[str, str]]:
    """Return the route of *target*, and the parts of the path that its handler takes.  Raises
    ``not-found``.
    """
    for route in TABLE:
        if found := route.path.fullmatch(target):
            return route, found.groupdict()
    raise NotFound("not-found", "There is nothing at this address.")


async def _renewed(
    refusal: Refused, caller: Caller, kid: str, challenge: Callable[[str], Awaitable[Challenge]]
) -> web.Response:
    """Return 401 with a new challenge for evidence whose nonce expired: an honest machine may have been slow.

    Raises *refusal* again for any other code.
    """
    if refusal.code != "nonce-expired":
        raise refusal
    return problem(refusal, caller.request_id, await challenge(kid))


def _point_and_evidence(body: bytes) -> tuple[dict[str, Any], Evidence | None]:
    """Return X as received, and the evidence, if there is a member ``attest``."""
    jwk = parse_json(body)
    member = jwk.pop("attest", None)
    if member is None:
        return jwk, None
    if jwk.get("kty") != "EC" or jwk.get("alg", "ECMR") != "ECMR":
        raise Malformed("point-invalid", "X is not an EC key for ECMR.")
    return jwk, validate(AttestMember, member, "evidence-malformed").evidence()


def _announced(body: bytes) -> tuple[Announcement, Evidence] | None:
    value = parse_json(body)
    if not value:
        return None
    announced = validate(AnnounceBody, value)
    return announced.announcement(), announced.evidence()


def _json(status: int, value: object) -> web.Response:
    return web.Response(
        status=status,
        body=json.dumps(value, separators=(",", ":")).encode(),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
