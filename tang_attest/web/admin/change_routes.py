"""The admin API's operations for changes of whole policies, dry runs and rollouts; see
web/admin/routes.py.
"""

from __future__ import annotations

from typing import Final

from tang_attest.ports.admin import Scope
from tang_attest.service.admin.administration import Administration
from tang_attest.web.admin import change_wire as wire
from tang_attest.web.admin.operation import Answer, Call, Operation
from tang_attest.web.admin.wire import PolicyPath, PolicyView

_ROLLOUT: Final = "/policies/{policy}/rollout"


async def _dry_run(admin: Administration, call: Call) -> Answer:
    result = await admin.changes.dry_run(call.asker, call.path.policy, call.body.document())
    return Answer(200, wire.DryRunView.of(result))


async def _apply(admin: Administration, call: Call) -> Answer:
    await admin.changes.apply(call.asker, call.path.policy, call.body.document())
    policy, retirable = await admin.policy(call.asker, call.path.policy)
    return Answer(200, PolicyView.of(policy, retirable))


async def _under_way(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.RolloutList.of(await admin.changes.under_way(call.asker)))


async def _status(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.RolloutView.of(await admin.changes.status(call.asker, call.path.policy)))


async def _start(admin: Administration, call: Call) -> Answer:
    body: wire.Start = call.body
    started = await admin.changes.start(call.asker, call.path.policy, body.change.document(), body.terms())
    return Answer(201, wire.RolloutView.of(started))


async def _widen(admin: Administration, call: Call) -> Answer:
    share = wire.units(call.body.share)
    return Answer(200, wire.RolloutView.of(await admin.changes.widen(call.asker, call.path.policy, share)))


async def _stop(admin: Administration, call: Call) -> Answer:
    stopped = await admin.changes.stop(call.asker, call.path.policy, call.body.why)
    return Answer(200, wire.RolloutView.of(stopped))


async def _resume(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.RolloutView.of(await admin.changes.resume(call.asker, call.path.policy)))


async def _finish(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.RolloutView.of(await admin.changes.finish(call.asker, call.path.policy)))


async def _abandon(admin: Administration, call: Call) -> Answer:
    abandoned = await admin.changes.abandon(call.asker, call.path.policy, call.body.why)
    return Answer(200, wire.RolloutView.of(abandoned))


OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        name="dryRun",
        method="POST",
        path="/policies/{policy}/dry-run",
        scope=Scope.STAGE,
        summary=(
            "Judge a change by what every machine quoted last; changes nothing.  "
            "Without the scope read, reasons are codes only, and the change has no rules."
        ),
        handler=_dry_run,
        parameters=PolicyPath,
        body=wire.ChangeBody,
        answers={200: wire.DryRunView},
    ),
    Operation(
        name="applyChange",
        method="POST",
        path="/policies/{policy}/apply",
        scope=Scope.APPROVE,
        summary="Change a policy for every machine at once, unless one would be refused that is not now.",
        handler=_apply,
        parameters=PolicyPath,
        body=wire.ChangeBody,
        answers={200: PolicyView},
    ),
    Operation(
        name="listRollouts",
        method="GET",
        path="/rollouts",
        scope=Scope.READ,
        summary="The rollouts that are not over, by policy.",
        handler=_under_way,
        answers={200: wire.RolloutList},
    ),
    Operation(
        name="getRollout",
        method="GET",
        path=_ROLLOUT,
        scope=Scope.READ,
        summary="Who is on what in the newest rollout of a policy.",
        handler=_status,
        parameters=PolicyPath,
        answers={200: wire.RolloutView},
    ),
    Operation(
        name="startRollout",
        method="POST",
        path=_ROLLOUT,
        scope=Scope.APPROVE,
        summary="Let a change count for some machines first; it stops by itself when too many are refused.",
        handler=_start,
        parameters=PolicyPath,
        body=wire.Start,
        answers={201: wire.RolloutView},
    ),
    Operation(
        name="widenRollout",
        method="POST",
        path=f"{_ROLLOUT}/widen",
        scope=Scope.APPROVE,
        summary="Let the change reach a larger share of the machines.",
        handler=_widen,
        parameters=PolicyPath,
        body=wire.Widen,
        answers={200: wire.RolloutView},
    ),
    Operation(
        name="stopRollout",
        method="POST",
        path=f"{_ROLLOUT}/stop",
        scope=Scope.APPROVE,
        summary="Reach no further machine; those that passed keep the change.",
        handler=_stop,
        parameters=PolicyPath,
        body=wire.ReasonBody,
        answers={200: wire.RolloutView},
    ),
    Operation(
        name="resumeRollout",
        method="POST",
        path=f"{_ROLLOUT}/resume",
        scope=Scope.APPROVE,
        summary="Let a stopped rollout run again; who was refused is counted anew.",
        handler=_resume,
        parameters=PolicyPath,
        answers={200: wire.RolloutView},
    ),
    Operation(
        name="finishRollout",
        method="POST",
        path=f"{_ROLLOUT}/finish",
        scope=Scope.APPROVE,
        summary="Let the change count for every machine of the policy.",
        handler=_finish,
        parameters=PolicyPath,
        answers={200: wire.RolloutView},
    ),
    Operation(
        name="abandonRollout",
        method="POST",
        path=f"{_ROLLOUT}/abandon",
        scope=Scope.APPROVE,
        summary="Take the change back: its states are retired, unless a machine that passed would be refused.",
        handler=_abandon,
        parameters=PolicyPath,
        body=wire.ReasonBody,
        answers={200: wire.RolloutView},
    ),
)
