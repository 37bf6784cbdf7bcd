"""``tang-attest backup`` and ``tang-attest restore``."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import click

from tang_attest.cli import output
from tang_attest.cli.installation.init import hint_at_owners
from tang_attest.cli.installation.upgraded import say_sealed
from tang_attest.cli.invocation import settings
from tang_attest.cli.progress import shown
from tang_attest.errors import Conflict, NotFound, TangAttestError
from tang_attest.files import NamedFile, reading, writing
from tang_attest.keys.secret import FILE_NAME

_path = click.Path(path_type=Path)
_STDIO = Path("-")


@click.command()
@click.argument("file", type=_path)
@click.option(
    "--with-secret", is_flag=True, help="Put the key-encryption key into it: then FILE opens every key."
)
@output.json_option
def backup(file: Path, with_secret: bool, as_json: bool) -> None:
    """Write everything in the database to FILE.

    Servers may run meanwhile.  - is standard output.  FILE must not exist; it gets mode 0600.  It does not
    hold the key-encryption key unless you say so: copy STATE/kek once, and keep it apart, because one without
    the other opens nothing.

    \b
    tang-attest backup /backup/tang-attest-$(date +%F)
    tang-attest backup --with-secret - | age -r age1... > /backup/tang-attest.age
    """
    from tang_attest.server import databases
    from tang_attest.server.compose import SystemClock

    if as_json and file == _STDIO:
        raise click.UsageError("--json needs a FILE: standard output has the backup")
    current = settings()
    with _new_file(file) as target:
        rows = asyncio.run(databases.back_up(current, target, SystemClock(), shown, with_secret=with_secret))
    sentence = f"{sum(rows.values())} rows written, {rows.get('device', 0)} of them machines"
    output.done(as_json, sentence, {"file": str(file), "with_secret": with_secret, **_counts(rows)})
    if with_secret:
        output.hint("this file opens every key in it; keep it encrypted")
    else:
        output.hint(f"it does not hold {current.state / FILE_NAME}; keep a copy of that apart from it")


def _counts(rows: Mapping[str, int]) -> dict[str, int]:
    return {"rows": sum(rows.values()), "devices": rows.get("device", 0)}


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """*path*, new and only its owner's, on the disk in the end; gone when the block raises."""
    if path == _STDIO:
        if sys.stdout.isatty():
            raise click.UsageError("a backup is not for a terminal; name a file, or use a pipe")
        try:
            with writing("standard output"):
                yield cast(BinaryIO, NamedFile(sys.stdout.buffer, "standard output"))
                sys.stdout.flush()
        except TangAttestError:
            output.drop()
            raise
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise Conflict("file-exists", f"There is a file {path} already.") from None
    except PermissionError as error:
        # The command of the package goes on as the service's user, who writes to few places.
        raise NotFound(
            "file-unreadable",
            f"File {path} cannot be made: {error.strerror}. "
            f"Let the shell make it: (umask 077; tang-attest backup - >{shlex.quote(str(path))}).",
        ) from None
    except OSError as error:
        raise NotFound("file-unreadable", f"File {path} cannot be made: {error.strerror}.") from None
    try:
        with writing(path), os.fdopen(descriptor, "wb") as file:
            yield cast(BinaryIO, NamedFile(file, path))
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@click.command()
@click.argument("file", type=_path)
@output.json_option
def restore(file: Path, as_json: bool) -> None:
    """Fill an empty database from a backup.

    'tang-attest backup' wrote FILE; - is standard input.  FILE is checked to its end before anything of it
    counts.  The key-encryption key has to be in the state directory already, unless the backup was made
    --with-secret.
    """
    from tang_attest import store
    from tang_attest.server import databases

    current = settings()
    with _open(file) as source:
        reader = store.Reader(source)
        filled = asyncio.run(databases.restore(current, reader, shown))
    rows = filled.rows
    say_sealed(filled.upgraded)
    sentence = f"{sum(rows.values())} rows restored, {rows.get('device', 0)} of them machines"
    output.done(as_json, sentence, {"made_at": reader.head.get("made_at"), **_counts(rows)})
    output.hint(
        f"all is as it was at {reader.head.get('made_at')}; what was removed or used up since then is back"
    )
    hint_at_owners(current.state)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if path == _STDIO:
        yield cast(BinaryIO, NamedFile(sys.stdin.buffer, "standard input"))
        return
    with reading(path):
        file = path.open("rb")
    with file:
        yield cast(BinaryIO, NamedFile(file, path))
