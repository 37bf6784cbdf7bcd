"""Rollouts as machines see them: over HTTP, with the real store and the real policy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tang_attest.errors import Conflict, Malformed, NotFound, TangAttestError
from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.changes.rollout import RolloutPhase
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.audit.actors import Author
from tang_attest.service.policies.changes import PolicyChanges
from tang_attest.service.policies.rollouts import Rollouts, RolloutTerms
from tests.attester import Attester
from tests.fakes import RealRandomness
from tests.server import SELECTION, Server

POLICY = "fleet"
PCRS = Selection.parse(SELECTION).pcrs


@dataclass
class Machine:
    """An enrolled machine."""

    attester: Attester
    kid: str


class Fleet:
    """A server, a policy, and machines that all booted ``old``."""

    def __init__(self, server: Server) -> None:
        self.server = server
        author = Author.operator("tester")
        self.changes = PolicyChanges(server.store, server.clock, author)
        self.rollouts = Rollouts(server.store, server.clock, RealRandomness(), author)
        self.machines: dict[str, Machine] = {}

    async def begin(self, *names: str) -> None:
        await self.server.reference_values.create_policy(POLICY, Selection.parse(SELECTION), 15)
        await self.changes.apply(POLICY, await self.added("old"), force=False)
        for name in names:
            attester = Attester()
            labels = ("canary",) if name.startswith("canary") else ()
            kid = await self.server.enroll(attester, name, policy=POLICY, labels=labels)
            self.machines[name] = Machine(attester, kid)
            assert await self.boot(name) == "ok"

    async def added(self, label: str, retire: tuple[str, ...] = ()) -> PolicyChange:
        """A change that adds what :meth:`boot` boots with *label*."""
        twin = booted(Attester(), label)
        values = {str(pcr): twin.pcrs["sha256"][pcr].hex() for pcr in PCRS}
        document = {"add": [{"label": label, "values": values}], "retire": list(retire)}
        return await self.changes.parse(POLICY, document)

    async def boot(self, name: str, software: str = "old") -> str:
        """Boot *software* and unlock; the code of the answer."""
        machine = self.machines[name]
        booted(machine.attester, software)
        machine.attester.reset_count += 1
        self.server.clock.advance(seconds=1)
        return (await self.server.unlock(machine.attester, machine.kid)).code

    async def start(self, change: PolicyChange | None = None, **terms: Any) -> None:
        """Roll out ``new`` to those labeled canary; one may be refused."""
        force = terms.pop("force", False)
        known: dict[str, Any] = {"name": "new", "share": None, "label": "canary", "limit": 1}
        change = change or await self.added("new")
        await self.rollouts.start(POLICY, change, RolloutTerms(**(known | terms)), force=force)

    async def status(self) -> RolloutPhase:
        return (await self.rollouts.status(POLICY)).rollout.status


def booted(attester: Attester, software: str) -> Attester:
    """*attester* with the PCRs that *software* leaves."""
    attester.pcrs["sha256"] = dict(Attester().pcrs["sha256"])
    if software != "old":
        attester.extend(4, software.encode())
    return attester


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    """Three canaries and two others."""
    async with Server(tmp_path / "state") as server:
        made = Fleet(server)
        await made.begin("canary-1", "canary-2", "canary-3", "other-1", "other-2")
        yield made


async def refused(code: str, kind: type[TangAttestError], call) -> str:
    with pytest.raises(kind) as caught:
        await call
    assert caught.value.code == code
    return caught.value.sentence


async def test_a_rollout_that_goes_well(fleet: Fleet) -> None:
    """First the canaries, then everybody; the old state is offered for retirement at the end."""
    await fleet.start()
    assert await fleet.boot("other-1", "new") == "state-not-rolled-out"
    assert await fleet.boot("other-1") == "ok"
    for name in ("canary-1", "canary-2", "canary-3"):
        assert await fleet.boot(name, "new") == "ok"
    status = await fleet.rollouts.status(POLICY)
    assert [entry.device for entry in status.passed] == ["canary-1", "canary-2", "canary-3"]
    assert (status.refused, status.waiting, status.retirable) == ((), (), ())
    assert status.states == (("new", 3), ("old", 2))
    await fleet.rollouts.widen(POLICY, 10_000)
    assert (await fleet.rollouts.status(POLICY)).waiting == ("other-1", "other-2")
    assert await fleet.boot("other-1", "new") == "ok"
    await fleet.rollouts.finish(POLICY)
    assert await fleet.boot("other-2", "new") == "ok"
    assert (await fleet.rollouts.status(POLICY)).retirable == ("old",)


async def test_a_rollout_that_stops(fleet: Fleet) -> None:
    """The second machine that is refused stops it; who passed is not locked out, who did not gets it no more."""
    await fleet.start()
    assert await fleet.boot("canary-1", "new") == "ok"
    for _ in range(3):
        assert await fleet.boot("canary-2", "bad") == "pcr-mismatch"
    assert await fleet.boot("other-1", "bad") == "pcr-mismatch"
    assert await fleet.status() is RolloutPhase.RUNNING
    assert await fleet.boot("canary-3", "bad") == "pcr-mismatch"
    assert await fleet.status() is RolloutPhase.STOPPED
    assert await fleet.boot("canary-1", "new") == "ok"
    assert await fleet.boot("canary-1") == "ok"
    assert await fleet.boot("canary-1", "new") == "ok"
    assert await fleet.boot("canary-2", "new") == "state-not-rolled-out"
    assert await fleet.boot("canary-2") == "ok"
    assert "canary-1" in await refused("would-refuse", Conflict, fleet.rollouts.abandon(POLICY, None))
    await fleet.rollouts.resume(POLICY)
    assert await fleet.boot("canary-2", "new") == "ok"


async def test_an_abandoned_rollout(fleet: Fleet) -> None:
    """Its states are retired, for those who passed too."""
    await fleet.start()
    assert await fleet.boot("canary-1", "new") == "ok"
    await fleet.rollouts.abandon(POLICY, "bad idea", force=True)
    assert await fleet.boot("canary-1", "new") == "state-retired"
    assert await fleet.boot("canary-1") == "ok"
    await refused("not-found", NotFound, fleet.rollouts.stop(POLICY, None))
    await refused("name-taken", Conflict, fleet.start(PolicyChange(retire=("old",)), force=True))


async def test_what_would_lock_out_needs_force(fleet: Fleet) -> None:
    """Start, widen and finish ask the dry run; the limit is what start and widen may refuse."""
    change = await fleet.added("new", retire=("old",))
    told = await refused("would-refuse", Conflict, fleet.start(change))
    assert told == "3 of 5 devices would be refused: canary-1, canary-2, canary-3."
    assert await fleet.server.store.policies.get_rollout(POLICY) is None
    await fleet.start(change, limit=3)
    assert await fleet.boot("canary-1") == "state-retired"
    assert await fleet.boot("other-1") == "ok"
    for name in ("canary-1", "canary-2", "canary-3"):
        assert await fleet.boot(name, "new") == "ok"
    await refused("would-refuse", Conflict, fleet.rollouts.finish(POLICY))
    await fleet.rollouts.finish(POLICY, force=True)
    assert await fleet.boot("other-1") == "state-retired"


async def test_terms(fleet: Fleet) -> None:
    """A share or a label, and a name."""
    await refused("request-malformed", Malformed, fleet.start(share=100))
    await refused("request-malformed", Malformed, fleet.start(label=None))
    await refused("request-malformed", Malformed, fleet.start(name="a b"))
    await refused("request-malformed", Malformed, fleet.start(label="a b"))
    await refused("not-found", NotFound, fleet.rollouts.status(POLICY))
    await fleet.start()
    await refused("rollout-unfinished", Conflict, fleet.start(await fleet.added("newer"), name="newer"))
    await refused("rollout-changed", Conflict, fleet.rollouts.resume(POLICY))
    await fleet.rollouts.stop(POLICY, "why not")
    await refused("rollout-changed", Conflict, fleet.rollouts.finish(POLICY))


async def test_a_dry_run_agrees_with_the_boots(fleet: Fleet) -> None:
    """Its forecast of a change is the effect of the change, also while a rollout is under way."""
    await fleet.start()
    await fleet.boot("canary-1", "new")
    await fleet.boot("canary-2", "bad")
    change = PolicyChange(retire=("old",))
    result = await fleet.changes.dry_run(POLICY, change)
    assert result.refused_devices == ["canary-3", "other-1", "other-2"]
    assert [group.devices for group in result.already] == [("canary-2",)]
    await refused("would-refuse", Conflict, fleet.changes.apply(POLICY, change, force=False))
    await fleet.changes.apply(POLICY, change, force=True)
    booted_last = {"canary-1": "new", "canary-2": "bad"}
    codes = {name: await fleet.boot(name, booted_last.get(name, "old")) for name in fleet.machines}
    assert [name for name, code in codes.items() if code == "state-retired"] == result.refused_devices
    assert codes["canary-1"] == "ok"


async def test_who_did_it(fleet: Fleet) -> None:
    """Every change is in the audit record with its author; a rollout that stops by itself is the server's."""
    await fleet.start(limit=0)
    await fleet.boot("canary-1", "bad")
    await fleet.rollouts.resume(POLICY)
    await fleet.rollouts.widen(POLICY, 100)
    await fleet.rollouts.finish(POLICY)
    entries = [entry for _, entry in await fleet.server.store.audit.list_audit(limit=100)]
    told = [
        (entry.event, entry.actor) for entry in reversed(entries) if entry.event.startswith("policy rollout")
    ]
    assert told == [
        ("policy rollout start", "operator:tester"),
        ("policy rollout stop", "server"),
        ("policy rollout resume", "operator:tester"),
        ("policy rollout widen", "operator:tester"),
        ("policy rollout finish", "operator:tester"),
    ]
