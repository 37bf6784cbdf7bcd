"""Two servers over one database: no Y after a command that forbids it has returned, and a record of each refusal.

Each server recalls the rows of keys that it answered a moment ago (store/recalled.py).  These tests come while it does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tang_attest.errors import Conflict, NotFound, Refused, TangAttestError
from tang_attest.ports.store import Store
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.coverage import ENFORCED
from tang_attest.protocol.values.points import Point
from tang_attest.server.compose import World, opened
from tang_attest.server.site import compose_site
from tang_attest.service.audit.actors import Author, Caller
from tang_attest.service.policies.changes import PolicyChanges
from tang_attest.service.policies.reference_values import Approval
from tang_attest.service.policies.rollouts import Rollouts, RolloutTerms
from tang_attest.service.rounds.polls import Polls
from tang_attest.service.unlock.unlock import Unlock
from tang_attest.web.gate.limits import Limiter
from tang_attest.web.wire import AttestMember, validate
from tests.attester import Attester, members
from tests.fakes import RealRandomness
from tests.server import Server, evidence, new_x
from tests.service.unlock.test_meanwhile import DEEDS, RULES, Deed, refuse_stale, retire_key
from tests.store.test_recall import deadlocks

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(params=DATABASES)
def database(request: pytest.FixtureRequest) -> str | None:
    """The setting; None for SQLite in the state directory."""
    return request.getfixturevalue("postgres_url") if request.param == "postgresql" else None


@pytest_asyncio.fixture
async def server(database: str | None, tmp_path: Path) -> AsyncIterator[Server]:
    """The first server, at which the operator works."""
    async with Server(tmp_path / "state", database=database) as started:
        yield started


@dataclass
class Replica:
    """The use case of an unlock as one server composes it."""

    unlock: Unlock
    store: Store

    async def challenge(self, kid: str) -> dict[str, Any]:
        """The members of a challenge that evidence is made for."""
        made = await self.unlock.challenge(kid)
        return {"nonce": made.nonce, "selection": str(made.selection)}

    async def respond(self, attester: Attester, kid: str, challenge: dict[str, Any], request: str) -> str:
        """The code of the answer to good evidence, ``ok`` for Y."""
        x = dict(members(new_x()))
        member = validate(AttestMember, evidence(attester, kid, x, challenge)).evidence()
        try:
            await self.unlock.respond(kid, x, member, Caller("192.0.2.1", request))
        except TangAttestError as error:
            return error.code
        return "ok"


@pytest_asyncio.fixture
async def replicas(server: Server) -> AsyncIterator[list[Replica]]:
    """The first server, and a second."""
    assert server.site.attest is not None
    first = Replica(server.site.attest.unlock, server.store)
    async with opened(server.settings, World(clock=server.clock, random=RealRandomness())) as installation:
        site = compose_site(installation, polls=Polls(), limiter=Limiter()).site
        assert site.attest is not None
        yield [first, Replica(site.attest.unlock, installation.store)]


async def warm(replicas: list[Replica], attester: Attester, *kids: str) -> None:
    """Let each server answer for each of *kids*, so that it recalls them."""
    for number, replica in enumerate(replicas):
        for kid in kids:
            attester.clock += 1000
            challenge = await replica.challenge(kid)
            assert await replica.respond(attester, kid, challenge, f"warm {number}") == "ok"
            assert replica.store.decisions.recall_key(kid) is not None


async def refuse_stale_at_once(server: Server) -> None:
    """The machine was not seen for half a minute."""
    await server.conditions.set("pi-b", Conditions(stale_after_s=30))


async def retire_key_in_use(server: Server) -> None:
    """The newest boot opened a disk with it, and its operator is in earnest."""
    await server.keys.rotate_device("pi-b")
    await server.keys.retire((await server.store.devices.get_device("pi-b")).kids[-1], force=True)


#: As the deed, for a machine that unlocked just now.
ELSE: dict[Deed, Deed] = {refuse_stale: refuse_stale_at_once, retire_key: retire_key_in_use}


@pytest.mark.parametrize("at", [0, 1], ids=["here", "at the other server"])
@pytest.mark.parametrize("deed", DEEDS, ids=[deed.__name__ for deed in DEEDS])
async def test_no_reply_once_the_command_has_returned(
    server: Server,
    replicas: list[Replica],
    attester: Attester,
    exchanges: list[Point],
    deed: Deed,
    at: int,
) -> None:
    """The challenge is older than the command; the machine's record says why it was refused."""
    kid = await server.enroll(attester, learn_for=timedelta(0))
    await warm(replicas, attester, kid)
    challenge = await replicas[at].challenge(kid)
    server.clock.advance(seconds=60)
    await ELSE.get(deed, deed)(server)
    exchanges.clear()
    assert await replicas[at].respond(attester, kid, challenge, "late") == DEEDS[deed][1]
    assert exchanges == []
    newest = (await server.store.audit.list_audit("pi-b"))[0][1]
    assert (newest.event, newest.code, newest.request_id) == ("unlock", DEEDS[deed][1], "late")


