"""The load generator: a process of its own that runs one kind of request at a time and reports what it saw.

The same client, at the same concurrency, asks every server.  A client waits for its answer before it asks again.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from multiprocessing.connection import Connection
from statistics import median, quantiles
from types import TracebackType
from typing import Any, Final, Literal, Self

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.base64url import unb64u
from tests.bench.exchange import Price
from tests.bench.load.attester import Blinded, Machine, public_key
from tests.bench.load.client import Answer, Client, ask, drive, request

Kind = Literal["rec", "unlock"]

#: Clients at a time, and enrolled machines: one machine has one TPM, which makes one quote after the other.
CONCURRENCY: Final = 16
#: An X costs the generator as much as an exchange costs the server, so they are made before the clock runs.
_BLINDED: Final = 64


@dataclass(frozen=True, slots=True)
class Run:
    """Results of one run: answers in *seconds*, their latencies, and the processor time of the generator.

    *answered* counts the warm-up and the end too: divide a server's processor time over the whole run by it.  *ecdh_ms*
    is the processor time of one raw P-521 ECDH in these very seconds, in ms.
    """

    count: int
    seconds: float
    latencies: tuple[float, ...]
    _: KW_ONLY
    cpu_s: float
    answered: int
    ecdh_ms: float

    @property
    def rate(self) -> float:
        """Operations for each second."""
        return self.count / self.seconds


def summarize(name: str, runs: Sequence[Run]) -> dict[str, float]:
    """The median of the rates, and percentiles over all latencies, as ``NAME_per_s``, ``NAME_p50_ms``, ``NAME_p99_ms``."""
    cuts = quantiles([latency for run in runs for latency in run.latencies], n=100, method="inclusive")
    return {
        f"{name}_per_s": median(run.rate for run in runs),
        f"{name}_p50_ms": 1000 * cuts[49],
        f"{name}_p99_ms": 1000 * cuts[98],
    }


@dataclass
class _Counter:
    """Counts what ends between the end of the warm-up and the deadline, but two answers at least."""

    begin: float
    deadline: float
    price: Price
    _: KW_ONLY
    latencies: list[float] = field(default_factory=list)
    answered: int = 0
    last: float = 0.0

    def goes_on(self, now: float) -> bool:
        """Return True if something that begins *now* is wanted."""
        return now < self.deadline or len(self.latencies) < 2

    def add(self, started: float) -> None:
        now = time.perf_counter()
        self.answered += 1
        if self.begin <= now and self.goes_on(now):
            self.latencies.append(now - started)
            self.last = now
        self.price.look(now)

    def run(self, seconds: float, cpu_s: float) -> Run:
        """The result after *seconds*, or however long the last answer took, with the generator's processor time."""
        latencies, took = tuple(self.latencies), max(seconds, self.last - self.begin)
        return Run(
            len(latencies), took, latencies, cpu_s=cpu_s, answered=self.answered, ecdh_ms=self.price.ms()
        )


class _Generator:
    """Main function of the process."""

    def __init__(self) -> None:
        self._blinded = [Blinded.make() for _ in range(_BLINDED)]
        self._machines: list[Machine] = []

    def enroll(self, port: int, names: Sequence[str], tokens: Sequence[str]) -> int:
        """Make and enroll machines, over HTTP."""
        self._machines += [Machine(port, name, token) for name, token in zip(names, tokens, strict=True)]
        return len(self._machines)

    def run(
        self, port: int, kind: Kind, seconds: float, warm_up: float, keep_alive: bool, clients: int, tls: bool
    ) -> Run:
        """Run *kind* with *clients* at a time for *warm_up* and then *seconds*, of which the count is."""
        make = self._client_of(port, kind)
        price = Price()
        begin = time.perf_counter() + warm_up
        counter = _Counter(begin, begin + seconds, price)
        cpu, wall = time.process_time(), time.perf_counter()
        drive(port, [make(counter, number) for number in range(clients)], keep_alive=keep_alive, tls=tls)
        # The generator also works before and after what is counted: its cost is scaled to what is.
        share = seconds / (time.perf_counter() - wall)
        return counter.run(seconds, (time.process_time() - cpu) * share)

    def storm(self, port: int) -> Run:
        """Every machine boots now: one unlock each, all at once."""
        begin = time.perf_counter()
        counter = _Counter(begin, float("inf"), Price())
        cpu = time.process_time()
        clients = [
            _unlock_once(counter, machine, self._blinded[number % _BLINDED])
            for number, machine in enumerate(self._machines)
        ]
        drive(port, clients, keep_alive=False)
        return counter.run(0.0, time.process_time() - cpu)

    def _client_of(self, port: int, kind: Kind) -> Callable[[_Counter, int], Client]:
        if kind == "rec":
            kid, server = _exchange_key(port)
            target = f"/rec/{kid}"
            return lambda counter, number: _rec(counter, target, server, self._endless(number))
        return lambda counter, number: _unlock(counter, self._machines[number], self._endless(number))

    def _endless(self, number: int) -> Iterator[Blinded]:
        first = number % _BLINDED
        return itertools.cycle(self._blinded[first:] + self._blinded[:first])


