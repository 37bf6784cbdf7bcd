"""What tests of several directories need."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tang_attest.store import upgrade
from tests.fakes import ROW_KEY
from tests.nix.nix import evaluator_in_words
from tests.postgres import Postgres

# How long an example takes says only how busy the machine is.
settings.register_profile("without a deadline", deadline=None)
settings.load_profile("without a deadline")

#: A database with our tables and nothing in them; others are copied from it.
_TEMPLATE = "template_registry"


def pytest_report_header() -> str:
    """Which Nix library the tests of nix/ use."""
    return f"nix: evaluated with {evaluator_in_words()}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL server for the session."""
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
