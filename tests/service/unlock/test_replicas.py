"""Two servers over one database: no Y after a command that forbids it has returned, and a record of each refusal.

Each server recalls the rows of keys that it answered a moment ago (store/recalled.py).  These tests come while it does.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tang_attest.errors import Conflict, NotFound, Refused, TangAttestError
from tang_attest.ports.store import Store
from tang_attest.protocol.conditions import Conditions
from tang_attest.protocol.coverage import ENFORCED
from tang_attest.protocol.reference_state import ReferenceState
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
from tests.store.samples import entry
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


@pytest.mark.parametrize(
    ("recalled", "good", "before"),
    [
        (True, True, "decide"),
        (True, False, "find_key"),  # a refusal by recalled rows is looked up
        (False, True, "decide"),
        (False, False, "decide"),
    ],
    ids=["recalled", "recalled and refused", "read", "read and refused"],
)
async def test_a_device_that_goes_away_while_evidence_is_appraised_has_its_record(
    server: Server,
    replicas: list[Replica],
    attester: Attester,
    monkeypatch: pytest.MonkeyPatch,
    *,
    recalled: bool,
    good: bool,
    before: str,
) -> None:
    """Between the lookup and the decision, of a recalled key as of one that was read, permitted or refused."""
    kid = await server.enroll(attester, learn_for=timedelta(0))
    await warm(replicas, attester, kid)
    challenge = await replicas[1].challenge(kid)
    decisions = replicas[1].store.decisions
    if not recalled:
        monkeypatch.setattr(decisions, "recall_key", lambda _: None)
    if not good:
        attester.pcrs["sha256"][4] = b"\1" * 32
    continued = getattr(decisions, before)

    async def removed(*args: Any) -> Any:
        monkeypatch.undo()
        await server.devices.remove("pi-b")
        return await continued(*args)

    monkeypatch.setattr(decisions, before, removed)
    assert await replicas[1].respond(attester, kid, challenge, "gone") == "key-unknown"
    newest = (await server.store.audit.list_audit("pi-b"))[0][1]
    assert (newest.event, newest.verdict, newest.code) == ("unlock", "refused", "key-unknown")
    assert newest.request_id == "gone"


# --- at random ----------------------------------------------------------------------------------------------


#: A policy with another state: who is moved to it is refused.
ELSEWHERE = "elsewhere"


@dataclass
class Fleet:
    """Machines of one policy, and an operator who cannot make up their mind."""

    server: Server
    replicas: list[Replica]
    machines: dict[str, tuple[Attester, str]]
    chance: random.Random
    _: KW_ONLY
    #: The state that permits them.
    state: str
    number: int = 0
    #: Commands that had effect, by their names.
    done: Counter[str] = field(default_factory=Counter)

    async def unlock(self) -> tuple[str, str] | None:
        """One machine unlocks at one server: the request's id and the code; None if the server does not know it."""
        attester, kid = self.machines[self.chance.choice(sorted(self.machines))]
        self.number += 1
        request = f"{self.number:08}"
        asked, answering = (self.chance.choice(self.replicas) for _ in range(2))
        try:
            challenge = await asked.challenge(kid)
        except NotFound:
            return None
        attester.clock += 10
        return request, await answering.respond(attester, kid, challenge, request)

    async def act(self) -> None:
        """One command; one that does not fit the state of things has no effect."""
        name = self.chance.choice(sorted(self.machines))
        server = self.server
        acts: dict[str, Callable[[], Awaitable[object]]] = {
            "suspend": lambda: server.devices.suspend(name, "lost"),
            "resume": lambda: server.devices.resume(name),
            "require approval": lambda: server.conditions.set("pi-0", Conditions(approval=True)),
            "require nothing": lambda: server.conditions.set("pi-0", Conditions()),
            "retire": lambda: server.reference_values.retire("pi-0", self.state, force=True),
            "restore": lambda: server.reference_values.restore("pi-0", self.state),
            "label": lambda: server.devices.label([name], ["canary"], []),
            "unlabel": lambda: server.devices.label([name], [], ["canary"]),
            "roll out": self.roll_out,
            "abandon": self.abandon,
            "rotate": lambda: server.keys.rotate_device(name),
            "replace key": lambda: self.replace_key(name),
            "move": lambda: server.installation.transfers.move(name, ELSEWHERE, force=True),
            "move back": lambda: server.installation.transfers.move(name, "pi-0", force=True),
            "enroll again": lambda: self.enroll_again(name),
        }
        act = self.chance.choice(sorted(acts))
        with suppress(Conflict, NotFound, Refused):
            await acts[act]()
            self.done[act] += 1

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

    async def replace_key(self, name: str) -> None:
        """Bind the machine's disk to a new key, and let the old one answer no more."""
        attester, old = self.machines[name]
        new, _ = await self.server.keys.rotate_device(name)
        await self.server.keys.retire(old, force=True)
        self.machines[name] = attester, new

    async def enroll_again(self, name: str) -> None:
        """Remove the machine, or one that could not enroll since then, and enroll it."""
        with suppress(NotFound):
            await self.server.devices.remove(name)
        attester, _ = self.machines[name]
        terms = {"record": False, "policy": "pi-0", "learn_for": timedelta(0)}
        begun = await self.server.begin(attester, name, await self.server.token(**terms))
        assert begun.status == 200, begun
        done = await self.server.finish(attester, name, begun)
        assert done.status == 201, done
        self.machines[name] = attester, done.body["kid"]


