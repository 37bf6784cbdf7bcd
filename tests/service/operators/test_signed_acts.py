"""An act is done once, by the operator who signed it, and is what they signed."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from tang_attest.errors import TangAttestError
from tang_attest.ports.notices import NoticeKind, Occurrence
from tang_attest.ports.operators import OperatorRole
from tang_attest.protocol.passkeys.text import challenge_of, read_text
from tang_attest.protocol.values.base64url import b64u
from tang_attest.service.notifications.events import event_of
from tang_attest.service.operators.acts import (
    KINDS,
    AllowUnlock,
    ApproveBoots,
    IssueToken,
    RemoveDevice,
    ResumeDevice,
    TrustPredictions,
    members_of,
    read_act,
)
from tang_attest.service.operators.sign_in import OperatorSession
from tang_attest.service.operators.signed_acts import SignedActs
from tests.service.operators.authenticator import Passkey
from tests.service.operators.conftest import Console, code_of
from tests.service.policies.test_approve import World


class Signer:
    """One operator, signed in."""

    def __init__(self, console: Console, name: str, passkey: Passkey, session: OperatorSession) -> None:
        self.console, self.name, self.passkey, self.session = console, name, passkey, session

    @classmethod
    async def enter(cls, console: Console, name: str, role: str = "admin", **options: Any) -> Signer:
        passkey = await console.register(name, role, Passkey(**options))
        return cls(console, name, passkey, await console.enter(passkey))

    async def sign(self, act: Any) -> Any:
        return await self.console.sign(self.session, self.passkey, act)


APPROVAL = ApproveBoots(boots=(("pi-b", 1),))


@pytest.mark.parametrize("algorithm", ["ES256", "EdDSA"])
async def test_an_approval_opens_the_machine(world: World, console: Console, algorithm: str) -> None:
    """And the record says who signed what."""
    alice = await Signer.enter(console, "alice", "approver", algorithm=algorithm)
    done = await alice.sign(APPROVAL)
    assert done.done == "Approved: pi-b."
    assert await world.boot("update") == "ok"
    entry = next(each for each in await console.audit() if each.event == "policy state add")
    assert (entry.actor, entry.device) == ("console:alice", "pi-b")
    (signature,) = entry.details["signed"]
    text = read_text(signature["text"])
    assert text.operator == signature["operator"] == "alice"
    assert text.subject["boots"][0]["policy"] == entry.details["policy"] == "pi-b"
    assert text.subject["act"] == "approve"


async def test_the_text_says_what_is_done(world: World, console: Console) -> None:
    """It is shown before it is signed, and its digest is the challenge; no two are the same."""
    alice = await Signer.enter(console, "alice")
    one = await console.acts.prepare(alice.session, APPROVAL)
    other = await console.acts.prepare(alice.session, APPROVAL)
    assert one.options["challenge"] == b64u(challenge_of(one.text))
    assert one.text != other.text
    assert json.loads(one.text)["subject"]["boots"][0]["observation"] == 1
    assert one.options["userVerification"] == "required"
    assert one.options["allowCredentials"][0]["id"] == b64u(alice.passkey.credential_id)  # type: ignore[index]


async def test_limits_are_those_of_the_text(world: World, console: Console) -> None:
    """Only this machine, once, for thirty minutes."""
    alice = await Signer.enter(console, "alice")
    await alice.sign(ApproveBoots(boots=(("pi-b", 1),), only_this_device=True, once=True, minutes=30))
    state = (await world.server.store.policies.get_policy("pi-b")).states[-1]
    assert (state.limits.device, state.limits.uses_left) == ("pi-b", 1)
    assert await world.boot("update") == "ok"
    assert await world.boot("update") == "state-used-up"


async def test_a_viewer_signs_nothing(world: World, console: Console) -> None:
    """Neither the question nor, if the role was lost in between, the answer."""
    vera = await Signer.enter(console, "vera", "viewer")
    assert await code_of(console.acts.prepare(vera.session, APPROVAL)) == "role-missing"
    alice = await Signer.enter(console, "alice", "approver")
    for act in (RemoveDevice("pi-b"), IssueToken(policy="pi-b"), TrustPredictions("pi-b")):
        assert await code_of(console.acts.prepare(alice.session, act)) == "role-missing"
    request = await console.acts.prepare(alice.session, APPROVAL)
    await world.server.operators.set_role("alice", OperatorRole.VIEWER)
    # The session of before says approver still; the transaction knows better.
    answer = alice.passkey.get(request.options)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "role-missing"
    assert await world.count() == 1


async def test_an_assertion_works_once(world: World, console: Console) -> None:
    """Replayed for the same request and for another of the same act, it does nothing."""
    alice = await Signer.enter(console, "alice")
    await world.server.devices.suspend("pi-b", "lost")
    request = await console.acts.prepare(alice.session, ResumeDevice("pi-b"))
    answer = alice.passkey.get(request.options)
    await console.acts.perform(alice.session, request.id, answer)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "act-used"
    await world.server.devices.suspend("pi-b", "lost again")
    second = await console.acts.prepare(alice.session, ResumeDevice("pi-b"))
    assert await code_of(console.acts.perform(alice.session, second.id, answer)) == "passkey-invalid"
    assert (await world.server.store.devices.get_device("pi-b")).suspension is not None


async def test_two_workers_do_it_once(world: World, console: Console) -> None:
    """The same answer arrives at both at the same time."""
    alice = await Signer.enter(console, "alice")
    request = await console.acts.prepare(alice.session, AllowUnlock("pi-b", 30))
    answer = alice.passkey.get(request.options)
    codes = await asyncio.gather(
        *(code_of(console.acts.perform(alice.session, request.id, answer)) for _ in range(5))
    )
    assert sorted(codes) == ["act-used"] * 4 + ["ok"]
    assert [entry.event for entry in await console.audit()].count("device allow") == 1


async def test_an_assertion_for_another_act(world: World, console: Console) -> None:
    """Signed for an unlock of thirty minutes, it removes nothing."""
    alice = await Signer.enter(console, "alice")
    allow = await console.acts.prepare(alice.session, AllowUnlock("pi-b", 30))
    remove = await console.acts.prepare(alice.session, RemoveDevice("pi-b"))
    answer = alice.passkey.get(allow.options)
    assert await code_of(console.acts.perform(alice.session, remove.id, answer)) == "passkey-invalid"
    assert await code_of(console.acts.perform(alice.session, allow.id, answer)) == "ok"


async def test_a_request_of_another_session(world: World, console: Console) -> None:
    """Of another operator, and of the same one elsewhere."""
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob")
    request = await console.acts.prepare(alice.session, APPROVAL)
    answer = alice.passkey.get(request.options)
    assert await code_of(console.acts.perform(bob.session, request.id, answer)) == "act-unknown"
    elsewhere = await console.enter(alice.passkey)
    assert await code_of(console.acts.perform(elsewhere, request.id, answer)) == "act-unknown"
    for number in ("", "x", "ä", "x" * 10_000):
        assert await code_of(console.acts.perform(alice.session, number, answer)) == "act-unknown"
    foreign = bob.passkey.get(request.options)
    assert await code_of(console.acts.perform(alice.session, request.id, foreign)) == "passkey-unknown"
    assert await world.count() == 1


@pytest.mark.parametrize("change", ["verified", "present", "origin", "rp_id"])
async def test_a_bad_assertion(world: World, console: Console, change: str) -> None:
    """Without its user, and for another site."""
    alice = await Signer.enter(console, "alice")
    request = await console.acts.prepare(alice.session, APPROVAL)
    before = getattr(alice.passkey, change)
    setattr(alice.passkey, change, "https://evil.example" if isinstance(before, str) else False)
    answer = alice.passkey.get(request.options)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "passkey-invalid"
    setattr(alice.passkey, change, before)
    answer = alice.passkey.get(request.options)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "ok"


async def test_a_request_expires(world: World, console: Console) -> None:
    """After five minutes, and if the clock goes back before the question."""
    alice = await Signer.enter(console, "alice")
    request = await console.acts.prepare(alice.session, APPROVAL)
    answer = alice.passkey.get(request.options)
    for minutes in (5, -7):
        console.clock.advance(minutes=minutes)
        assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "act-expired"
    assert await world.count() == 1


async def test_a_removed_operator_signs_nothing(world: World, console: Console) -> None:
    """Also if the removal comes between question and answer."""
    alice = await Signer.enter(console, "alice")
    request = await console.acts.prepare(alice.session, APPROVAL)
    await world.server.operators.remove("alice")
    answer = alice.passkey.get(request.options)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "passkey-unknown"
    assert await world.count() == 1


async def test_a_counter_counts_over_sign_ins_and_acts(world: World, console: Console) -> None:
    """A copied passkey that is behind signs nothing."""
    alice = await Signer.enter(console, "alice", counts=True)
    request = await console.acts.prepare(alice.session, AllowUnlock("pi-b", 1))
    alice.passkey.sign_count -= 1
    answer = alice.passkey.get(request.options)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "passkey-invalid"
    alice.passkey.sign_count += 1
    answer = alice.passkey.get(request.options)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "ok"


async def test_what_was_signed_is_not_so_any_more(world: World, console: Console) -> None:
    """A machine that was suspended again since, for another reason, stays suspended."""
    alice = await Signer.enter(console, "alice")
    await world.server.devices.suspend("pi-b", "lost")
    request = await console.acts.prepare(alice.session, ResumeDevice("pi-b"))
    await world.server.devices.resume("pi-b")
    console.clock.advance(seconds=1)
    await world.server.devices.suspend("pi-b", "stolen")
    answer = alice.passkey.get(request.options)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "act-changed"
    assert (await world.server.store.devices.get_device("pi-b")).suspension is not None


async def test_a_refused_act_can_be_tried_again(world: World, console: Console) -> None:
    """The use case refuses: nothing was changed, and the request is not used up."""
    alice = await Signer.enter(console, "alice")
    request = await console.acts.prepare(alice.session, APPROVAL)
    answer = alice.passkey.get(request.options)
    await world.server.reference_values.approve("pi-b", "by the server", observation_id=1)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "values-known"
    await world.server.reference_values.retire("pi-b", "by the server", force=True)
    assert await code_of(console.acts.perform(alice.session, request.id, answer)) == "ok"


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (ApproveBoots(boots=(("pi-b", 77),)), "observation-missing"),
        (ApproveBoots(boots=(("nobody", 1),)), "not-found"),
        (ApproveBoots(boots=()), "request-malformed"),
        (ApproveBoots(boots=(("pi-b", 1), ("pi-b", 2))), "request-malformed"),
        (ApproveBoots(boots=(("pi-b", 1),), minutes=0), "request-malformed"),
        (ResumeDevice("pi-b"), "not-suspended"),
        (RemoveDevice("nobody"), "not-found"),
        (AllowUnlock("pi-b", 0), "request-malformed"),
        (IssueToken(policy="nobody"), "not-found"),
        (TrustPredictions("nobody"), "not-found"),
    ],
)
async def test_what_cannot_be_done_is_not_asked(world: World, console: Console, act: Any, code: str) -> None:
    """No operator signs for nothing."""
    alice = await Signer.enter(console, "alice")
    assert await code_of(console.acts.prepare(alice.session, act)) == code


async def test_a_token_is_shown_once(world: World, console: Console) -> None:
    """Its text is in the outcome, and in no entry."""
    alice = await Signer.enter(console, "alice")
    done = await alice.sign(IssueToken(name="pi-c", policy="pi-b", minutes=30, labels=("rack-1",)))
    assert len(done.token) == 43
    assert done.token not in str([entry.members() for entry in await console.audit()])
    assert (await world.server.store.enrollment.list_tokens())[0].created_by == "console:alice"


async def test_a_machine_is_removed(world: World, console: Console) -> None:
    """By an admin's signature."""
    alice = await Signer.enter(console, "alice")
    await alice.sign(RemoveDevice("pi-b"))
    assert await world.server.store.devices.list_devices() == []


