"""``tang-attest db``."""

from __future__ import annotations

import asyncio

import click

from tang_attest.cli import output
from tang_attest.cli.installation.upgraded import say_sealed, upgrade_as_json
from tang_attest.cli.invocation import settings
from tang_attest.cli.progress import shown


@click.group()
def db() -> None:
    """The database: its status, upgrade and move.

    \b
    tang-attest db status
    tang-attest db upgrade
    tang-attest db copy --to 'postgresql://tang@db.example/tang?sslmode=verify-full&passfile=/etc/tang-attest.pgpass'
    """


@db.command()
@output.json_option
def status(as_json: bool) -> None:
    """Show the database's schema and its rows."""
    from tang_attest import store

    found = asyncio.run(store.look(settings().database_url))
    if as_json:
        output.print_json(
            {
                "server": found.server,
                "schema": found.schema,
                "needed": found.needed,
                "flushes": found.flushes,
                "rows": dict(sorted(found.rows.items())),
                "moved_to": found.mark.place if found.mark is not None else None,
            }
        )
    else:
        filled = sorted((name, count) for name, count in found.rows.items() if count)
        output.table(("table", "rows"), filled, empty="the database is empty")
        output.say(f"{found.server}, schema {found.schema or 'none'}, this program needs {found.needed}")
    if found.mark is not None:
        raise found.mark.error()
    if found.schema is not None and found.schema < found.needed:
        output.hint("run 'tang-attest db upgrade'")
    if not found.flushes:
        output.hint("switch fsync on in the server's configuration: without it, it may lose decisions")


@db.command()
@output.json_option
def upgrade(as_json: bool) -> None:
    """Bring the database to the schema of this program.

    All of it happens, or nothing.  Replicas may do it at the same time.  Make a backup first: there is no way
    back. The key-encryption key has to be in the state directory: rows that decide something are sealed under
    it.
    """
    from tang_attest.server import databases

    done = asyncio.run(databases.upgrade(settings(), shown))
    if as_json:
        output.print_json(upgrade_as_json(done))
    elif done.before == done.after:
        output.say(f"the database has schema {done.after} already")
    else:
        output.say(f"upgraded from schema {done.before} to {done.after}")
        say_sealed(done)


@db.command()
@click.option("--to", "target", metavar="URL", required=True, help="An empty database.")
@output.json_option
def copy(target: str, as_json: bool) -> None:
    """Copy everything to another database.

    It may be SQLite or PostgreSQL, as the one that is copied.  The target must be empty; it is filled in one
    transaction, and read again to compare.  Nobody writes to this database meanwhile.  Afterwards it refuses
    every command and server, with the code database-moved, until 'db reclaim'.  Servers that run end within a
    second: stop them first.  The key-encryption key stays where it is.
    """
    from tang_attest.server import databases
    from tang_attest.server.compose import SystemClock

    current = settings()
    filled = asyncio.run(databases.copy(current, target, SystemClock(), shown))
    rows, upgraded = filled.rows, filled.upgraded
    say_sealed(upgraded)
    count, devices = sum(rows.values()), rows.get("device", 0)
    sentence = f"copied {count} rows, {devices} of them machines"
    output.done(as_json, sentence, {"rows": count, "devices": devices, **upgrade_as_json(upgraded)})
    output.hint(
        "name the new database in the setting 'database', then start the server; this one refuses now"
    )


@db.command()
@output.json_option
def reclaim(as_json: bool) -> None:
    """Use this database again, although it was copied.

    Nothing that happened in the copy since then is here.  Stop the servers of the copy first: two databases
    with the same keys would decide about the same machines.
    """
    from tang_attest.server import databases
    from tang_attest.server.compose import World

    found = asyncio.run(databases.reclaim(settings(), World()))
    place = found.place if found is not None else None
    result = {"reclaimed": found is not None, "copy": place}
    if found is None:
        output.done(as_json, "the database is in use already; nothing was changed", result)
        return
    output.done(as_json, f"the database is in use again, as it was at {found.at}", result)
    output.hint(f"see that no server and no command uses the copy at {place} any longer")
