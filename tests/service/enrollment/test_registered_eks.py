"""Registered EKs: a list of TPMs that may enroll, with a token or without."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from tang_attest.errors import Malformed, NotFound
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.endorsement.registered import EkEntry, ek_digest
from tang_attest.protocol.enrollment import activation_proof
from tang_attest.protocol.tpm import parse_ek
from tang_attest.protocol.values.base64url import b64u
from tests.attester import Attester
from tests.server import Answer, Server

POLICY = "web"


@pytest.fixture
async def fleet(server: Server, attester: Attester) -> Server:
    """A server whose policy `web` has the values of *attester*."""
    await server.enroll(attester, POLICY)
    return server


def entry(attester: Attester, name: str = "web-1", **fields: object) -> EkEntry:
    """The registration of *attester*."""
    digest = ek_digest(parse_ek(attester.ek_public).spki)
    return replace(EkEntry(line=1, name=name, ek_sha256=digest, policy=POLICY), **fields)  # type: ignore[arg-type]


async def enroll(server: Server, attester: Attester, name: str = "web-1", token: str | None = None) -> Answer:
    """The answer to a whole enrollment, or to its first request when that is refused."""
    begun = await server.begin(attester, name, token)
    return begun if begun.status != 200 else await server.finish(attester, name, begun)


async def test_a_registered_machine_enrolls_without_a_token(fleet: Server) -> None:
    """Under its name, policy and labels; its TPM shows that it has the EK, and counts as verified."""
    machine = Attester()
    await fleet.registered_eks.register([entry(machine, labels=("rack-1",), without_token=True)])
    done = await enroll(fleet, machine)
    assert (done.status, done.body["policy"], done.body["ek_verified"]) == (201, POLICY, True)
    assert (await fleet.unlock(machine, done.body["kid"])).status == 200
    device = await fleet.store.devices.get_device("web-1")
    assert (device.labels, device.ek_issuer) == (("rack-1",), "the operator, by registering the EK")
    (used,) = await fleet.store.enrollment.list_registered_eks()
    assert used.used_at is not None


async def test_the_ek_alone_is_not_enough(fleet: Server) -> None:
    """An EK is public: an attacker who names it cannot open the credential."""
    machine = Attester()
    await fleet.registered_eks.register([entry(machine, without_token=True)])
    thief = Attester()
    begun = await fleet.begin(thief, "web-1", None, ek=b64u(machine.ek_public))
    assert begun.status == 200
    answer = await fleet.finish(
        thief, "web-1", begun, secret=b"guess", proof=activation_proof("x", bytes(32))
    )
    assert (answer.status, answer.code) == (403, "activation-failed")
    assert (await enroll(fleet, machine)).status == 201


async def test_without_a_token_only_where_the_operator_said_so(fleet: Server) -> None:
    """A registration that needs a token does not stand in for one; an unknown EK neither."""
    machine = Attester()
    await fleet.registered_eks.register([entry(machine)])
    for other in (machine, Attester()):
        answer = await enroll(fleet, other)
        assert (answer.status, answer.code) == (403, "ek-not-registered")
    assert (await enroll(fleet, machine, token=await fleet.token(policy=POLICY))).status == 201


async def test_the_refusal_names_the_ek(fleet: Server) -> None:
    """The operator reads at the machine what to register."""
    machine = Attester()
    answer = await enroll(fleet, machine)
    assert entry(machine).ek_sha256.hex() in answer.body["detail"]
    assert "device register NAME --ek-sha256" in answer.body["action"]


async def test_another_name_is_refused_in_the_same_words(fleet: Server) -> None:
    """A client that shows a foreign EK does not learn the name of its machine."""
    machine, unknown = Attester(), Attester()
    await fleet.registered_eks.register([entry(machine, without_token=True)])
    answers = [await enroll(fleet, each, "web-2") for each in (machine, unknown)]
    words = {
        answer.body["detail"].replace(entry(each).ek_sha256.hex(), "HASH")
        for answer, each in zip(answers, (machine, unknown), strict=True)
    }
    assert len(words) == 1
    assert {answer.code for answer in answers} == {"ek-not-registered"}


async def test_a_policy_that_requires_registered_eks(fleet: Server) -> None:
    """A token alone enrolls nothing then; with a registration for the policy it does."""
    await fleet.conditions.set(POLICY, Conditions(registered_ek=True))
    text, machine = await fleet.token(policy=POLICY, machines=5), Attester()
    assert (await enroll(fleet, machine, token=text)).code == "ek-not-registered"
    await fleet.registered_eks.register([entry(machine)])
    assert (await enroll(fleet, machine, "web-2", token=text)).code == "ek-not-registered"
    assert (await enroll(fleet, machine, token=text)).status == 201
    (token,) = [token for token in await fleet.store.enrollment.list_tokens() if token.machines > 1]
    assert token.uses == 1


async def test_a_requirement_that_comes_between_the_requests(fleet: Server) -> None:
    """The second request is judged by what is required then."""
    text, machine = await fleet.token(policy=POLICY), Attester()
    begun = await fleet.begin(machine, "web-1", text)
    await fleet.conditions.set(POLICY, Conditions(registered_ek=True))
    assert (await fleet.finish(machine, "web-1", begun)).code == "ek-not-registered"


async def test_a_registration_for_another_policy_is_none(fleet: Server) -> None:
    """It neither admits nor hinders under this one."""
    await fleet.enroll(Attester(), "other")
    machine = Attester()
    await fleet.registered_eks.register([entry(machine, policy="other")])
    text = await fleet.token(policy=POLICY, machines=2)
    await fleet.conditions.set(POLICY, Conditions(registered_ek=True))
    assert (await enroll(fleet, machine, token=text)).code == "ek-not-registered"
    await fleet.conditions.set(POLICY, Conditions())
    assert (await enroll(fleet, machine, "free", token=text)).status == 201
    (still,) = await fleet.store.enrollment.list_registered_eks()
    assert still.used_at is None


async def test_a_registered_name_is_kept(fleet: Server) -> None:
    """No other TPM takes it, whatever its token."""
    machine, thief = Attester(), Attester()
    await fleet.registered_eks.register([entry(machine, without_token=True)])
    answer = await enroll(fleet, thief, token=await fleet.token(policy=POLICY))
    assert (answer.status, answer.code) == (409, "name-taken")
    assert (await enroll(fleet, machine)).status == 201


async def test_a_removed_machine_does_not_come_back_by_itself(fleet: Server) -> None:
    """A registration is good once; registering the same list again changes nothing; taking it back does."""
    machine = Attester()
    mine = entry(machine, without_token=True)
    await fleet.registered_eks.register([mine])
    assert (await enroll(fleet, machine)).status == 201
    await fleet.devices.remove("web-1")
    assert (await enroll(fleet, machine)).code == "ek-not-registered"
    assert await fleet.registered_eks.register([mine]) == []
    assert (await enroll(fleet, machine)).code == "ek-not-registered"
    await fleet.registered_eks.unregister("web-1")
    assert len(await fleet.registered_eks.register([mine])) == 1
    assert (await enroll(fleet, machine)).status == 201


async def test_the_same_machine_enrolls_again(fleet: Server) -> None:
    """It was installed anew: the same device and key, days later too; a lost answer is told again."""
    machine = Attester()
    await fleet.registered_eks.register([entry(machine, without_token=True)])
    begun = await fleet.begin(machine, "web-1", None)
    first = await fleet.finish(machine, "web-1", begun)
    assert (await fleet.finish(machine, "web-1", begun)).body["kid"] == first.body["kid"]
    fleet.clock.advance(hours=50)
    assert (await enroll(fleet, machine)).body["kid"] == first.body["kid"]
    assert len(await fleet.store.devices.list_devices()) == 2


async def test_a_registration_that_is_taken_back_on_the_way(
    fleet: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the requests, and after everything was checked."""
    machine = Attester()
    mine = entry(machine, without_token=True)
    await fleet.registered_eks.register([mine])
    begun = await fleet.begin(machine, "web-1", None)
    await fleet.registered_eks.unregister(mine.ek_sha256.hex())
    assert (await fleet.finish(machine, "web-1", begun)).code == "ek-not-registered"
    await fleet.registered_eks.register([mine])
    begun, original = await fleet.begin(machine, "web-1", None), fleet.store.enrollment.enroll

    async def late(enrollment: object) -> object:
        await fleet.registered_eks.unregister("web-1")
        return await original(enrollment)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet.store.enrollment, "enroll", late)
    answer = await fleet.finish(machine, "web-1", begun)
    assert (answer.status, answer.code) == (403, "ek-not-registered")
    assert [device.name for device in await fleet.store.devices.list_devices()] == [POLICY]