# --- several operators --------------------------------------------------------------------------------------


async def require(world: World, number: int) -> None:
    """Let *number* operators sign."""
    policy = await world.server.store.policies.get_policy("pi-b")
    await world.server.conditions.set("pi-b", replace(policy.conditions, operators=number))


async def test_two_operators_approve(world: World, console: Console) -> None:
    """The first signature waits and is seen; the same person's second does not count; another's does."""
    await require(world, 2)
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob", algorithm="EdDSA")
    first = await alice.sign(APPROVAL)
    assert first.pending.signed_by == ("alice",)
    assert [each.signed_by for each in await console.acts.pending()] == [("alice",)]
    assert await world.boot("update") == "pcr-mismatch"
    assert await code_of(alice.sign(APPROVAL)) == "operator-same"
    (waiting,) = await console.acts.pending()
    assert waiting.policies == ("pi-b",)
    done = await bob.sign(waiting.act)
    assert done.pending is None
    assert await console.acts.pending() == []
    assert await world.boot("update") == "ok"
    entry = next(each for each in await console.audit() if each.event == "policy state add")
    assert [each["operator"] for each in entry.details["signed"]] == ["alice", "bob"]


async def test_another_approval_is_not_the_same(world: World, console: Console) -> None:
    """The second operator signs other limits: that is a first signature of something else."""
    await require(world, 2)
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob")
    await alice.sign(APPROVAL)
    other = await bob.sign(ApproveBoots(boots=(("pi-b", 1),), once=True))
    assert other.pending is not None
    assert len(await console.acts.pending()) == 2
    assert await world.count() == 1


