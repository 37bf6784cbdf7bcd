"""Machines that unlock and enroll without a pause, remember what they were told, and compare it with the registry."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Self

from tang_attest.config import Settings
from tang_attest.server.compose import opened
from tang_attest.store.database import tables
from tests.bench.load.attester import SELECTION, Blinded, Machine
from tests.bench.load.client import Answer, ask
from tests.bench.load.servers import create_tokens
from tests.cli.serving import Serving
from tests.cli.transcript import environment, run

#: Machines that unlock at the same time.
MACHINES = 6


@dataclass(frozen=True)
class Told:
    """Answer to one request with evidence: *status* 0 when the connection broke."""

    device: str
    nonce: str
    status: int
    code: str
    seconds: float


@dataclass
class Site:
    """A server's state and database, and everything that machines were told about it."""

    directory: Path
    database: str | None = None
    told: list[Told] = field(default_factory=list)
    enrolled: list[str] = field(default_factory=list)
    machines: list[Machine] = field(default_factory=list)
    _: KW_ONLY
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def init(self) -> Self:
        """``tang-attest init``."""
        self.directory.mkdir(exist_ok=True)
        with environment():
            arguments = ["--state", str(self.directory / "state")]
            arguments += ["--database", self.database] if self.database else []
            assert run(*arguments, "init")[2] == 0
        return self

    @property
    def flags(self) -> list[str]:
        """Options of ``serve`` for the database."""
        return ["--database", self.database] if self.database else []

    def tokens(self, count: int) -> list[str]:
        """One-time tokens."""
        return create_tokens(self.directory / "state", [SELECTION] * count, self.database)

    @property
    def settings(self) -> Settings:
        """Those of the commands."""
        return Settings(state=self.directory / "state", database=self.database)

    def enroll(self, port: int, token: str) -> Machine | None:
        """A new machine, remembered once the server says so; ``None`` when it did not."""
        name = f"m{next(self.numbers)}"
        try:
            machine = Machine(port, name, token)
        except (RuntimeError, OSError, ValueError):
            return None
        self.enrolled.append(name)
        return machine

    # --- what the registry says afterwards ---

    def check(self) -> Counter[str]:
        """Compare; how often machines were told what.  Raises :class:`AssertionError` for whatever was lost."""
        registry = asyncio.run(self._registry())
        opened_with = [told.nonce for told in self.told if told.status == 200]
        assert len(opened_with) == len(set(opened_with)), "a nonce opened twice"
        digests = {hashlib.sha256(nonce.encode()).digest() for nonce in opened_with}
        assert digests <= registry["nonces"], "Y without its nonce's use"
        for device, count in Counter(told.device for told in self.told if told.status == 200).items():
            assert registry["permitted"][device] >= count, f"Y without its audit record: {device}"
        assert set(self.enrolled) <= registry["devices"], "an enrollment was lost"
        return Counter(told.code for told in self.told)

    async def _registry(self) -> dict[str, Any]:
        async with opened(self.settings) as it:
            store: Any = it.store
            nonces = await store._database.read(
                lambda connection: set(
                    connection.scalars(tables.nonce.select().with_only_columns(tables.nonce.c.digest))
                )
            )
            rows = [row for _, row in await store.audit.list_audit(limit=1_000_000)]
            devices = {device.name for device in await store.devices.list_devices()}
        permitted = Counter(
            row.device for row in rows if row.event == "unlock" and row.verdict == "permitted"
        )
        return {"nonces": nonces, "permitted": permitted, "devices": devices}


def workers(pid: int) -> list[int]:
    """The processes that answer for the server *pid*."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def load(site: Site, port: Callable[[], int], tokens: list[str] | None = None) -> Iterator[threading.Event]:
    """Every machine of *site* unlocks at *port* until the block ends; *tokens* are for machines that enroll meanwhile.

    Each piece of evidence is sent twice: the second time it must open nothing.
    """
    stop = threading.Event()
    workers = [
        threading.Thread(target=_unlock, args=(site, machine, port, stop)) for machine in site.machines
    ]
    if tokens:
        workers.append(threading.Thread(target=_enroll, args=(site, port, stop, tokens)))
    for worker in workers:
        worker.start()
    try:
        yield stop
    finally:
        stop.set()
        for worker in workers:
            worker.join(120)
        assert not any(worker.is_alive() for worker in workers), "a machine hangs"


def _enroll(site: Site, port: Callable[[], int], stop: threading.Event, tokens: list[str]) -> None:
    while tokens and not stop.is_set():
        site.enroll(port(), tokens.pop())


def _unlock(site: Site, machine: Machine, port: Callable[[], int], stop: threading.Event) -> None:
    x = Blinded.make()
    device = next(name for name, found in _named(site) if found is machine)
    while not stop.is_set():
        asked = _ask(port(), machine, x.jwk)
        if asked is None or asked.status != 401:
            time.sleep(0.02)
            continue
        nonce = json.loads(asked.body)["challenge"]["nonce"]
        body = machine.evidence(nonce, x)
        for _ in range(2):
            begun = time.monotonic()
            answer = _ask(port(), machine, body)
            seconds = time.monotonic() - begun
            if answer is None:
                site.told.append(Told(device, nonce, 0, "broken", seconds))
                continue
            if answer.status == 200:
                x.check(answer.body, machine.server)
            code = "ok" if answer.status == 200 else json.loads(answer.body)["code"]
            site.told.append(Told(device, nonce, answer.status, code, seconds))


def _named(site: Site) -> list[tuple[str, Machine]]:
    return list(zip(site.enrolled, site.machines, strict=False))


def _ask(port: int, machine: Machine, body: bytes) -> Answer | None:
    try:
        return ask(port, "POST", machine.target, body)
    except (RuntimeError, OSError):
        return None


# --- what tests wait for ---


def begin(site: Site, server: Serving) -> None:
    """Enroll the machines."""
    tokens = site.tokens(MACHINES)
    site.machines = [m for _ in range(MACHINES) if (m := site.enroll(server.port, tokens.pop()))]
    assert len(site.machines) == MACHINES


def until_opened(site: Site, seconds: float = 240) -> None:
    """Wait until a machine opened its disk that had not before."""
    known = len(site.told)
    deadline = time.monotonic() + seconds
    while not any(told.status == 200 for told in site.told[known:]):
        assert time.monotonic() < deadline, "nobody opens any more"
        time.sleep(0.05)


def until_broken(site: Site, seconds: float = 240) -> None:
    """Wait until a machine got no answer to its evidence, if none had that fate yet."""
    deadline = time.monotonic() + seconds
    while not any(told.code == "broken" for told in site.told):
        assert time.monotonic() < deadline, "everybody is answered"
        time.sleep(0.05)


def next_codes(site: Site, count: int = 4 * MACHINES, seconds: float = 240) -> set[str]:
    """Return what machines are told from now on, in *count* answers."""
    known = len(site.told)
    deadline = time.monotonic() + seconds
    while len(site.told) < known + count:
        assert time.monotonic() < deadline, "nobody is told anything"
        time.sleep(0.05)
    return {told.code for told in site.told[known:]}


def until_refused(site: Site, seconds: float = 240) -> None:
    """Wait until a machine heard that the database is away."""
    known = len(site.told)
    deadline = time.monotonic() + seconds
    while not any(told.code == "unavailable" for told in site.told[known:]):
        assert time.monotonic() < deadline, "nobody hears of it"
        time.sleep(0.05)
