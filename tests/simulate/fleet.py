"""The fleet at the server: enrolls, boots and unlocks over HTTP, and remembers when, how long, and how it ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, Final

from tests.bench.load.attester import Blinded
from tests.bench.load.client import Answer, Client, drive, request
from tests.simulate.machine import Software, SoftwareMachine

#: An X costs as much as an exchange, so they are made beforehand and used in turn.
_BLINDED: Final = 64


@dataclass(frozen=True, slots=True)
class Boot:
    """One boot: when it ended and how long its unlock took (seconds), what was booted, and the code of the answer."""

    at: float
    seconds: float
    machine: str
    software: str
    code: str


@dataclass(frozen=True, slots=True)
class Phase:
    """Boots that belong together, and how long they took (seconds)."""

    name: str
    boots: tuple[Boot, ...]
    seconds: float

    @property
    def refused(self) -> tuple[Boot, ...]:
        """Those that were refused."""
        return tuple(boot for boot in self.boots if boot.code != "ok")

    @property
    def rate(self) -> float:
        """Boots for each second."""
        return len(self.boots) / self.seconds

    def percentiles(self) -> tuple[float, float]:
        """p50 and p99 of the latency, in milliseconds."""
        latencies = [1000 * boot.seconds for boot in self.boots]
        if len(latencies) == 1:
            return latencies[0], latencies[0]
        cuts = quantiles(latencies, n=100, method="inclusive")
        return cuts[49], cuts[98]


@dataclass
class Fleet:
    """The machines of one run, against the server at ``port``."""

    port: int
    machines: Sequence[SoftwareMachine]
    boots: list[Boot] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._blinded = [Blinded.make() for _ in range(_BLINDED)]
        self._begun = time.perf_counter()
        self.by_name = {machine.name: machine for machine in self.machines}

    def elapsed(self) -> float:
        """Seconds since the fleet was made."""
        return time.perf_counter() - self._begun

    def enroll(self, tokens: Sequence[str], software: Software, progress: Iterator[None]) -> None:
        """Enroll every machine, which runs *software*, some at a time."""
        waiting = iter(list(zip(self.machines, tokens, strict=True)))

        def client() -> Client:
            for machine, token in waiting:
                machine.boot(software)
                begun = _expect(200, (yield request("POST", "/attest/enroll", machine.application(token))))
                done = yield request("POST", "/attest/enroll/finish", machine.finish(begun))
                machine.enrolled(_expect(201, done))
                next(progress)

        drive(self.port, [client() for _ in range(8)], keep_alive=False)

    def boot(
        self, name: str, machines: Iterable[SoftwareMachine], software: Software, at_a_time: int
    ) -> Phase:
        """Boot *machines* into *software*, *at_a_time*; every Y that comes is compared with x·S afterwards."""
        waiting, answers = iter(enumerate(machines)), []
        first, begun = len(self.boots), time.perf_counter()

        def client() -> Client:
            for number, machine in waiting:
                machine.boot(software)
                x = self._blinded[number % _BLINDED]
                started = time.perf_counter()
                asked = _expect(401, (yield request("POST", machine.target, x.jwk)))
                nonce = asked["challenge"]["nonce"]
                answer = yield request("POST", machine.target, machine.evidence(nonce, x))
                ended = time.perf_counter()
                code = "ok" if answer.status == 200 else str(_expect(403, answer)["code"])
                self.boots.append(
                    Boot(ended - self._begun, ended - started, machine.name, software.name, code)
                )
                if code == "ok":
                    answers.append((x, answer.body, machine.server))

        drive(self.port, [client() for _ in range(at_a_time)], keep_alive=False)
        seconds = time.perf_counter() - begun
        for x, body, server in answers:
            x.check(body, server)
        return Phase(name, tuple(self.boots[first:]), seconds)


def _expect(status: int, answer: Answer) -> dict[str, Any]:
    if answer.status != status:
        raise RuntimeError(f"the server answered {answer.status} instead of {status}: {answer.body!r}")
    body: dict[str, Any] = json.loads(answer.body)
    return body
