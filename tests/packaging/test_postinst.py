"""An upgrade of the server's package over a database that is not a file of its own: PostgreSQL, or none that answers."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tang_attest.store.database.schema import REVISION
from tests.postgres import Postgres, away

ROOT = Path(__file__).parents[2]
POSTINST = ROOT / "packaging" / "debian" / "tang-attest.postinst"
#: Migrates the database of the first argument to the schema of the second one.
OLD_SCHEMA = """
import asyncio, sys
from alembic import command
from tang_attest.store.database import schema
from tang_attest.store.database.engine import connect, parse_url

async def make():
    database = connect(parse_url(sys.argv[1]), create=True)
    await database.write(lambda connection: command.upgrade(schema.config(connection), sys.argv[2]))
    await database.close()

asyncio.run(make())
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server of its own."""
    with Postgres() as server:
        yield server


class Installed:
    """This checkout in the place of an installed package."""

    def __init__(self, directory: Path, database: str) -> None:
        self.state = directory / "state"
        self.state.mkdir()
        (self.state / "kek").touch()
        settings = directory / "tang-attest.toml"
        settings.write_text(f'state = "{self.state}"\ndatabase = "{database}"\n')
        text = POSTINST.read_text()
        for here, there in (
            ("python=/usr/lib/tang-attest/bin/python", f"python={sys.executable}"),
            ("settings=/etc/tang-attest.toml", f"settings={settings}"),
            ("/var/backups/tang-attest", str(directory / "backups")),
            ("compileall -q /usr/lib/tang-attest/lib", "compileall --help >/dev/null"),
            ("getent passwd tang-attest", "getent passwd root"),
            ("! -user tang-attest", f"! -user {getpass.getuser()}"),
        ):
            assert here in text
            text = text.replace(here, there)
        self.script = directory / "postinst"
        self.script.write_text(text)
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TANG_ATTEST_CONFIG": str(settings),
        }

    def configure(self) -> list[str]:
        """Return the lines of an upgrade; dpkg goes on after it."""
        done = subprocess.run(
            ["sh", self.script, "configure", "0.0.9"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return [line.removeprefix("tang-attest: ") for line in done.stderr.splitlines()]


def bring(database: str, revision: str) -> None:
    """Make the tables of *revision*, or those since the one that is there."""
    subprocess.run([sys.executable, "-c", OLD_SCHEMA, database, revision], check=True, timeout=120)


def test_postgresql_of_an_older_schema_is_left_to_the_administrator(
    postgres: Postgres, tmp_path: Path
) -> None:
    """Other servers may still use it, so nothing is changed or backed up; the commands and the consequence are said."""
    name = postgres.create()
    database = postgres.url(name)
    bring(database, "0009")
    installed = Installed(tmp_path, database)
    first, second, third = installed.configure()
    assert first == (
        f"the database has schema 0009, and this version needs {REVISION}; it is not SQLite, so it is yours to upgrade."
    )
    assert second.endswith("run on one of them: tang-attest backup FILE; tang-attest db upgrade")
    assert (
        third == "Then run on each: systemctl restart tang-attest. Until then this server answers no machine."
    )
    assert postgres.sql("SELECT version_num FROM alembic_version", name) == "0009"
    assert not (tmp_path / "backups").exists()
    bring(database, REVISION)
    assert installed.configure() == []


def test_a_database_that_does_not_answer_is_said(tmp_path: Path) -> None:
    """The upgrade of the package ends all the same; without keys there is no database to look at."""
    with away() as database:
        installed = Installed(tmp_path, database)
        [said] = installed.configure()
    assert said.startswith("the database does not answer, so this does not know whether it needs an upgrade.")
    assert said.endswith("See it with: tang-attest db status")
    (installed.state / "kek").unlink()
    assert installed.configure() == []
