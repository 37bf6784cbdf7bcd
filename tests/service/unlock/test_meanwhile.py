"""An operator's change during an unlock counts for that unlock.

The evidence was appraised by what was true before; the change comes before the decision is written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from tang_attest.ports.decisions import Decision
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.values.points import Point
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.changes import PolicyChanges
from tang_attest.service.policies.rollouts import Rollouts, RolloutTerms
from tests.attester import Attester
from tests.fakes import RealRandomness
from tests.server import Server
from tests.service.policies.test_announce import enroll, next_boot, say, states

RULES = {"rules": {"judge-by-events": [7], "rules": [{"secure-boot": "on"}]}}

Deed = Callable[[Server], Awaitable[object]]


async def require_approval(server: Server) -> None:
    """A person has to allow each unlock."""
    await server.conditions.set("pi-b", Conditions(approval=True))


async def refuse_stale(server: Server) -> None:
    """The machine was not seen for two hours."""
    await server.conditions.set("pi-b", Conditions(stale_after_s=3600))


async def suspend(server: Server) -> None:
    """It was stolen."""
    await server.devices.suspend("pi-b", "stolen")


async def retire(server: Server) -> None:
    """Its software has a hole."""
    label = (await server.store.policies.get_policy("pi-b")).states[0].label
    await server.reference_values.retire("pi-b", label, force=True)


async def retire_key(server: Server) -> None:
    """The disk was bound to another."""
    await server.keys.rotate_device("pi-b")
    old = (await server.store.devices.get_device("pi-b")).kids[-1]
    await server.keys.retire(old)


async def remove(server: Server) -> None:
    """For good."""
    await server.devices.remove("pi-b")


async def judge_by_rules(server: Server) -> None:
    """Secure Boot has to be on from now on; the machine sends no log."""
    changes = PolicyChanges(server.store, server.clock, Author.operator("tester"))
    await changes.apply("pi-b", await changes.parse("pi-b", RULES), force=True)


async def roll_out(server: Server) -> None:
    """The same, for everybody at once."""
    author = Author.operator("tester")
    change = await PolicyChanges(server.store, server.clock, author).parse("pi-b", RULES)
    rollouts = Rollouts(server.store, server.clock, RealRandomness(), author)
    terms = RolloutTerms(name="secure", share=10_000, label=None, limit=5)
    await rollouts.start("pi-b", change, terms, force=True)


DEEDS: dict[Deed, tuple[int, str]] = {
    require_approval: (403, "approval-required"),
    refuse_stale: (403, "device-stale"),
    suspend: (403, "device-suspended"),
    retire: (403, "state-retired"),
    retire_key: (403, "key-retired"),
    remove: (404, "key-unknown"),
    judge_by_rules: (403, "log-missing"),
    roll_out: (403, "log-missing"),
}


def between(server: Server, monkeypatch: pytest.MonkeyPatch, *deeds: Deed) -> None:
    """Do one of *deeds* before each decision is written."""
    decide, left = server.store.decisions.decide, list(deeds)

    async def meanwhile(decision: Decision) -> None:
        if left:
            await left.pop(0)(server)
        await decide(decision)

    monkeypatch.setattr(server.store.decisions, "decide", meanwhile)


@pytest.mark.parametrize("deed", DEEDS, ids=[deed.__name__ for deed in DEEDS])
async def test_what_was_committed_meanwhile_counts(
    server: Server, attester: Attester, exchanges: list[Point], monkeypatch: pytest.MonkeyPatch, deed: Deed
) -> None:
    """No Y, and the record says why."""
    kid = await server.enroll(attester, learn_for=timedelta(0))
    server.clock.advance(hours=2)
    between(server, monkeypatch, deed)
    answer = await server.unlock(attester, kid)
    assert (answer.status, answer.code) == DEEDS[deed], answer
    assert exchanges == []
    assert "permitted" not in {entry.verdict for _, entry in await server.store.audit.list_audit("pi-b")}
    newest = (await server.store.audit.list_audit("pi-b"))[0][1]
    assert (newest.event, newest.code) == ("unlock", answer.code)


@pytest.mark.parametrize("deed", DEEDS, ids=[deed.__name__ for deed in DEEDS])
async def test_the_same_before_the_unlock(server: Server, attester: Attester, deed: Deed) -> None:
    """The same code: the test above tests the moment, not the change."""
    kid = await server.enroll(attester, learn_for=timedelta(0))
    server.clock.advance(hours=2)
    challenge = await server.challenge(kid)
    await deed(server)
    assert (await server.unlock(attester, kid, challenge=challenge)).code == DEEDS[deed][1]


async def test_a_change_that_does_not_matter_refuses_nobody(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evidence is judged again by what the policy is now, and the machine notices nothing."""
    kid = await server.enroll(attester, learn_for=timedelta(0))

    async def label(number: int) -> None:
        await server.devices.label(["pi-b"], [f"l{number}"], [])

    between(server, monkeypatch, lambda _: label(1), lambda _: label(2))
    assert (await server.unlock(attester, kid)).status == 200


async def test_a_policy_that_is_changed_without_end(
    server: Server, attester: Attester, exchanges: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is asked to come again; its nonce is still good."""
    kid = await server.enroll(attester, learn_for=timedelta(0))
    labels = iter(range(100))

    async def label(_: Server) -> None:
        await server.devices.label(["pi-b"], [f"l{next(labels)}"], [f"l{next(labels) - 2}"])

    between(server, monkeypatch, *[label] * 10)
    answer = await server.unlock(attester, kid)
    assert (answer.status, answer.code) == (503, "unavailable")
    assert exchanges == []
    monkeypatch.undo()
    assert (await server.unlock(attester, kid)).status == 200


async def test_predictions_that_are_trusted_no_more(
    server: Server, attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An announcement that was under way waits for the operator, as it would now."""
    kid = await enroll(server, attester)
    await server.reference_values.trust_predictions("pi-b", True)

    async def distrust(_: Server) -> None:
        await server.reference_values.trust_predictions("pi-b", False)

    between(server, monkeypatch, distrust)
    said = await say(server, attester, kid, next_boot(attester))
    assert (said.status, said.body["state"]) == (201, "proposed")
    assert list((await states(server)).values()) == ["proposed"]