#: Steps, each of two unlocks and a command at the same time.
_STEPS = 1000


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [1])
async def test_commands_and_unlocks_at_random(server: Server, replicas: list[Replica], seed: int) -> None:
    """In a thousand orders: the record shows no permit that the commands before it forbid, and every refusal.

    Entries of one machine are in the order of their transactions: the later waits for the earlier one's rows.
    """
    machines = {}
    for number in range(3):
        attester, name = Attester(), f"pi-{number}"
        terms = {} if number == 0 else {"policy": "pi-0"}
        machines[name] = (attester, await server.enroll(attester, name, learn_for=timedelta(0), **terms))
    stored = await server.store.policies.get_policy("pi-0")
    other = ReferenceState("other", {pcr: bytes(32) for pcr in stored.selection.pcrs}, "recorded")
    await server.store.policies.add_policy(
        replace(stored, name=ELSEWHERE, states=(other,)),
        entry("policy create"),
    )
    fleet = Fleet(server, replicas, machines, random.Random(seed), state=stored.states[0].label)
    answers: dict[str, str] = {}
    for _ in range(_STEPS):
        calls: list[Any] = [fleet.unlock(), fleet.unlock(), fleet.act()]
        fleet.chance.shuffle(calls)
        answers.update(outcome for outcome in await asyncio.gather(*calls) if outcome is not None)
    entries = [row for _, row in reversed(await server.store.audit.list_audit(limit=100_000))]
    recorded = {row.request_id: row.code for row in entries if row.event == "unlock"}
    # A key that is gone before its evidence is appraised leaves nothing to record.
    unknown = {request for request, code in answers.items() if code == "key-unknown"} - recorded.keys()
    shown = f"seed {seed}, {fleet.done}"
    assert {request: code for request, code in answers.items() if request not in unknown} == recorded, shown
    assert len(set(answers.values())) >= 6, f"the commands had effect, and some did not: {shown}"
    assert len(fleet.done) == 15, f"each command had effect: {shown}"
    assert forbidden(entries) == [], shown
    assert await deadlocks(server.store) == 0, shown


def forbidden(entries: list[Any]) -> list[str]:
    """Permits in the record that a command before them forbids."""
    barred: set[tuple[str, str]] = set()
    found = []
    for row in entries:
        reasons = [why for why, whom in barred if whom in (row.device, row.kid, _EVERYBODY)]
        if row.event == "unlock" and row.verdict == "permitted" and reasons:
            found.append(f"{row.request_id} of {row.device}: {reasons}")
        for why, whom, begins in consequences(row):
            (barred.add if begins else barred.discard)((why, whom))
    return found


_EVERYBODY = "*"


def consequences(row: Any) -> list[tuple[str, str, bool]]:
    """The reasons to permit nothing that *row* begins or ends, each with a device or key."""
    device, details = row.device, row.details
    afresh = [(why, device, False) for why in ("suspended", "moved", "removed")]
    known = {
        "device suspend": [("suspended", device, True)],
        "device resume": [("suspended", device, False)],
        "device move": [("moved", device, details.get("to") == ELSEWHERE)],
        "device remove": [("removed", device, True)],
        "enroll": afresh if row.verdict == "done" else [],
        "keys retire": [("key retired", row.kid, True)],
        "policy state retire": [("state retired", _EVERYBODY, True)],
        "policy state restore": [("state retired", _EVERYBODY, False)],
        "policy conditions": [("approval", _EVERYBODY, bool(details.get("approval")))],
    }
    return known.get(row.event, [])
