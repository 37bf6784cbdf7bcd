"""Fixtures for tests of several directories."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, settings

from tests.running import reports
from tests.running.left_out import is_left_out

# The process that hands out the tests runs none.  It reads this file before it starts those that do, so a fixture
# imports its part of the program itself.
if TYPE_CHECKING:
    from tang_attest.protocol.exchange import ExchangeKey
    from tang_attest.protocol.values.points import Point
    from tests import registry
    from tests.attester import Attester
    from tests.postgres import Postgres
    from tests.server import Server

# The time of an example, or of making it, says only how busy the machine is.  Examples are the same in each run of a version: a
# failure is then that of a change, and happens before it lands.  --hypothesis-profile=explore draws others.
settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("repeatable"), derandomize=False)
settings.load_profile("repeatable")

#: A database with our tables and nothing in them; others are copied from it.
_TEMPLATE = "template_registry"


#: A server that compiles itself at each start takes half as long again; the tests start a few hundred.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

#: Objects that tests make before a search for garbage; a test of a server makes some thousands.
_YOUNG: Final = 50_000

#: No test reads the configuration of the machine that runs it; those that need one name a file.
os.environ["TANG_ATTEST_CONFIG"] = os.devnull


@pytest.fixture(scope="session", autouse=True)
def copied_registries() -> Iterator[None]:
    """New SQLite registries are copies of one; statements are compiled once, and migrations run once."""
    from tang_attest.store import store
    from tests import registry

    with (
        pytest.MonkeyPatch.context() as patch,
        registry.compiled_once(),
        registry.migrated_once(),
        registry.described_once(),
        registry.introspected_once(),
    ):
        patch.setattr(store, "upgrade", registry.create)
        yield


@pytest.fixture(scope="session", autouse=True)
def patient_databases() -> Iterator[None]:
    """A transaction that a busy machine delays is late, and not refused."""
    from tests.store import patience

    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in patience.limits():
            patch.setattr(module, name, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_rsa_keys(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The processes of a run make each RSA key once."""
    from tests.keys import rsa_keys

    if "PYTEST_XDIST_WORKER" in os.environ:
        rsa_keys.share(tmp_path_factory.getbasetemp().parent)


@pytest.fixture(autouse=True)
def lent_rsa_keys() -> Iterator[None]:
    """RSA keys that a test draws are lent to it."""
    from tests.keys import rsa_keys

    with rsa_keys.lent():
        yield


def _import_own_share(session: pytest.Session) -> None:
    """Import a part of the modules of tests first, in each of several processes another one.

    In a fresh checkout the asserts of each module are rewritten, which takes longer than all else of the
    collection.  Each process finds the other parts in the cache of bytecode when it collects them; in the
    same order as all.
    """
    name = os.environ.get("PYTEST_XDIST_WORKER", "")
    if session.config.args != session.config.getini("testpaths") or not name:
        return
    number, count = int(name.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for path in sorted(session.config.rootpath.glob("tests/**/test_*.py"))[number::count]:
        if is_left_out(path, session.config.option.markexpr):
            continue
        with contextlib.suppress(pytest.Collector.CollectError):  # the collection says it
            _ = pytest.Module.from_parent(session, path=path).obj


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import no file of which no test runs."""
    is_tests = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if is_tests and is_left_out(collection_path, config.option.markexpr) else None


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Leave modules and collected tests to no search for garbage, now and later: they stay until the end.

    The garbage of a few tests is found at once: each search among the young goes through what the running
    test holds.
    """
    gc.disable()
    try:
        _import_own_share(session)
        return (yield)
    finally:
        gc.set_threshold(_YOUNG, 10, 10)
        gc.enable()
        gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_unconfigure() -> Generator[None, object, object]:
    """Leave what pytest's own search for garbage has found alive to no further one: two follow until the
    process is gone.
    """
    try:
        return (yield)
    finally:
        gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Send few reports."""
    reports.thin_out(config)


def pytest_report_header() -> str:
    """Name the Nix library that the tests of nix/ use."""
    from tests.nix.nix import evaluator_in_words

    return f"nix: evaluated with {evaluator_in_words()}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for the session."""
    from tang_attest.store import upgrade
    from tests.fakes import ROW_KEY
    from tests.postgres import Postgres

    with Postgres() as server:
        server.create(name=_TEMPLATE)
        asyncio.run(upgrade(server.url(_TEMPLATE), ROW_KEY))
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database of its own for each test, with our tables."""
    name = postgres.create(_TEMPLATE)
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> Iterator[str]:
    """A database of its own for each test, without tables."""
    name = postgres.create()
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture(scope="session")
def installations() -> registry.Installations:
    """Installations that may have one secret."""
    from tests import registry

    return registry.Installations()


@pytest.fixture
async def server(tmp_path: Path, installations: registry.Installations) -> AsyncIterator[Server]:
    """A server without plain Tang."""
    from tests.server import Server

    async with Server(tmp_path / "state", installations=installations) as started:
        yield started


@pytest.fixture
def attester() -> Attester:
    """A machine with a P-256 AK."""
    from tests.attester import Attester

    return Attester()


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Every X that was multiplied by a private key."""
    from tang_attest.protocol.exchange import ExchangeKey

    seen: list[Point] = []
    original = ExchangeKey.multiply

    def witness(key: ExchangeKey, x: Point) -> Point:
        seen.append(x)
        return original(key, x)

    monkeypatch.setattr(ExchangeKey, "multiply", witness)
    return seen