def _rec(
    counter: _Counter, target: str, server: ec.EllipticCurvePublicKey, blinded: Iterator[Blinded]
) -> Client:
    x, answer = next(blinded), None
    while counter.goes_on(started := time.perf_counter()):
        x = next(blinded)
        answer = _expect(200, (yield request("POST", target, x.jwk)))
        counter.add(started)
    if answer is not None:
        x.check(answer.body, server)


def _unlock(counter: _Counter, machine: Machine, blinded: Iterator[Blinded]) -> Client:
    x, answer = next(blinded), None
    while counter.goes_on(started := time.perf_counter()):
        x = next(blinded)
        answer = yield from _unlock_with(machine, x)
        counter.add(started)
    if answer is not None:
        x.check(answer.body, machine.server)


def _unlock_once(counter: _Counter, machine: Machine, x: Blinded) -> Client:
    # From the storm's begin: a machine that waits for its connection waits all the same.
    answer = yield from _unlock_with(machine, x)
    counter.add(counter.begin)
    x.check(answer.body, machine.server)


def _unlock_with(machine: Machine, x: Blinded) -> Generator[bytes, Answer, Answer]:
    """Both requests of an unlock; the second answer."""
    asked = _expect(401, (yield request("POST", machine.target, x.jwk)))
    nonce = json.loads(asked.body)["challenge"]["nonce"]
    return _expect(200, (yield request("POST", machine.target, machine.evidence(nonce, x))))


def _expect(status: int, answer: Answer) -> Answer:
    if answer.status != status:
        raise RuntimeError(f"the server answered {answer.status} instead of {status}: {answer.body!r}")
    return answer


def _exchange_key(port: int) -> tuple[str, ec.EllipticCurvePublicKey]:
    """The thumbprint and the point of the open exchange key that ``/adv`` shows."""
    payload = json.loads(unb64u(json.loads(ask(port, "GET", "/adv").body)["payload"]))
    key = next(key for key in payload["keys"] if "deriveKey" in key["key_ops"])
    return thumbprint(key), public_key(key)


# --- the process ---------------------------------------------------------------------------------------------------


def _main(pipe: Connection) -> None:
    generator = _Generator()
    while (call := pipe.recv()) is not None:
        name, arguments = call
        try:
            pipe.send(getattr(generator, name)(*arguments))
        except Exception as error:  # noqa: BLE001 - the other process reports it
            pipe.send(error)


class LoadGenerator:
    """The process, seen from outside; started on entry, ended on exit."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_main, args=(other,), daemon=True)
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pipe.send(None)
        self._process.join(30)
        if self._process.exitcode is None:
            self._process.terminate()

    def enroll(self, port: int, names: Sequence[str], tokens: Sequence[str]) -> int:
        """See :meth:`_Generator.enroll`."""
        count: int = self._call("enroll", port, list(names), list(tokens))
        return count

    def run(
        self,
        port: int,
        kind: Kind,
        *,
        seconds: float,
        warm_up: float,
        keep_alive: bool,
        clients: int = CONCURRENCY,
        tls: bool = False,
    ) -> Run:
        """See :meth:`_Generator.run`."""
        run: Run = self._call("run", port, kind, seconds, warm_up, keep_alive, clients, tls)
        return run

    def storm(self, port: int) -> Run:
        """See :meth:`_Generator.storm`."""
        run: Run = self._call("storm", port)
        return run

    def _call(self, name: str, *arguments: object) -> Any:
        self._pipe.send((name, arguments))
        result = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result