async def test_two_requests_of_one_registration(fleet: Server) -> None:
    """One device is made, and both get it."""
    machine = Attester()
    await fleet.registered_eks.register([entry(machine, without_token=True)])
    begun = [await fleet.begin(machine, "web-1", None) for _ in range(2)]
    answers = await asyncio.gather(*(fleet.finish(machine, "web-1", each) for each in begun))
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body["kid"] for answer in answers}) == 1


# --- registering -------------------------------------------------------------------------------------------------


async def test_a_list_is_registered_wholly_or_not_at_all(fleet: Server) -> None:
    """Every fault is named with its line, and nothing is written."""
    await fleet.enroll(Attester(), "taken", policy=POLICY)
    one, two, three, device = (Attester() for _ in range(4))
    await fleet.enroll(device, "device", policy=POLICY)
    await fleet.registered_eks.register([entry(one, "one"), entry(two, "two")])
    wrong = [
        entry(three, "three", line=2, policy="missing"),
        entry(one, "one", line=3, labels=("other",)),
        entry(Attester(), "two", line=4),
        entry(device, "another", line=5),
        entry(Attester(), "taken", line=6),
        entry(Attester(), "good", line=7),
    ]
    with pytest.raises(Malformed) as refused:
        await fleet.registered_eks.register(wrong)
    assert refused.value.code == "ek-list-invalid"
    assert [reason.sentence for reason in refused.value.reasons] == [
        "Line 2: there is no policy 'missing'.",
        "Line 3: the EK is registered with other terms, as 'one'.",
        "Line 4: the name 'two' is registered for another EK.",
        "Line 5: the EK is that of device 'device'.",
        "Line 6: there is a device 'taken' with another EK already.",
    ]
    names = [each.name for each in await fleet.store.enrollment.list_registered_eks()]
    assert names == ["one", "two"]


