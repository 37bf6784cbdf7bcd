"""Attested unlocks and plain ``/rec`` beside Debian's tangd: transports, databases, workers and clients, in turn; and storms.

Every server is up at the same time, on a copy of one registry, and one load generator asks one after the other, several times
over.  Other work of the machine then disturbs all alike, and ratios of medians can be compared.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.bench.load import servers
from tests.bench.load.generator import Kind, LoadGenerator, Run, summarize
from tests.bench.load.registry import DATABASES, ON_DISK, Copies, enrolled
from tests.client_pki import server_certificate
from tests.postgres import Postgres
from tests.tang.servers import keygen

#: Transports, and the key of the certificate of those that are HTTPS.
TRANSPORTS: Final = ("http", "p256", "rsa2048")
WORKERS: Final = (1, 2)
#: Name of a mode in the figures, and whether connections are kept; curl makes one for each request.
MODES: Final = {"": False, "_kept": True}


@dataclass(frozen=True, slots=True)
class Place:
    """A server that is measured: *name* is ``TRANSPORT_DATABASE_WORKERSw``."""

    name: str
    port: int
    pid: int
    tls: bool
    database_pid: int | None


@dataclass(frozen=True, slots=True)
class _Cell:
    """One kind of request to one server, by some clients at a time."""

    place: Place
    kind: Kind
    clients: int
    mode: str

    @property
    def name(self) -> str:
        return f"{self.place.name}_{self.kind}_{self.clients}c{self.mode}"


@dataclass(frozen=True, slots=True)
class _Look:
    """One run, and the processor time for each answer in raw ECDHs of the same seconds."""

    run: Run
    server_ecdhs: float
    database_ecdhs: float | None


def cells(places: Sequence[Place], clients: Sequence[int]) -> Iterator[_Cell]:
    """All that is measured: unlocks everywhere, plain ``/rec`` and kept connections over HTTP."""
    for number in clients:
        for place in places:
            for mode in MODES if not place.tls else ("",):
                if place.name != "tangd":
                    yield _Cell(place, "unlock", number, mode)
                if place.name == "tangd" or (not place.tls and "sqlite" in place.name):
                    yield _Cell(place, "rec", number, mode)


def bench(work: Path, *, clients: Sequence[int], rounds: int, seconds: float, storm: int) -> dict[str, float]:
    """Every figure of *clients* at a time, *rounds* times *seconds* each, and of a *storm* of so many machines."""
    tang_dir = work / "tang"
    tang_dir.mkdir()
    keygen(tang_dir)
    figures: dict[str, float] = {}
    with Postgres(ON_DISK) as postgres, LoadGenerator() as generator, ExitStack() as running:
        _say(f"{max(storm, *clients):,} machines enroll")
        original = enrolled(work / "fleet", generator, max(storm, *clients))
        places = _start(running, Copies(original, postgres), postgres.pid, tang_dir, work)
        for name, looks in _in_turn(generator, list(cells(places, clients)), rounds, seconds).items():
            figures |= _figures(name, looks)
        for place in places:
            if place.name.startswith("http"):
                _say(f"storm: {place.name}")
                run = generator.storm(place.port)
                name = f"{place.name.removeprefix('http_')}_storm"
                figures |= summarize(name, [run]) | {f"{name}_opened": run.count}
                figures[f"{place.name}_rss_mb"] = servers.memory_mb(place.pid)
    return figures | _ratios(figures, clients)


def _start(running: ExitStack, copies: Copies, postgres: int, tang_dir: Path, work: Path) -> Sequence[Place]:
    """Every server; all databases are there before any is asked, because a template must not be in use."""
    certificates: dict[str, Sequence[str]] = {"http": ()}
    for transport, key in _certificate_keys().items():
        certificate, private = server_certificate(work / transport, key=key)
        certificates[transport] = ("--tls-certificate", str(certificate), "--tls-key", str(private))
    made = {
        (transport, database, workers): copies.make(database)
        for transport in TRANSPORTS
        for database in DATABASES
        for workers in WORKERS
    }
    places = [Place("tangd", running.enter_context(servers.tangd(tang_dir)), 0, False, None)]
    for (transport, database, workers), (state, url) in made.items():
        name = f"{transport}_{database}_{workers}w"
        _say(f"start: {name}")
        log = work / f"{name}.log"
        flags = certificates[transport]
        server = running.enter_context(
            servers.serve(state, tang_dir, log, workers=workers, database=url, flags=flags)
        )
        places.append(Place(name, server.port, server.pid, bool(flags), postgres if url else None))
    return places


def _certificate_keys() -> dict[str, Any]:
    return {
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "rsa2048": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    }


def _in_turn(
    generator: LoadGenerator, asked: Sequence[_Cell], rounds: int, seconds: float
) -> Mapping[str, list[_Look]]:
    series: dict[str, list[_Look]] = defaultdict(list)
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}: {len(asked)} measurements")
        for cell in asked:
            series[cell.name].append(_look(generator, cell, seconds))
    return series


def _look(generator: LoadGenerator, cell: _Cell, seconds: float) -> _Look:
    place = cell.place
    pids = [pid for pid in (place.pid, place.database_pid) if pid]
    before = [servers.cpu_s(pid) for pid in pids]
    run = generator.run(
        place.port,
        cell.kind,
        seconds=seconds,
        warm_up=seconds / 5,
        keep_alive=MODES[cell.mode],
        clients=cell.clients,
        tls=place.tls,
    )
    unit = run.answered * run.ecdh_ms / 1000
    used = [(servers.cpu_s(pid) - begin) / unit for pid, begin in zip(pids, before, strict=True)]
    # tangd's processes are gone when they have answered.
    return _Look(run, used[0] if used else 0.0, used[1] if len(used) > 1 else None)


def _figures(name: str, looks: Sequence[_Look]) -> dict[str, float]:
    figures = summarize(name, [look.run for look in looks])
    if name.startswith("tangd"):
        return figures
    ratio = median(look.server_ecdhs for look in looks)
    ecdh = median(look.run.ecdh_ms for look in looks)
    figures |= {f"{name}_cpu_ratio_ecdh": ratio, f"{name}_cpu_ms": ratio * ecdh}
    databases = [look.database_ecdhs for look in looks if look.database_ecdhs is not None]
    if databases:
        figures[f"{name}_database_cpu_ratio_ecdh"] = median(databases)
    return figures


def _ratios(figures: Mapping[str, float], clients: Sequence[int]) -> dict[str, float]:
    """Rates as multiples of tangd's plain ``/rec`` in the same run, by as many clients in the same mode."""
    found = {}
    for number in clients:
        for mode in MODES:
            tangd = figures[f"tangd_rec_{number}c{mode}_per_s"]
            for kind in ("rec", "unlock"):
                end = f"_{kind}_{number}c{mode}"
                for name in figures:
                    if name.endswith(f"{end}_per_s") and not name.startswith("tangd"):
                        found[f"{name.removesuffix('_per_s')}_ratio_tangd"] = figures[name] / tangd
    return found


def _say(sentence: str) -> None:
    print(f"    {sentence}", file=sys.stderr, flush=True)
