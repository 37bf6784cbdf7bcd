"""``python -m tests.bench.scale``: databases, workers, sizes of the registry, and a reboot storm, beside Debian's tangd.

Everything of one table is up at the same time and asked in turn, several times over, as in ``python -m tests.bench``.
The same registry serves on SQLite and, copied by ``tang-attest db copy``, on a PostgreSQL of the bench's own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.figures import report, scale_report
from tests.bench.load import population, servers
from tests.bench.load.attester import SELECTION
from tests.bench.load.generator import CONCURRENCY, Kind, LoadGenerator, Run, summarize
from tests.bench.workplace import BUILD, workplace
from tests.postgres import Postgres
from tests.tang.servers import keygen


@dataclass(frozen=True)
class Options:
    """Extent of the measurement: *clients* at a time, *sizes* of the registry, machines of the *storm*, *rounds* of *seconds*."""

    clients: tuple[int, ...] = (16, 64)
    sizes: tuple[int, ...] = (100, 10_000, 100_000)
    storm: int = 1000
    rounds: int = 5
    seconds: float = 1.5


@dataclass(frozen=True)
class _Asked:
    """Request to a server, and the name of its figures."""

    name: str
    port: int
    kind: Kind
    clients: int = CONCURRENCY


class _Bench:
    """A directory, a PostgreSQL, a Tang directory, and what was measured so far."""

    def __init__(self, work: Path, postgres: Postgres, options: Options) -> None:
        self._work, self._postgres, self._options = work, postgres, options
        self._tang_dir = work / "tang"
        self._tang_dir.mkdir()
        keygen(self._tang_dir)
        self.figures: dict[str, float] = {}

    def workers(self) -> None:
        """Rates of each database with one and two workers, beside tangd; and the storms."""
        with LoadGenerator() as generator, ExitStack() as running:
            state = self._registry("fleet", generator, max(self._options.storm, *self._options.clients))
            ports = {"tangd": running.enter_context(servers.tangd(self._tang_dir))}
            for database, url in self._databases(state):
                for workers in (1, 2):
                    server = self._serve(state, url, workers)
                    ports[f"{database}_{workers}w"] = running.enter_context(server).port
            kinds: dict[str, tuple[Kind, ...]] = {"tangd": ("rec",)}
            asked = [
                _Asked(f"{which}_{kind}_{clients}c", port, kind, clients)
                for clients in self._options.clients
                for which, port in ports.items()
                for kind in kinds.get(which, ("rec", "unlock"))
            ]
            for name, seen in self._in_turn(generator, asked).items():
                self.figures |= summarize(name, seen)
            for which, port in ports.items():
                if which != "tangd":
                    self._say(f"storm: {which}")
                    run = generator.storm(port)
                    self.figures |= summarize(f"{which}_storm", [run]) | {f"{which}_storm_opened": run.count}

    def sizes(self) -> None:
        """Latency and memory by the number of registered devices, each database with one worker."""
        with LoadGenerator() as generator, ExitStack() as running:
            first = self._registry("few", generator, min(self._options.sizes))
            places: list[tuple[str, servers.Server]] = []
            for size in self._options.sizes:
                state = self._work / f"size-{size}"
                shutil.copytree(first, state)
                self._say(f"a registry of {size:,} devices")
                population.grow(state, size)
                for database, url in self._databases(state):
                    server = running.enter_context(self._serve(state, url, 1))
                    places.append((f"{database}_{size}", server))
            asked = [_Asked(name, server.port, "unlock") for name, server in places]
            for name, seen in self._in_turn(generator, asked).items():
                self.figures |= summarize(name, seen)
            for name, server in places:
                self.figures[f"{name}_rss_mb"] = server.memory_mb()

    def _registry(self, name: str, generator: LoadGenerator, machines: int) -> Path:
        """A state directory in which the machines of *generator* are enrolled."""
        state = self._work / name
        self._say(f"{machines:,} machines enroll")
        servers.init(state)
        tokens = servers.create_tokens(state, [SELECTION] * machines)
        with servers.serve(state, None, self._work / f"{name}.log") as server:
            generator.enroll(server.port, [f"machine-{number}" for number in range(machines)], tokens)
        return state

    def _databases(self, state: Path) -> Iterator[tuple[str, str | None]]:
        url = self._postgres.url(self._postgres.create())
        self._say(f"{state.name} is copied to PostgreSQL")
        # A database that was copied away serves no longer, so it is another one that is copied.
        original = shutil.copytree(state, state.with_name(f"{state.name}-copied"))
        population.copy_to(original, url)
        shutil.rmtree(original)
        yield "sqlite", None
        yield "postgresql", url

    @contextmanager
    def _serve(self, state: Path, url: str | None, workers: int) -> Iterator[servers.Server]:
        log = self._work / f"{state.name}-{'sqlite' if url is None else 'postgresql'}-{workers}.log"
        with servers.serve(state, self._tang_dir, log, workers=workers, database=url) as server:
            yield server

    def _in_turn(self, generator: LoadGenerator, asked: Sequence[_Asked]) -> Mapping[str, list[Run]]:
        series: dict[str, list[Run]] = defaultdict(list)
        seconds = self._options.seconds
        for number in range(self._options.rounds):
            self._say(f"round {number + 1} of {self._options.rounds}")
            for each in asked:
                run = generator.run(
                    each.port,
                    each.kind,
                    seconds=seconds,
                    warm_up=seconds / 5,
                    keep_alive=False,
                    clients=each.clients,
                )
                series[each.name].append(run)
        return series

    def _say(self, sentence: str) -> None:
        print(f"    {sentence}", file=sys.stderr, flush=True)


def bench(work: Path, options: Options) -> dict[str, float]:
    """Every figure."""
    with Postgres() as postgres:
        it = _Bench(work, postgres, options)
        it.workers()
        it.sizes()
    return it.figures | scale_report.ratios(it.figures, options.clients, options.sizes)


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.scale", description="Databases, workers, sizes."
    )
    parser.add_argument("--rounds", type=int, default=Options.rounds, help="how often each is measured")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help="how long each one takes")
    parser.add_argument("--storm", type=int, default=Options.storm, help="machines of the reboot storm")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=Options.sizes, help="devices of the registries"
    )
    parser.add_argument("--output", type=Path, default=BUILD / "bench-scale.json", help="where the JSON goes")
    given = parser.parse_args(arguments)
    options = Options(
        sizes=tuple(sorted(given.sizes)), storm=given.storm, rounds=given.rounds, seconds=given.seconds
    )
    before = os.getloadavg()[0]
    with workplace("bench-scale") as work:
        figures = bench(work, options)
    report.write(figures, given.output)
    print(f"{os.cpu_count()} processors; load average {before:.1f} before the run, 0 on an idle machine\n")
    print(scale_report.tables(figures, options.clients, options.sizes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
