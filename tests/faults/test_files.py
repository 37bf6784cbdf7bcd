"""No file descriptor is left: those who are connected are answered, nobody gets Y without its record, and it heals."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.bench.load.attester import Blinded, Machine
from tests.cli.serving import Serving, head, request, serving
from tests.faults.load import Site, begin, load, until_broken, until_opened, workers

#: Answers to evidence that is sent twice.
REPLAYED = {"nonce-used", "clock-backwards"}
_CLOSE = b"Connection: close\r\n"
#: Descriptors that are left when the limit falls.
LEFT = 12


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_strangers_hold_every_descriptor(tmp_path: Path) -> None:
    """Connected clients are answered, the worker does not spin, one line of log tells it, and it heals by itself."""
    site = Site(tmp_path).init()
    with serving(tmp_path, "--log-format", "json") as server:
        begin(site, server)
        [worker] = workers(server.process.pid)
        with connected(server) as before, no_files(worker, LEFT), strangers(server, 8 * LEFT):
            until_said(server, "no-open-files")
            spent, wrote = cpu_seconds(worker), len(server.log.read_bytes())
            begun = time.monotonic()
            while time.monotonic() < begun + 3:
                assert alive(before)
                time.sleep(0.5)
            seconds = time.monotonic() - begun
            assert cpu_seconds(worker) - spent < seconds / 2, "it spins"
            assert len(server.log.read_bytes()) - wrote < 7000 * seconds, "it fills the log"
        until_said(server, "open-files-again")
        assert request(server.port, "GET", "/readyz")[0] == 200
        with load(site, lambda: server.port):
            until_opened(site)
        assert server.stop() == 0
        assert not [record for record in server.records() if "exception" in record]
    assert set(site.check()) <= {"ok", *REPLAYED}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_under_load(tmp_path: Path) -> None:
    """Machines come and go meanwhile: each Y has its record."""
    site = Site(tmp_path).init()
    with serving(tmp_path, "--log-format", "json") as server:
        begin(site, server)
        [worker] = workers(server.process.pid)
        with load(site, lambda: server.port):
            until_opened(site)
            for left in (LEFT, 1):
                with no_files(worker, left), strangers(server, 8 * LEFT):
                    time.sleep(3)
                    if left == 1:
                        until_broken(site)
                until_opened(site)
        assert server.stop() == 0
    codes = site.check()
    assert codes["broken"] >= 1, codes
    assert set(codes) <= {"ok", "broken", "unavailable", *REPLAYED}


@pytest.mark.timeout(900)
def test_the_database_cannot_be_opened(tmp_path: Path) -> None:
    """SQLite needs descriptors for a further connection: 503 and no more, and 401 with a challenge once there are some."""
    site = Site(tmp_path).init()
    with serving(tmp_path) as server:
        begin(site, server)
        assert server.stop() == 0
    machine = site.machines[0]
    x = Blinded.make()
    with serving(tmp_path, "--log-format", "json") as server:
        [worker] = workers(server.process.pid)
        question = head("POST", machine.target, len(x.jwk)).replace(_CLOSE, b"") + x.jwk
        token = json.dumps({"token": "A" * 43, "name": "a-machine"}).encode()
        enrollment = head("POST", "/attest/enroll", len(token)).replace(_CLOSE, b"") + token
        ready = head("GET", "/readyz", 0).replace(_CLOSE, b"")
        with contextlib.ExitStack() as stack:
            askers = [stack.enter_context(connected(server)) for _ in range(48)]
            with no_files(worker, 0):
                # Some connections to the database are open; two reads and a write at the same time need the last.
                heard: set[bytes] = set()
                deadline = time.monotonic() + 180
                while b"503" not in heard:
                    assert time.monotonic() < deadline, heard
                    with unlocking(askers[-1], machine, question, x) as statuses:
                        heard |= answers(askers[:-1], question, enrollment, ready)
                    heard |= statuses
                assert heard <= {b"401", b"403", b"200", b"503"}
            assert answers(askers, question) == {b"401"}
        assert server.stop() == 0
        records = server.records()
    assert [record for record in records if "database" in record["event"]], records
    assert not [record for record in records if "exception" in record]


@contextlib.contextmanager
def no_files(pid: int, left: int) -> Iterator[None]:
    """Process *pid* may open *left* descriptors more than it has."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir()}
    # A limit is on the number of a descriptor, not on how many there are.
    free = itertools.islice((number for number in itertools.count() if number not in taken), left + 1)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (list(free)[-1], hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def strangers(server: Serving, count: int) -> Iterator[None]:
    """Connections that say nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 5))
        yield


@contextlib.contextmanager
def connected(server: Serving) -> Iterator[socket.socket]:
    """A connection that was answered before, and stays."""
    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
        assert alive(connection)
        yield connection


@contextlib.contextmanager
def unlocking(asker: socket.socket, machine: Machine, question: bytes, x: Blinded) -> Iterator[set[bytes]]:
    """Send good evidence, whose decision is written while the block runs; the statuses of challenge and answer."""
    asker.sendall(question)
    challenge = asker.recv(65536)
    statuses = {challenge.split(maxsplit=2)[1]}
    if statuses == {b"401"}:
        evidence = machine.evidence(json.loads(challenge.partition(b"\r\n\r\n")[2])["challenge"]["nonce"], x)
        asker.sendall(head("POST", machine.target, len(evidence)).replace(_CLOSE, b"") + evidence)
        yield statuses
        statuses.add(asker.recv(65536).split(maxsplit=2)[1])
    else:
        yield statuses


def answers(askers: Sequence[socket.socket], *questions: bytes) -> set[bytes]:
    """The statuses with which *questions* are answered when all askers ask one of them at once."""
    for asker, question in zip(askers, itertools.cycle(questions), strict=False):
        asker.sendall(question)
    return {asker.recv(65536).split(maxsplit=2)[1] for asker in askers}


def until_said(server: Serving, event: str) -> None:
    """Wait for a line of the log."""
    deadline = time.monotonic() + 120
    while f'"{event}"' not in server.log.read_text():
        assert time.monotonic() < deadline, f"nobody says {event}"
        time.sleep(0.1)


def alive(connection: socket.socket) -> bool:
    """Return True if a connected client is answered."""
    connection.sendall(head("GET", "/healthz", 0).replace(_CLOSE, b""))
    return connection.recv(65536).startswith(b"HTTP/1.1 200")


def cpu_seconds(pid: int) -> float:
    """Processor time of *pid*."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