async def test_a_list_is_registered_again(fleet: Server) -> None:
    """Only new machines are new, and each is audited once."""
    entries = [entry(Attester(), f"web-{number}", line=number + 2) for number in range(3)]
    assert len(await fleet.registered_eks.register(entries[:2])) == 2
    assert [each.name for each in await fleet.registered_eks.register(entries)] == ["web-2"]
    events = [each.device for _, each in await fleet.store.audit.list_audit() if each.event == "ek register"]
    assert sorted(filter(None, events)) == ["web-0", "web-1", "web-2"]


async def test_a_machine_that_is_enrolled_already(fleet: Server) -> None:
    """Its registration counts as used: removing the device keeps it out."""
    machine = Attester()
    await fleet.enroll(machine, "web-1", policy=POLICY)
    await fleet.registered_eks.register([entry(machine, without_token=True)])
    await fleet.devices.remove("web-1")
    assert (await enroll(fleet, machine)).code == "ek-not-registered"


async def test_what_is_not_registered_is_not_taken_back(fleet: Server) -> None:
    """By a name, or by a hash."""
    for name in ("web-1", "00" * 32, ""):
        with pytest.raises(NotFound):
            await fleet.registered_eks.unregister(name)


async def test_an_expired_token_is_told_before_the_list(fleet: Server) -> None:
    """A token that is good for nothing says nothing about EKs."""
    await fleet.conditions.set(POLICY, Conditions(registered_ek=True))
    text = await fleet.token(policy=POLICY, valid_for=timedelta(seconds=1))
    fleet.clock.advance(seconds=2)
    assert (await enroll(fleet, Attester(), token=text)).code == "token-expired"
