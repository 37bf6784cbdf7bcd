"""Real everything: swtpm, clevis, jose, curl, cryptsetup, and ``tang-attest serve`` as a process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pin.bad_server import bad_server
from tests.pin.machine import Machine, Operator
from tests.pin.predict.boots import Installed
from tests.pin.predict.running import Running
from tests.swtpm import Swtpm


@dataclass(frozen=True)
class Server:
    """A running server and the person who operates it."""

    operator: Operator
    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests; each test enrolls a machine of its own."""
    operator = Operator(tmp_path_factory.mktemp("server") / "state")
    with operator.serve() as port:
        yield Server(operator, port)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A device name that no other test uses, not one of the same name in another file either."""
    readable = "".join(c if c.isalnum() else "-" for c in request.node.name)[:40].rstrip("-")
    return f"{readable}-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:8]}"


@pytest.fixture
def make_machine(tmp_path: Path) -> Iterator[Callable[[str], Machine]]:
    """Makes machines with a TPM of their own."""
    with ExitStack() as stack:

        def make(label: str) -> Machine:
            tpm = stack.enter_context(Swtpm(tmp_path / f"{label}-tpm", banks=("sha256",)))
            return Machine(tmp_path / label, tpm)

        yield make


@pytest.fixture
def machine(make_machine: Callable[[str], Machine]) -> Machine:
    """One machine that is not enrolled."""
    return make_machine("machine")


@pytest.fixture
def jwe(machine: Machine, server: Server, name: str) -> bytes:
    """SECRET, encrypted by `machine`, which was enrolled for it."""
    return machine.encrypt(url=server.url, name=name, token=server.operator.token(name))


@pytest.fixture(scope="session")
def bad() -> Iterator[str]:
    """The URL of the server that misbehaves."""
    with bad_server() as url:
        yield url


@pytest.fixture
def run_machine(machine: Machine) -> Callable[..., Running]:
    """Boots what is installed."""

    def start(installed: Installed, *words: str) -> Running:
        installed.install()
        running = Running(machine, installed)
        running.boot(*words)
        return running

    return start