async def test_both_sign_at_once(world: World, console: Console) -> None:
    """Of two first signatures at the same moment one waits; the other is told to look again."""
    await require(world, 2)
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob")
    requests = [await console.acts.prepare(each.session, APPROVAL) for each in (alice, bob)]
    calls = [
        console.acts.perform(each.session, request.id, each.passkey.get(request.options))
        for each, request in zip((alice, bob), requests, strict=True)
    ]
    codes = sorted(await asyncio.gather(*map(code_of, calls)))
    assert codes in (["act-changed", "ok"], ["ok", "ok"])
    assert (await world.count() == 2) == (codes == ["ok", "ok"])


async def test_a_first_signature_does_not_replace_one_that_came_meanwhile(
    world: World, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for a pending approval and its writing, another operator signs: that signature stays."""
    await require(world, 2)
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob")
    request = await console.acts.prepare(alice.session, APPROVAL)
    good = SignedActs._still_good

    async def late(self: SignedActs, *arguments: Any) -> Any:
        monkeypatch.undo()
        found = await good(self, *arguments)
        await bob.sign(APPROVAL)
        return found

    monkeypatch.setattr(SignedActs, "_still_good", late)
    call = console.acts.perform(alice.session, request.id, alice.passkey.get(request.options))
    assert await code_of(call) == "act-changed"
    [pending] = await console.acts.pending()
    assert pending.signed_by == ("bob",)


async def test_the_second_signature_works_once(world: World, console: Console) -> None:
    """From two workers at once, too."""
    await require(world, 2)
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob")
    await alice.sign(APPROVAL)
    request = await console.acts.prepare(bob.session, APPROVAL)
    answer = bob.passkey.get(request.options)
    codes = await asyncio.gather(
        *(code_of(console.acts.perform(bob.session, request.id, answer)) for _ in range(3))
    )
    assert codes.count("ok") == 1, codes
    assert await world.count() == 2


@pytest.mark.parametrize("loss", ["remove", "reset", "role"])
async def test_a_signature_of_an_operator_who_left_does_not_count(
    world: World, console: Console, loss: str
) -> None:
    """Removed, reset or without the role: the next one's is the first."""
    await require(world, 2)
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob")
    await alice.sign(APPROVAL)
    if loss == "role":
        await world.server.operators.set_role("alice", OperatorRole.VIEWER)
    else:
        await getattr(world.server.operators, loss)("alice")
    second = await bob.sign(APPROVAL)
    assert second.pending.signed_by == ("bob",)
    assert await world.count() == 1
    carol = await Signer.enter(console, "carol")
    assert (await carol.sign(APPROVAL)).pending is None
    assert await world.count() == 2


async def test_a_pending_approval_expires_and_is_withdrawn(world: World, console: Console) -> None:
    """After a day the first signature does not count any more; and any approver takes one back."""
    await require(world, 2)
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob")
    await alice.sign(APPROVAL)
    console.clock.advance(days=1)
    assert await console.acts.pending() == []
    bob.session = await console.enter(bob.passkey)
    assert (await bob.sign(APPROVAL)).pending.signed_by == ("bob",)
    (waiting,) = await console.acts.pending()
    vera = await Signer.enter(console, "vera", "viewer")
    assert await code_of(console.acts.withdraw(vera.session, waiting.id)) == "role-missing"
    await console.acts.withdraw(bob.session, waiting.id)
    assert await console.acts.pending() == []
    assert await code_of(console.acts.withdraw(bob.session, waiting.id)) == "not-found"


async def test_three_operators(world: World, console: Console) -> None:
    """Each number up to five."""
    await require(world, 3)
    signers = [await Signer.enter(console, name) for name in ("alice", "bob", "carol")]
    pending = [(await each.sign(APPROVAL)).pending for each in signers]
    assert [each and each.signed_by for each in pending] == [("alice",), ("alice", "bob"), None]
    assert await world.count() == 2


async def test_one_operator_at_the_server_adds_no_trust(world: World, console: Console) -> None:
    """Nor does a token: every way is closed; the number itself can be lowered at the server only."""
    await require(world, 2)
    values = world.server.reference_values
    observed = (await world.server.store.policies.list_observations("pi-b"))[0].snapshot.values
    first = (await world.server.store.policies.get_policy("pi-b")).states[0].label
    await values.retire("pi-b", first, force=True)
    for call in (
        values.approve("pi-b", None, observation_id=1),
        values.record("pi-b", "x", observed, force=True),
        values.stage("pi-b", "x", observed, force=True),
        values.approve_state("pi-b", first),
        values.restore("pi-b", first),
        values.trust_predictions("pi-b", trusted=True),
    ):
        assert await code_of(call) == "operators-required"
    with pytest.raises(TangAttestError) as error:
        await values.approve("pi-b", None, observation_id=1)
    assert "2 operators" in error.value.sentence
    assert "console_url" in error.value.action
    assert await world.count() == 1
    await require(world, 1)
    assert await code_of(values.approve("pi-b", None, observation_id=1)) == "ok"


def test_an_act_is_read_back() -> None:
    """As members, and as JSON; what is missing, unknown or out of bounds is named."""
    for act in (
        ApproveBoots(boots=(("a", 1), ("b", 2)), once=True, minutes=5),
        AllowUnlock("a", 5),
        IssueToken(name="a", labels=("x",)),
        TrustPredictions("p"),
    ):
        assert read_act(json.loads(json.dumps(members_of(act)))) == act
    cases: tuple[Any, ...] = (
        None,
        [],
        {},
        {"act": "nothing"},
        {"act": "allow"},
        {"act": "allow", "device": "a", "minutes": "5"},
        {"act": "allow", "device": "a", "minutes": True},
        {"act": "allow", "device": "a\n", "minutes": 5},
        {"act": "allow", "device": "a", "minutes": 5, "more": 1},
        {"act": "approve", "boots": [["a"]]},
        {"act": "approve", "boots": [["a", 1]], "accepted": ["everything"]},
        {"act": "approve", "boots": [[["a"], 1]]},
    )
    for broken in cases:
        with pytest.raises(TangAttestError) as error:
            read_act(broken)
        assert error.value.code == "request-malformed"
    assert set(KINDS) >= {"approve", "resume", "remove", "allow", "token"}


async def test_a_signature_that_waits_is_an_event(world: World, console: Console) -> None:
    """Another operator hears of it, with the page on which they sign; the last signature wants nobody."""
    await require(world, 2)
    alice, bob = await Signer.enter(console, "alice"), await Signer.enter(console, "bob")
    act = ApproveBoots(boots=(("pi-b", 1),))
    await alice.sign(act)
    [event] = await events(console)
    assert (event.kind, event.subject, event.page) == (NoticeKind.APPROVAL, "policy pi-b", "/refusals/1")
    assert event.sentence == "Signed by alice; 2 operators have to sign."
    await bob.sign(act)
    assert await events(console) == [event]


async def events(console: Console) -> list[Occurrence]:
    """Return the events of the record about approvals that wait."""
    rows = await console.server.store.audit.list_audit(limit=100)
    found = [event for number, entry in rows if (event := event_of(number, entry)) is not None]
    return [event for event in found if event.kind is NoticeKind.APPROVAL]
