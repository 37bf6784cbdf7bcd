"""Files that cannot be written to their end, or read: each is named, with the system's reason and what to do."""

from __future__ import annotations

import json
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tang_attest import files
from tang_attest.errors import TangAttestError
from tests.cli.forked import Popen, command
from tests.cli.serving import clean_environment, initialize
from tests.cli.transcript import environment, run

ACTION = "hint: make room there, or name a file elsewhere"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with an installation in ``state``."""
    monkeypatch.chdir(tmp_path)
    initialize(tmp_path / "state")
    with environment():
        yield tmp_path


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process grows beyond *size* bytes meanwhile, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_backup_on_a_full_disk(home: Path) -> None:
    """It fails while the database is read, and is no fault of the database; nothing is left of it."""
    with closing(sqlite3.connect("state/tang-attest.db")) as database, database:
        database.execute("UPDATE audit SET details = ?", (json.dumps({"long": "x" * 200_000}),))
    with files_end_at(100_000):  # SQLite's own files are smaller
        _, stderr, code = run("backup", "copy")
    assert (code, "tang-attest: file copy cannot be written: File too large (file-unwritable)" in stderr) == (
        1,
        True,
    ), stderr
    assert ACTION in stderr
    assert not (home / "copy").exists()


def test_a_backup_to_a_full_standard_output(home: Path) -> None:
    """The pipe's file, or a device without room."""
    with Path("/dev/full").open("wb") as full:
        process = Popen(
            command("--state", "state", "backup", "-"), stdout=full, stderr=-1, env=clean_environment()
        )
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 1
    assert b"file standard output cannot be written: No space left on device (file-unwritable)" in stderr


def test_a_backup_that_cannot_be_read(home: Path) -> None:
    """An input/output error, which a memory without pages gives here; a directory."""
    for path, why in (("/proc/self/mem", "Input/output error"), (str(home), "Is a directory")):
        _, stderr, code = run("--state", str(home / "new"), "restore", path)
        assert (code, f"file {path} cannot be read: {why} (file-unreadable)" in stderr) == (1, True), stderr


def write_named(path: Path, data: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        files.NamedFile(file, path).write(data)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_line(path, "x" * 100),
        lambda path: write_named(path, b"x" * 100),
    ],
)
def test_each_writer_names_its_file(tmp_path: Path, write: Callable[[Path], Any]) -> None:
    """Commands use no other writer."""
    with files_end_at(0), pytest.raises(TangAttestError) as failed:
        write(tmp_path / "file")
    assert (failed.value.code, str(tmp_path / "file") in failed.value.sentence) == ("file-unwritable", True)


def test_a_reader_that_left_is_no_failure() -> None:
    """`| head` ends a command without a word."""
    with pytest.raises(BrokenPipeError), files.writing("x"):
        raise BrokenPipeError
