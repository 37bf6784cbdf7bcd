"""The admin API's operations for signers and signed values; see web/admin/routes.py."""

from __future__ import annotations

from typing import Final

from tang_attest.ports.admin import Scope
from tang_attest.service.admin.administration import Administration
from tang_attest.web.admin import signer_wire as wire
from tang_attest.web.admin.operation import Answer, Call, Operation
from tang_attest.web.admin.wire import PolicyPath, StatePath

_SIGNERS: Final = "/policies/{policy}/signers"
_SIGNED: Final = "/policies/{policy}/signed"


async def _now(admin: Administration, call: Call) -> Answer:
    found = await admin.signers.signers(call.asker, call.path.policy)
    return Answer(200, wire.SignersView.of(call.path.policy, found))


async def _trust(admin: Administration, call: Call) -> Answer:
    body: wire.Trust = call.body
    return Answer(
        201, wire.SignerView.of(await admin.signers.trust(call.asker, call.path.policy, body.terms()))
    )


async def _drop(admin: Administration, call: Call) -> Answer:
    await admin.signers.drop(call.asker, call.path.policy, call.path.signer)
    return await _now(admin, call)


async def _post(admin: Administration, call: Call) -> Answer:
    posted = await admin.signers.post(call.asker, call.path.policy, call.body.statement)
    return Answer(201, wire.StatementView.posted(posted))


async def _retire(admin: Administration, call: Call) -> Answer:
    await admin.signers.retire(call.asker, call.path.policy, call.path.label)
    return await _now(admin, call)


async def _reinstate(admin: Administration, call: Call) -> Answer:
    await admin.signers.reinstate(call.asker, call.path.policy, call.path.label)
    return await _now(admin, call)


OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        name="listSigners",
        method="GET",
        path=_SIGNERS,
        scope=Scope.READ,
        summary="The keys whose statements count under a policy, what was posted, and the labels that count no more.",
        handler=_now,
        parameters=PolicyPath,
        answers={200: wire.SignersView},
    ),
    Operation(
        name="trustSigner",
        method="POST",
        path=_SIGNERS,
        scope=Scope.APPROVE,
        summary=(
            "Let values that a key signs count for some PCRs of a policy.  The policy has to pin the program that measures "
            "them: by PCR 4, or by PCR 7 and Secure Boot."
        ),
        handler=_trust,
        parameters=PolicyPath,
        body=wire.Trust,
        answers={201: wire.SignerView},
    ),
    Operation(
        name="dropSigner",
        method="DELETE",
        path=f"{_SIGNERS}/{{signer}}",
        scope=Scope.APPROVE,
        summary="Let what a signer signed count no more, at once.",
        handler=_drop,
        parameters=wire.SignerPath,
        answers={200: wire.SignersView},
    ),
    Operation(
        name="postStatement",
        method="POST",
        path=f"{_SIGNED}/statements",
        scope=Scope.STAGE,
        summary=(
            "Keep a signed statement for machines that bring none.  The signature decides, so any token with this scope may "
            "post what a trusted signer signed."
        ),
        handler=_post,
        parameters=PolicyPath,
        body=wire.PostStatement,
        answers={201: wire.StatementView},
    ),
    Operation(
        name="retireSigned",
        method="POST",
        path=f"{_SIGNED}/labels/{{label}}/retire",
        scope=Scope.APPROVE,
        summary="Let signed values with a label, or with one below it, count no more, at once.",
        handler=_retire,
        parameters=StatePath,
        answers={200: wire.SignersView},
    ),
    Operation(
        name="reinstateSigned",
        method="POST",
        path=f"{_SIGNED}/labels/{{label}}/restore",
        scope=Scope.APPROVE,
        summary="Let signed values with a retired label count again.",
        handler=_reinstate,
        parameters=StatePath,
        answers={200: wire.SignersView},
    ),
)
