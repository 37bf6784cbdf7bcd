"""The admin API's operations for enrollment and machines; see web/admin/routes.py."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from tang_attest.ports.admin import Scope
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.admin.administration import Administration
from tang_attest.web.admin import fleet_wire as wire
from tang_attest.web.admin.operation import Answer, Call, Operation
from tang_attest.web.admin.wire import (
    ByName,
    DevicePath,
    DeviceView,
    ObservationPath,
    ObservationView,
    PolicyPath,
    PolicySummary,
)


async def _status(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.StatusView.of(*await admin.fleet.status(call.asker)))


async def _tokens(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.TokenList.of(await admin.fleet.tokens(call.asker), call.query.limit))


async def _create_token(admin: Administration, call: Call) -> Answer:
    text, made = await admin.fleet.create_token(call.asker, call.body.terms())
    return Answer(201, wire.NewTokenView.with_text(text, made))


async def _revoke_token(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.TokenView.of(await admin.fleet.revoke_token(call.asker, call.body.id)))


async def _registered(admin: Administration, call: Call) -> Answer:
    found = await admin.fleet.registered_eks(call.asker)
    return Answer(200, wire.RegisteredEkPage.of(found, call.query.limit, call.query.after))


async def _register(admin: Administration, call: Call) -> Answer:
    entry = call.body.entry(call.path.device, 0)
    (made,), new = await admin.fleet.register_eks(call.asker, [entry])
    return Answer(201 if new else 200, wire.RegisteredEkView.of(made))


async def _register_list(admin: Administration, call: Call) -> Answer:
    found, new = await admin.fleet.register_eks(call.asker, call.body.entries())
    return Answer(200, wire.RegisteredEkList.of_list(found, new))


async def _unregister(admin: Administration, call: Call) -> Answer:
    return Answer(
        200, wire.RegisteredEkView.of(await admin.fleet.unregister_ek(call.asker, call.path.device))
    )


async def _ek_roots(admin: Administration, call: Call) -> Answer:
    return Answer(200, wire.EkRootList.of(await admin.fleet.ek_roots(call.asker)))


async def _add_ek_roots(admin: Administration, call: Call) -> Answer:
    body: wire.AddEkRoots = call.body
    return Answer(
        200, wire.AddedEkRoots.of_list(*await admin.fleet.add_ek_roots(call.asker, body.data(), body.label))
    )


async def _remove_ek_root(admin: Administration, call: Call) -> Answer:
    return Answer(
        200, wire.EkRootView.of(await admin.fleet.remove_ek_root(call.asker, call.body.fingerprint))
    )


async def _labels(admin: Administration, call: Call) -> Answer:
    device = await admin.fleet.set_labels(call.asker, call.path.device, call.body.labels)
    return Answer(200, DeviceView.of(device))


async def _suspend(admin: Administration, call: Call) -> Answer:
    device = await admin.fleet.suspend(call.asker, call.path.device, call.body.reason)
    return Answer(200, DeviceView.of(device))


async def _resume(admin: Administration, call: Call) -> Answer:
    return Answer(200, DeviceView.of(await admin.fleet.resume(call.asker, call.path.device)))


async def _allow(admin: Administration, call: Call) -> Answer:
    window = timedelta(seconds=call.body.for_seconds)
    return Answer(200, DeviceView.of(await admin.fleet.allow(call.asker, call.path.device, window)))


async def _remove(admin: Administration, call: Call) -> Answer:
    return Answer(200, DeviceView.of(await admin.fleet.remove(call.asker, call.path.device)))


async def _rename(admin: Administration, call: Call) -> Answer:
    return Answer(200, DeviceView.of(await admin.fleet.rename(call.asker, call.path.device, call.body.name)))


async def _move(admin: Administration, call: Call) -> Answer:
    return Answer(200, DeviceView.of(await admin.fleet.move(call.asker, call.path.device, call.body.policy)))


async def _remove_policy(admin: Administration, call: Call) -> Answer:
    return Answer(200, PolicySummary.of(await admin.fleet.remove_policy(call.asker, call.path.policy)))


async def _dismiss(admin: Administration, call: Call) -> Answer:
    return Answer(200, ObservationView.of(await admin.fleet.dismiss(call.asker, call.path.observation)))


async def _create_policy(admin: Administration, call: Call) -> Answer:
    body: wire.CreatePolicy = call.body
    policy, new = await admin.fleet.create_policy(
        call.asker, call.path.policy, Selection.parse(body.selection), body.cap_pcr
    )
    return Answer(201 if new else 200, PolicySummary.of(policy))


_EK: Final = "/registered-eks/{device}"

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        name="getStatus",
        method="GET",
        path="/status",
        scope=Scope.READ,
        summary="What wants a person, and what ends when; not for a token that is limited to policies.",
        handler=_status,
        answers={200: wire.StatusView},
    ),
    Operation(
        name="listTokens",
        method="GET",
        path="/tokens",
        scope=Scope.READ,
        summary="The enrollment tokens, newest first, without their texts.",
        handler=_tokens,
        query=wire.NewestTokens,
        answers={200: wire.TokenList},
    ),
    Operation(
        name="createToken",
        method="POST",
        path="/tokens",
        scope=Scope.ENROLL,
        summary=(
            "Create an enrollment token, for one machine or for several under one policy.  Its text is in this "
            "answer only; if the answer is lost, revoke the token and create another."
        ),
        handler=_create_token,
        body=wire.CreateToken,
        answers={201: wire.NewTokenView},
    ),
    Operation(
        name="revokeToken",
        method="POST",
        path="/tokens/revoke",
        scope=Scope.ENROLL,
        summary="Revoke a token that can still be used; one that is revoked stays so.",
        handler=_revoke_token,
        body=wire.RevokeToken,
        answers={200: wire.TokenView},
    ),
    Operation(
        name="listRegisteredEks",
        method="GET",
        path="/registered-eks",
        scope=Scope.READ,
        summary="The registered EKs, by name, and the time at which each enrolled.",
        handler=_registered,
        query=ByName,
        answers={200: wire.RegisteredEkPage},
    ),
    Operation(
        name="registerEks",
        method="POST",
        path="/registered-eks",
        scope=Scope.ENROLL,
        summary="Register EKs, all of them or none; the same again changes nothing.",
        handler=_register_list,
        body=wire.RegisterEks,
        answers={200: wire.RegisteredEkList},
    ),
    Operation(
        name="registerEk",
        method="PUT",
        path=_EK,
        scope=Scope.ENROLL,
        summary="Expect the machine of that name by its EK.  200 instead of 201: it was registered so before.",
        handler=_register,
        parameters=DevicePath,
        body=wire.RegisterEk,
        answers={200: wire.RegisteredEkView, 201: wire.RegisteredEkView},
    ),
    Operation(
        name="unregisterEk",
        method="DELETE",
        path=_EK,
        scope=Scope.ENROLL,
        summary="Take the registration back; a device that has enrolled stays.",
        handler=_unregister,
        parameters=DevicePath,
        answers={200: wire.RegisteredEkView},
    ),
    Operation(
        name="listEkRoots",
        method="GET",
        path="/ek-roots",
        scope=Scope.READ,
        summary="The trust anchors of EK certificates; not for a token that is limited to policies.",
        handler=_ek_roots,
        answers={200: wire.EkRootList},
    ),
    Operation(
        name="addEkRoots",
        method="POST",
        path="/ek-roots",
        scope=Scope.ENROLL,
        summary=(
            "Trust certificates of TPM vendors; one that is trusted stays as it is.  Not for a token that is "
            "limited to policies."
        ),
        handler=_add_ek_roots,
        body=wire.AddEkRoots,
        answers={200: wire.AddedEkRoots},
    ),
    Operation(
        name="removeEkRoot",
        method="POST",
        path="/ek-roots/remove",
        scope=Scope.ENROLL,
        summary="Trust a certificate no longer; devices that enrolled with it stay.",
        handler=_remove_ek_root,
        body=wire.RemoveEkRoot,
        answers={200: wire.EkRootView},
    ),
    Operation(
        name="setLabels",
        method="PUT",
        path="/devices/{device}/labels",
        scope=Scope.OPERATE,
        summary="Give a machine exactly these labels.",
        handler=_labels,
        parameters=DevicePath,
        body=wire.SetLabels,
        answers={200: DeviceView},
    ),
    Operation(
        name="suspendDevice",
        method="POST",
        path="/devices/{device}/suspend",
        scope=Scope.OPERATE,
        summary="Let its keys answer nobody; one that is suspended keeps its reason.",
        handler=_suspend,
        parameters=DevicePath,
        body=wire.Suspend,
        answers={200: DeviceView},
    ),
    Operation(
        name="resumeDevice",
        method="POST",
        path="/devices/{device}/resume",
        scope=Scope.OPERATE,
        summary="End a suspension, if there is one.",
        handler=_resume,
        parameters=DevicePath,
        answers={200: DeviceView},
    ),
    Operation(
        name="allowDevice",
        method="POST",
        path="/devices/{device}/allow",
        scope=Scope.APPROVE,
        summary="Let a machine unlock for a while, if its policy waits for a person or it was not seen for long.",
        handler=_allow,
        parameters=DevicePath,
        body=wire.Allow,
        answers={200: DeviceView},
    ),
    Operation(
        name="removeDevice",
        method="POST",
        path="/devices/{device}/remove",
        scope=Scope.REMOVE,
        summary="Remove a machine and destroy its keys: its disks open by passphrase only, for good.",
        handler=_remove,
        parameters=DevicePath,
        answers={200: DeviceView},
    ),
    Operation(
        name="createPolicy",
        method="PUT",
        path="/policies/{policy}",
        scope=Scope.STAGE,
        summary="Make an empty policy.  200 instead of 201: there is this policy over these PCRs already.",
        handler=_create_policy,
        parameters=PolicyPath,
        body=wire.CreatePolicy,
        answers={200: PolicySummary, 201: PolicySummary},
    ),
    Operation(
        name="removePolicy",
        method="POST",
        path="/policies/{policy}/remove",
        scope=Scope.REMOVE,
        summary="Remove a policy that nothing uses, with its states.",
        handler=_remove_policy,
        parameters=PolicyPath,
        answers={200: PolicySummary},
    ),
    Operation(
        name="renameDevice",
        method="POST",
        path="/devices/{device}/rename",
        scope=Scope.OPERATE,
        summary="Give a machine another name; its keys and its states stay its own.",
        handler=_rename,
        parameters=DevicePath,
        body=wire.RenameDevice,
        answers={200: DeviceView},
    ),
    Operation(
        name="moveDevice",
        method="POST",
        path="/devices/{device}/move",
        scope=Scope.APPROVE,
        summary="Bring a machine under another policy, unless that would refuse its last boot.",
        handler=_move,
        parameters=DevicePath,
        body=wire.MoveDevice,
        answers={200: DeviceView},
    ),
    Operation(
        name="dismissObservation",
        method="POST",
        path="/observations/{observation}/dismiss",
        scope=Scope.APPROVE,
        summary="Forget refused evidence that nobody is going to approve.",
        handler=_dismiss,
        parameters=ObservationPath,
        answers={200: ObservationView},
    ),
)