async def test_a_command_that_permits_again_is_noticed_at_once(
    server: Server, replicas: list[Replica], attester: Attester
) -> None:
    """A refusal by rows of before is looked up: resume and allow have effect with the next request."""
    kid = await server.enroll(attester, learn_for=timedelta(0))
    await warm(replicas, attester, kid)
    await server.devices.suspend("pi-b", "lost")
    challenges = [await replica.challenge(kid) for replica in replicas]
    await server.devices.resume("pi-b")
    for replica, challenge in zip(replicas, challenges, strict=True):
        attester.clock += 1000
        assert await replica.respond(attester, kid, challenge, "found") == "ok"


async def test_a_state_that_was_approved_elsewhere_permits_at_once(
    server: Server, replicas: list[Replica], attester: Attester
) -> None:
    """The other server recalls a policy without it."""
    kid = await server.enroll(attester, learn_for=timedelta(0))
    await warm(replicas, attester, kid)
    attester.pcrs["sha256"][4] = b"\1" * 32
    challenges = [await replicas[1].challenge(kid) for _ in range(2)]
    assert await replicas[1].respond(attester, kid, challenges[0], "refused") == "pcr-mismatch"
    await server.reference_values.approve("pi-b", None, approval=Approval(force=True, accepted=ENFORCED))
    attester.clock += 1000
    assert await replicas[1].respond(attester, kid, challenges[1], "permitted") == "ok"


