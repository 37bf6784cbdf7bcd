"""Worker processes of ``serve`` and an operator's commands: no Y once a command has returned, a record of each refusal.

On SQLite two workers, on PostgreSQL two replicas with two workers each.  Every process recalls what it answered before.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest

from tang_attest.config import Settings
from tang_attest.protocol.values.pcr import Selection
from tang_attest.server.compose import opened
from tang_attest.service.enrollment.tokens import TokenTerms
from tang_attest.store import SqlStore
from tests.bench.load.attester import SELECTION, Blinded, Machine
from tests.bench.load.client import ask
from tests.cli.serving import serving
from tests.cli.transcript import environment, run
from tests.service.unlock.test_meanwhile import RULES
from tests.service.unlock.test_replicas import DATABASES
from tests.store.samples import entry
from tests.store.test_recall import deadlocks

#: Seconds for what comes at once on an idle machine.
PATIENCE_S = 120
#: Unlocks of each machine while a command is under way, at most, and after it has returned.
DURING, AFTER = 8, 4
MACHINES = ("m0", "m1", "m2")
ELSEWHERE = "elsewhere"


@dataclass
class Site:
    """Servers over one database, and the machines that unlock there."""

    directory: Path
    database: str | None
    _: KW_ONLY
    ports: list[int] = field(default_factory=list)
    machines: dict[str, Machine] = field(default_factory=dict)
    #: The label of the state that permits them.
    state: str = ""
    #: The code of each refusal, by the id of the request.
    told: dict[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """Those of the commands."""
        return Settings(state=self.directory / "state", database=self.database)

    @property
    def flags(self) -> list[str]:
        """The option of every command for the database."""
        return ["--database", self.database] if self.database else []

    def command(self, *words: str) -> None:
        """Run ``tang-attest`` as an operator; it has to succeed."""
        with environment():
            _, stderr, code = run("--state", str(self.directory / "state"), *self.flags, *words)
        assert code == 0, f"{words}: {stderr}"

    def unlock(self, name: str, ports: Iterator[int]) -> str:
        """One unlock, of which two servers answer a half each; the code, ``ok`` for Y."""
        machine, x = self.machines[name], Blinded.make()
        asked = ask(next(ports), "POST", machine.target, x.jwk)
        if asked.status != 401:
            return str(json.loads(asked.body)["code"])
        nonce = json.loads(asked.body)["challenge"]["nonce"]
        answer = ask(next(ports), "POST", machine.target, machine.evidence(nonce, x))
        if answer.status == 200:
            x.check(answer.body, machine.server)
            return "ok"
        problem = json.loads(answer.body)
        self.told[problem["request_id"]] = problem["code"]
        return str(problem["code"])

    def race(self, *commands: list[str], refused: dict[str, str]) -> None:
        """Run *commands* while every machine unlocks; then those that are *refused* get their codes, the others Y."""
        returned = threading.Event()

        def unlocks(name: str) -> tuple[set[str], set[str]]:
            ports = itertools.cycle(self.ports)
            during = set()
            for _ in range(DURING):
                if returned.is_set():
                    break
                during.add(self.unlock(name, ports))
            assert returned.wait(PATIENCE_S), commands
            return during, {self.unlock(name, ports) for _ in range(AFTER)}

        with ThreadPoolExecutor(len(self.machines)) as threads:
            under_way = {name: threads.submit(unlocks, name) for name in self.machines}
            try:
                for command in commands:
                    self.command(*command)
            finally:
                returned.set()
            for name, found in under_way.items():
                during, after = found.result(PATIENCE_S)
                expected = refused.get(name, "ok")
                assert after == {expected}, f"{name} after {commands}"
                assert during <= {"ok", expected}, f"{name} during {commands}"

    def settle(self, *command: str) -> None:
        """Run a command that permits again; every machine gets Y at every process that it asks."""
        self.command(*command)
        ports = itertools.cycle(self.ports)
        for name in self.machines:
            assert {self.unlock(name, ports) for _ in range(AFTER)} == {"ok"}, f"{name} after {command}"

    # --- through the database ---

    def enroll(self) -> None:
        """Enroll every machine under the policy that the first one recorded; a second policy permits none of them."""
        for name in MACHINES:
            token = asyncio.run(self._token(None if name == MACHINES[0] else MACHINES[0]))
            self.machines[name] = Machine(self.ports[0], name, token)
        asyncio.run(self._add_policy())

    async def _token(self, policy: str | None) -> str:
        terms = TokenTerms(
            name=None,
            policy=policy,
            record=policy is None,
            selection=Selection.parse(SELECTION),
            cap_pcr=15,
            allow_unverified_ek=True,
            force=True,  # nothing was measured into these TPMs
            valid_for=timedelta(hours=1),
            learn_for=timedelta(0),
        )
        async with opened(self.settings) as it:
            return (await it.tokens.create(terms))[0]

    async def _add_policy(self) -> None:
        async with opened(self.settings) as it:
            recorded = await it.store.policies.get_policy(MACHINES[0])
            [state] = recorded.states
            self.state = state.label
            other = replace(state, values={**state.values, 4: b"\1" * 32})
            await it.store.policies.add_policy(
                replace(recorded, name=ELSEWHERE, states=(other,)), entry("policy create")
            )

    async def recorded(self) -> dict[str, str]:
        """The codes of unlocks that were refused, by their requests."""
        async with opened(self.settings) as it:
            rows = await it.store.audit.list_audit(limit=100_000)
        unlocks = (row for _, row in rows if row.event == "unlock" and row.verdict == "refused")
        return {str(row.request_id): row.code for row in unlocks}

    async def deadlocks(self) -> int:
        """The number of deadlocks so far."""
        async with opened(self.settings) as it:
            assert isinstance(it.store, SqlStore)
            return await deadlocks(it.store)


@pytest.fixture(params=DATABASES)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """Servers that listen, and machines that every process has answered."""
    database = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    site = Site(tmp_path / "first", database)
    (tmp_path / "first").mkdir()
    site.command("init")
    with ExitStack() as stack:
        directories = [site.directory]
        if database is not None:
            directories.append(tmp_path / "second")
            shutil.copytree(site.directory, directories[-1])
        for directory in directories:
            server = stack.enter_context(serving(directory, "--workers", "2", *site.flags))
            site.ports.append(server.port)
        site.enroll()
        yield site


def everybody(code: str) -> dict[str, str]:
    """Every machine is refused with *code*."""
    return dict.fromkeys(MACHINES, code)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_reply_of_any_process_once_a_command_has_returned(site: Site) -> None:
    """Each command comes in the midst of unlocks of every machine, and its counterpart permits again at once."""
    change = site.directory / "rules.json"
    change.write_text(json.dumps(RULES))
    first, second, third = MACHINES
    rollout = ["policy", "rollout", "start", first, "--file", str(change), "--name", "secure"]

    site.settle("device", "label", first, "--add", "canary")
    site.race(["device", "suspend", first, "--reason", "lost"], refused={first: "device-suspended"})
    site.settle("device", "resume", first)
    site.race(["policy", "require-approval", first, "on"], refused=everybody("approval-required"))
    site.settle("policy", "require-approval", first, "off")
    site.race(["policy", "retire", first, site.state, "--force"], refused=everybody("state-retired"))
    site.settle("policy", "reinstate", first, site.state)
    site.race(["device", "move", second, ELSEWHERE, "--force"], refused={second: "pcr-mismatch"})
    site.settle("device", "move", second, first, "--force")
    site.race([*rollout, "--label", "canary", "--limit", "99", "--force"], refused={first: "log-missing"})
    site.settle("policy", "rollout", "abandon", first, "--force")
    rotated = [["keys", "rotate", "--device", third], ["keys", "retire", site.machines[third].kid, "--force"]]
    site.race(*rotated, refused={third: "key-retired"})
    site.settle("keys", "reinstate", site.machines[third].kid)
    site.race(["device", "remove", second, "--yes"], refused={second: "key-unknown"})

    recorded = asyncio.run(site.recorded())
    gone = {request for request, code in site.told.items() if code == "key-unknown"}
    assert {request: code for request, code in site.told.items() if request in recorded} == recorded
    assert site.told.keys() - recorded.keys() <= gone, "a refusal has no record"
    assert asyncio.run(site.deadlocks()) == 0
