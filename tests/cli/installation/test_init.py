"""``tang-attest init``, beyond its transcript."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tang_attest.errors import Unavailable
from tang_attest.keys.secret import create_secret, load_secret
from tang_attest.ports.keys import EncryptedKey
from tang_attest.service.tang.server_keys import ServerKeys
from tang_attest.store import KEY_LABEL, open_store
from tests.cli.transcript import environment, run


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    with environment():
        yield


def mode(path: Path) -> int:
    """The permission bits of *path*."""
    return stat.S_IMODE(path.stat().st_mode)


def test_modes(tmp_path: Path) -> None:
    """Only the owner reads the state, with any umask; the parents it makes are ordinary directories."""
    state = tmp_path / "var" / "state"
    assert run("--state", str(state), "init")[2] == 0
    assert run("--state", str(state), "token", "create", "--record")[2] == 0
    assert mode(state) == 0o700
    assert {path.name: mode(path) for path in state.iterdir()} == {"kek": 0o400, "tang-attest.db": 0o600}


def test_a_directory_that_is_there(tmp_path: Path) -> None:
    """systemd makes the state directory; its mode is systemd's affair, the files are for their owner anyway."""
    tmp_path.chmod(0o755)
    (tmp_path / "notes").write_text("mine")
    assert run("--state", str(tmp_path), "init")[2] == 0
    assert mode(tmp_path) == 0o755
    assert (mode(tmp_path / "kek"), mode(tmp_path / "tang-attest.db")) == (0o400, 0o600)
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("step", ["open", "key"])
def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """When the disk is full half way, the next init begins anew instead of finding half a state."""

    async def fails(*_: object, **__: object) -> None:
        raise Unavailable("unavailable", "The disk is full.")

    with monkeypatch.context() as patch:
        if step == "open":
            patch.setattr("tang_attest.server.initialize.open_store", fails)
        else:
            patch.setattr(ServerKeys, "create_signing_key", fails)
        stdout, stderr, code = run("--state", str(tmp_path / "state"), "init")
        assert (stdout, code) == ("", 1)
        assert stderr.startswith("tang-attest: the disk is full (unavailable)\nhint: ")
        assert list((tmp_path / "state").iterdir()) == []
    assert run("--state", str(tmp_path / "state"), "init")[2] == 0


def test_a_foreign_database_stays(tmp_path: Path) -> None:
    """A file in the database's place, or a link to nowhere, is somebody's: it is not touched."""
    for place in (tmp_path / "one", tmp_path / "two"):
        place.mkdir()
    (tmp_path / "one" / "tang-attest.db").write_text("precious")
    (tmp_path / "two" / "tang-attest.db").symlink_to(tmp_path / "elsewhere")
    for place in (tmp_path / "one", tmp_path / "two"):
        _, stderr, code = run("--state", str(place), "init")
        assert (code, "state-exists" in stderr) == (1, True)
        assert [path.name for path in place.iterdir()] == ["tang-attest.db"]
    assert (tmp_path / "one" / "tang-attest.db").read_text() == "precious"


def test_an_init_that_was_killed_at_once_can_be_repeated(tmp_path: Path) -> None:
    """Its file without a byte is nobody's; doctor and other commands lead to 'init', which refused it."""
    state = str(tmp_path)
    (tmp_path / "tang-attest.db").touch(0o644)
    for command in ("doctor", "device list"):
        stdout, stderr, code = run("--state", state, *command.split())
        assert (code, "run 'tang-attest init' first" in stdout + stderr) == (1, True), (
            command,
            stdout,
            stderr,
        )
    assert run("--state", state, "init")[2] == 0
    assert run("--state", state, "device", "list")[2] == 0
    assert stat.S_IMODE((tmp_path / "tang-attest.db").stat().st_mode) == 0o600


