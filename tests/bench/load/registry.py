"""Registries for a bench: machines enroll once over HTTP, and any number of servers get a copy of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from tests.bench.load import population, servers
from tests.bench.load.attester import SELECTION
from tests.bench.load.generator import LoadGenerator
from tests.postgres import Postgres

DATABASES: Final = ("sqlite", "postgresql")
#: PostgreSQL's data are on a disk, as the SQLite file is; /tmp and /dev/shm may be memory.
ON_DISK: Final = Path("/var/tmp")


def enrolled(state: Path, generator: LoadGenerator, machines: int) -> Path:
    """Make the state directory *state*, in which *machines* of *generator* are enrolled."""
    servers.init(state)
    tokens = servers.create_tokens(state, [SELECTION] * machines)
    with servers.serve(state, None, state.with_suffix(".log")) as server:
        generator.enroll(server.port, [f"machine-{number}" for number in range(machines)], tokens)
    return state


class Copies:
    """Copies of the registry in *original*, each with the database that it is asked for."""

    def __init__(self, original: Path, postgres: Postgres) -> None:
        self._original, self._postgres, self._made = original, postgres, 0
        self._template: str | None = None

    def make(self, database: str) -> tuple[Path, str | None]:
        """A state directory, and the URL of its database; None for SQLite, whose file is in the directory."""
        self._made += 1
        state = self._original.with_name(f"{self._original.name}-{self._made}")
        shutil.copytree(self._original, state)
        if database == "sqlite":
            return state, None
        if self._template is None:
            self._template = self._copied()
        return state, self._postgres.url(self._postgres.create(self._template))

    def _copied(self) -> str:
        # A database that was copied away serves no longer, so it is another one that is copied.
        away, template = self._original.with_name(f"{self._original.name}-away"), self._postgres.create()
        shutil.copytree(self._original, away)
        population.copy_to(away, self._postgres.url(template))
        shutil.rmtree(away)
        return template