async def test_a_device_that_goes_away_while_evidence_is_appraised_has_its_record(
    server: Server, replicas: list[Replica], attester: Attester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the lookup and the decision, of a recalled key as of one that was read."""
    kid = await server.enroll(attester, learn_for=timedelta(0))
    await warm(replicas, attester, kid)
    challenge = await replicas[1].challenge(kid)
    decide = replicas[1].store.decisions.decide

    async def removed(decision: Any) -> None:
        monkeypatch.undo()
        await server.devices.remove("pi-b")
        await decide(decision)

    monkeypatch.setattr(replicas[1].store.decisions, "decide", removed)
    assert await replicas[1].respond(attester, kid, challenge, "gone") == "key-unknown"
    newest = (await server.store.audit.list_audit("pi-b"))[0][1]
    assert (newest.event, newest.verdict, newest.code) == ("unlock", "refused", "key-unknown")


# --- at random ----------------------------------------------------------------------------------------------


@dataclass
class Fleet:
    """Machines of one policy, and an operator who cannot make up their mind."""

    server: Server
    replicas: list[Replica]
    machines: dict[str, tuple[Attester, str]]
    chance: random.Random
    number: int = 0

    async def unlock(self) -> tuple[str, str, str]:
        """One machine unlocks at one server: its name, the request's id, and the code."""
        name, (attester, kid) = self.chance.choice(sorted(self.machines.items(), key=lambda item: item[0]))
        self.number += 1
        request = f"{self.number:08}"
        asked, answering = (self.chance.choice(self.replicas) for _ in range(2))
        challenge = await asked.challenge(kid)
        attester.clock += 10
        return name, request, await answering.respond(attester, kid, challenge, request)

    async def act(self) -> None:
        """One command; one that does not fit the state of things has no effect."""
        name = self.chance.choice(sorted(self.machines))
        acts: list[Callable[[], Awaitable[object]]] = [
            lambda: self.server.devices.suspend(name, "lost"),
            lambda: self.server.devices.resume(name),
            lambda: self.server.conditions.set("pi-0", Conditions(approval=True)),
            lambda: self.server.conditions.set("pi-0", Conditions()),
            lambda: self.server.reference_values.retire("pi-0", "enrolled", force=True),
            lambda: self.server.reference_values.restore("pi-0", "enrolled"),
            lambda: self.server.devices.label([name], ["canary"], []),
            lambda: self.server.devices.label([name], [], ["canary"]),
            self.roll_out,
            self.abandon,
            lambda: self.server.keys.rotate_device(name),
        ]
        with suppress(Conflict, NotFound, Refused):
            await self.chance.choice(acts)()

    async def roll_out(self) -> None:
        """Begin a change that half of the machines get first."""
        author = Author.operator("tester")
        change = await PolicyChanges(self.server.store, self.server.clock, author).parse("pi-0", RULES)
        rollouts = Rollouts(self.server.store, self.server.clock, RealRandomness(), author)
        self.number += 1
        terms = RolloutTerms(name=f"r{self.number}", share=5_000, label=None, limit=100)
        await rollouts.start("pi-0", change, terms, force=True)

    async def abandon(self) -> None:
        """End it."""
        rollouts = Rollouts(self.server.store, self.server.clock, RealRandomness(), Author.operator("tester"))
        await rollouts.abandon("pi-0", None, force=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1])
async def test_commands_and_unlocks_at_random(server: Server, replicas: list[Replica], seed: int) -> None:
    """In hundreds of orders: the record shows no permit that the commands before it forbid, and every refusal.

    Entries of one machine are in the order of their transactions: the later waits for the earlier one's rows.
    """
    machines = {}
    for number in range(3):
        attester, name = Attester(), f"pi-{number}"
        terms = {} if number == 0 else {"policy": "pi-0"}
        machines[name] = (attester, await server.enroll(attester, name, learn_for=timedelta(0), **terms))
    fleet = Fleet(server, replicas, machines, random.Random(seed))
    answers = []
    for _ in range(_STEPS):
        calls: list[Any] = [fleet.unlock(), fleet.unlock(), fleet.act()]
        fleet.chance.shuffle(calls)
        for outcome in await asyncio.gather(*calls):
            if outcome is not None:
                answers.append(outcome)
    entries = [entry for _, entry in reversed(await server.store.audit.list_audit(limit=100_000))]
    recorded = {entry.request_id: entry.code for entry in entries if entry.event == "unlock"}
    assert {request: code for _, request, code in answers} == recorded
    assert len({code for _, _, code in answers}) >= 4, "the commands had effect, and some did not"
    assert forbidden(entries) == []
    assert await deadlocks(server.store) == 0


_STEPS = 350


def forbidden(entries: list[Any]) -> list[str]:
    """Permits in the record that a command before them forbids."""
    suspended: set[str] = set()
    approval = retired = False
    found = []
    for entry in entries:
        match entry.event:
            case "device suspend":
                suspended.add(entry.device)
            case "device resume":
                suspended.discard(entry.device)
            case "policy state retire":
                retired = True
            case "policy state restore":
                retired = False
            case "policy conditions":
                approval = bool(entry.details.get("approval"))
            case "unlock" if entry.verdict == "permitted":
                if entry.device in suspended or retired or approval:
                    found.append(f"{entry.request_id} of {entry.device}")
    return found