def test_an_init_that_was_killed_later_is_gone_on_from(tmp_path: Path) -> None:
    """Its secret stays, with its log of a transaction that ended nowhere; each advice led to another refusal."""
    state = str(tmp_path)
    text = create_secret(tmp_path).text()
    with closing(sqlite3.connect(tmp_path / "tang-attest.db", isolation_level=None)) as killed:
        killed.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA cache_size = 1; BEGIN; CREATE TABLE device (id)"
        )
        shutil.copytree(tmp_path, tmp_path / "copy")
    copy = tmp_path / "copy"
    _, stderr, code = run("--state", str(copy), "device", "list")
    assert (code, "run 'tang-attest init' first" in stderr) == (1, True)
    assert run("--state", str(copy), "init")[2] == 0
    assert (copy / "kek").read_text() == f"{text}\n"
    assert run("--state", str(copy), "keys", "list")[2] == 0
    assert run("--state", state, "--database", "sqlite:////nowhere/x.db", "init")[2] == 1
    assert (tmp_path / "kek").read_text() == f"{text}\n"


def test_what_fails_keeps_the_secret_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its own files go."""
    text = create_secret(tmp_path).text()
    (tmp_path / "tang-attest.db").touch(0o600)

    async def fails(*_: object, **__: object) -> None:
        raise Unavailable("unavailable", "The disk is full.")

    monkeypatch.setattr(ServerKeys, "create_signing_key", fails)
    assert run("--state", str(tmp_path), "init")[2] == 1
    assert (tmp_path / "kek").read_text() == f"{text}\n"


def test_a_database_whose_tables_are_in_its_log_stays(tmp_path: Path) -> None:
    """A program that was killed, of whose database nothing but one page left the log."""
    with closing(sqlite3.connect(tmp_path / "tang-attest.db", isolation_level=None)) as theirs:
        theirs.executescript("PRAGMA journal_mode = WAL; CREATE TABLE theirs (id)")
        shutil.copytree(tmp_path, tmp_path / "copy")
    copy = tmp_path / "copy"
    _, stderr, code = run("--state", str(copy), "init")
    assert (code, "state-exists" in stderr) == (1, True)
    with closing(sqlite3.connect(copy / "tang-attest.db")) as theirs:
        assert theirs.execute("SELECT count(*) FROM theirs").fetchone() == (0,)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://127.0.0.1:99999/x",
        "postgresql://127.0.0.1:-1/x",
        "postgresql://[::1/x",
        "postgresql://a:b:c/x",
    ],
)
def test_a_database_url_with_an_odd_port(tmp_path: Path, url: str) -> None:
    """It is a wrong setting for each command; it was a traceback of the driver or of SQLAlchemy."""
    assert run("--state", str(tmp_path / "state"), "init")[2] == 0
    for command in ("device list", "doctor", "serve --check", "db copy --to"):
        last = [url] if command.endswith("--to") else []
        before = [] if last else ["--database", url]
        stdout, stderr, code = run("--state", str(tmp_path / "state"), *before, *command.split(), *last)
        assert (code, "database setting is not a URL" in stdout + stderr) == (1, True), stderr


@pytest.mark.parametrize("page_size", [512, 4096])
def test_a_small_database_of_another_program_stays(tmp_path: Path, page_size: int) -> None:
    """One table is enough."""
    path = tmp_path / "tang-attest.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("CREATE VIEW theirs AS SELECT 1")
        connection.commit()
    before = path.read_bytes()
    assert len(before) == page_size
    _, stderr, code = run("--state", str(tmp_path), "init")
    assert (code, "state-exists" in stderr) == (1, True)
    assert path.read_bytes() == before


def test_the_thumbprint_is_the_signing_keys(tmp_path: Path) -> None:
    """The output of init is the thumbprint that a machine compares."""

    async def load() -> Sequence[EncryptedKey]:
        key = load_secret(tmp_path / "state").derive(KEY_LABEL)
        store = await open_store(f"sqlite:///{tmp_path}/state/tang-attest.db", key)
        try:
            return await store.keys.server_keys()
        finally:
            await store.close()

    stdout, _, code = run("--state", str(tmp_path / "state"), "init")
    keys = asyncio.run(load())
    assert code == 0
    assert [(key.kid, key.use, key.curve) for key in keys] == [(stdout.strip(), "sign", "P-521")]
