"""The admin API: its table of operations, and their dispatch.

A client without a valid token learns nothing, not even which addresses exist; only the OpenAPI document is
public.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Final

import structlog
from aiohttp import web

from tang_attest.ports.admin import Scope
from tang_attest.ports.audit import AuditEntry
from tang_attest.service.admin.administration import Administration, Page
from tang_attest.service.admin.tokens import AdminClient, AdminTokens
from tang_attest.service.audit.actors import Caller
from tang_attest.service.audit.table import as_csv
from tang_attest.web.admin import PREFIX, change_routes, fleet_routes, openapi, signer_routes, wire
from tang_attest.web.admin.bearer import authenticate
from tang_attest.web.admin.operation import CSV, JSON, Answer, Call, Operation, find, perform

_DOCUMENT: Final = "/openapi.json"

_log = structlog.get_logger("admin")


async def _devices(admin: Administration, call: Call) -> Answer:
    query: wire.DeviceQuery = call.query
    stale = None if query.stale is None else timedelta(seconds=query.stale)
    page = await admin.devices(call.asker, query.limit, query.after, search=query.search(), stale=stale)
    return Answer(200, wire.DevicePage.of(page))


async def _device(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.DeviceView.of(await admin.device(call.asker, call.path.device)))


async def _approve(admin: Administration, call: Call) -> Answer:
    body: wire.Approve = call.body
    state = await admin.approve(call.asker, call.path.device, body.observation, body.label, body.approval())
    return Answer(200, wire.StateView.of(state))


async def _policies(admin: Administration, call: Call) -> Answer:
    return Answer(
        200, wire.PolicyPage.of(await admin.policies(call.asker, call.query.limit, call.query.after))
    )


async def _policy(admin: Administration, call: Call) -> Answer:
    policy, retirable = await admin.policy(call.asker, call.path.policy)
    return Answer(200, wire.PolicyView.of(policy, retirable))


async def _stage(admin: Administration, call: Call) -> Answer:
    label, values_of, valid_for, backing = wire.staging(call.query, call.body)
    state, new = await admin.stage(call.asker, call.path.policy, label, values_of, valid_for, backing=backing)
    return Answer(201 if new else 200, wire.StateView.of(state))


async def _approve_state(admin: Administration, call: Call) -> Answer:
    query: wire.ApproveStateQuery = call.query
    accepted = wire.parts(query.accept_uncovered)
    state = await admin.approve_state(call.asker, call.path.policy, call.path.label, accepted)
    return Answer(200, wire.StateView.of(state))


async def _retire(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.StateView.of(await admin.retire(call.asker, call.path.policy, call.path.label)))


async def _restore(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.StateView.of(await admin.restore(call.asker, call.path.policy, call.path.label)))


async def _staged(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.StagedList.of_states(await admin.staged(call.asker)))


async def _observations(admin: Administration, call: Call) -> Answer:
    query: wire.ObservationQuery = call.query
    page = await admin.observations(call.asker, query.limit, query.before, query.device, query.policy)
    return Answer(200, wire.ObservationPage.of(page))


async def _observation(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.ExplanationView.of(await admin.observation(call.asker, call.path.observation)))


async def _approve_observation(admin: Administration, call: Call) -> Answer:
    body: wire.ApproveAny = call.body
    number = call.path.observation
    state = await admin.approve_observation(call.asker, number, body.label, body.approval())
    return Answer(200, wire.StateView.of(state))


async def _alike(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.AlikeList.of(await admin.alike(call.asker, call.path.observation)))


async def _approve_alike(admin: Administration, call: Call) -> Answer:
    body: wire.ApproveAlike = call.body
    done = await admin.approve_alike(
        call.asker, call.path.observation, body.observations, body.label, body.approval()
    )
    return Answer(200, wire.AlikeResults.of(done))


async def _found_in_audit(admin: Administration, call: Call) -> Page[tuple[int, AuditEntry]]:
    query: wire.AuditQuery = call.query
    return await admin.audit(call.asker, query.limit, query.before, query.device, query.search())


async def _audit(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.AuditPage.of(await _found_in_audit(admin, call)))


async def _audit_csv(admin: Administration, call: Call) -> Answer:
    return Answer(200, as_csv((await _found_in_audit(admin, call)).items))


_STATE: Final = "/policies/{policy}/states/{label}"

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        name="listDevices",
        method="GET",
        path="/devices",
        scope=Scope.READ,
        summary="The machines, by name, with their last outcome.",
        handler=_devices,
        query=wire.DeviceQuery,
        answers={200: wire.DevicePage},
    ),
    Operation(
        name="getDevice",
        method="GET",
        path="/devices/{device}",
        scope=Scope.READ,
        summary="One machine.",
        handler=_device,
        parameters=wire.DevicePath,
        answers={200: wire.DeviceView},
    ),
    Operation(
        name="approveObservation",
        method="POST",
        path="/devices/{device}/approve",
        scope=Scope.APPROVE,
        summary="Accept what a machine booted: one of its refused quotes becomes a reference state.",
        handler=_approve,
        parameters=wire.DevicePath,
        body=wire.Approve,
        answers={200: wire.StateView},
    ),
    Operation(
        name="listPolicies",
        method="GET",
        path="/policies",
        scope=Scope.READ,
        summary="The policies, by name.",
        handler=_policies,
        query=wire.ByName,
        answers={200: wire.PolicyPage},
    ),
    Operation(
        name="getPolicy",
        method="GET",
        path="/policies/{policy}",
        scope=Scope.READ,
        summary="One policy and its reference states.",
        handler=_policy,
        parameters=wire.PolicyPath,
        answers={200: wire.PolicyView},
    ),
    Operation(
        name="stageState",
        method="POST",
        path="/policies/{policy}/states",
        scope=Scope.STAGE,
        summary=(
            "Approve values before any machine shows them: as JSON, or as the text that tpm2_pcrread prints.  "
            "200 instead of 201: a state that counts has these values already, and nothing was changed."
        ),
        handler=_stage,
        parameters=wire.PolicyPath,
        query=wire.StageQuery,
        body=wire.Stage,
        text=True,
        answers={200: wire.StateView, 201: wire.StateView},
    ),
    Operation(
        name="approveState",
        method="POST",
        path=f"{_STATE}/approve",
        scope=Scope.APPROVE,
        summary="Let a state count that a machine announced.",
        handler=_approve_state,
        parameters=wire.StatePath,
        query=wire.ApproveStateQuery,
        answers={200: wire.StateView},
    ),
    Operation(
        name="retireState",
        method="POST",
        path=f"{_STATE}/retire",
        scope=Scope.APPROVE,
        summary="Let a state count no more, unless a machine booted it last; or reject an announced one.",
        handler=_retire,
        parameters=wire.StatePath,
        answers={200: wire.StateView},
    ),
    Operation(
        name="restoreState",
        method="POST",
        path=f"{_STATE}/restore",
        scope=Scope.APPROVE,
        summary="Let a retired state count again.",
        handler=_restore,
        parameters=wire.StatePath,
        answers={200: wire.StateView},
    ),
    Operation(
        name="listStaged",
        method="GET",
        path="/staged",
        scope=Scope.READ,
        summary="The states that wait for approval, or for the first machine that boots them.",
        handler=_staged,
        answers={200: wire.StagedList},
    ),
    Operation(
        name="listObservations",
        method="GET",
        path="/observations",
        scope=Scope.READ,
        summary="What was authentic and refused, newest first.",
        handler=_observations,
        query=wire.ObservationQuery,
        answers={200: wire.ObservationPage},
    ),
    Operation(
        name="getObservation",
        method="GET",
        path="/observations/{observation}",
        scope=Scope.READ,
        summary="One refused quote, and why it was refused, event by event if the machine sent its log.",
        handler=_observation,
        parameters=wire.ObservationPath,
        answers={200: wire.ExplanationView},
    ),
    Operation(
        name="approveAnyObservation",
        method="POST",
        path="/observations/{observation}/approve",
        scope=Scope.APPROVE,
        summary="Accept refused evidence by its number, for its machine or for the whole policy.",
        handler=_approve_observation,
        parameters=wire.ObservationPath,
        body=wire.ApproveAny,
        answers={200: wire.StateView},
    ),
    Operation(
        name="listAlike",
        method="GET",
        path="/observations/{observation}/alike",
        scope=Scope.READ,
        summary="The machines whose refused boot has the same difference, itself first.",
        handler=_alike,
        parameters=wire.ObservationPath,
        answers={200: wire.AlikeList},
    ),
    Operation(
        name="approveAlike",
        method="POST",
        path="/observations/{observation}/approve-alike",
        scope=Scope.APPROVE,
        summary=(
            "Accept refused evidence of several machines that has the same difference; each machine has its own "
            "result."
        ),
        handler=_approve_alike,
        parameters=wire.ObservationPath,
        body=wire.ApproveAlike,
        answers={200: wire.AlikeResults},
    ),
    Operation(
        name="exportAudit",
        method="GET",
        path="/audit.csv",
        scope=Scope.READ,
        summary=(
            "Decisions and changes as CSV (RFC 4180), newest first; text that a spreadsheet would take for a "
            "formula has ' in front.  Not for a token that is limited to policies."
        ),
        handler=_audit_csv,
        query=wire.AuditExport,
        answers={200: str},
    ),
    Operation(
        name="listAudit",
        method="GET",
        path="/audit",
        scope=Scope.READ,
        summary="Decisions and changes, newest first; not for a token that is limited to policies.",
        handler=_audit,
        query=wire.AuditQuery,
        answers={200: wire.AuditPage},
    ),
    *change_routes.OPERATIONS,
    *signer_routes.OPERATIONS,
    *fleet_routes.OPERATIONS,
)


def document(endpoint: str = "") -> dict[str, object]:
    """Return the OpenAPI document of a server whose routes begin with *endpoint*."""
    return openapi.document(OPERATIONS, f"{endpoint}{PREFIX}")


@cache
def _document_text(endpoint: str) -> str:
    """Return the document as JSON, made once: any client may fetch it, and making it costs a hundred
    refusals.
    """
    return json.dumps(document(endpoint))


@dataclass(frozen=True, slots=True)
class AdminRoutes:
    """The admin API of one server."""

    tokens: AdminTokens
    administration: Administration
    endpoint: str = ""

    async def answer(self, request: web.BaseRequest, target: str, caller: Caller) -> web.Response:
        """Return the answer to a request; *target* is the raw one below :data:`PREFIX`.

        Raises every error that an operation documents.
        """
        path, _, query = target.partition("?")
        if path == _DOCUMENT and request.method in ("GET", "HEAD"):
            return _response(200, _document_text(self.endpoint))
        asker = AdminClient(await authenticate(self.tokens, request, caller), caller)
        operation, raw = find(OPERATIONS, request.method, path)
        _log.info("admin", request_id=caller.request_id, token=asker.grant.name, operation=operation.name)
        answer = await perform(operation, self.administration, asker, raw, query, request)
        if isinstance(answer.view, str):
            return _response(answer.status, answer.view, CSV)
        return _response(answer.status, answer.view.model_dump_json())


def _response(status: int, text: str, content_type: str = JSON) -> web.Response:
    return web.Response(
        status=status,
        body=text.encode(),
        content_type=content_type,
        charset="utf-8" if content_type == CSV else None,
        headers={"Cache-Control": "no-store"},
    )
