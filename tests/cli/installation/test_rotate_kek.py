"""``tang-attest keys rotate-kek``: everything is under another secret afterwards, or nothing is."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tang_attest.config import Settings
from tang_attest.errors import NotFound
from tang_attest.keys.encrypted import EncryptedKeys
from tang_attest.keys.secret import load_secret
from tang_attest.protocol.audit_chain import KEY_LABEL as CHAIN
from tang_attest.server import rekeying
from tang_attest.service.audit.chain import AuditSealer
from tang_attest.store import KEY_LABEL, open_store
from tests.attester import Attester
from tests.cli.installation.test_db import at
from tests.cli.transcript import environment
from tests.server import Server


@pytest.fixture(autouse=True)
def _operator() -> Iterator[None]:
    with environment():
        yield


async def made(state: Path) -> str:
    """A state with a machine, an admin token and a sealed record; the machine's kid."""
    async with Server(state) as server:
        kid = await server.enroll(Attester())
        await server.token()
        assert (
            await AuditSealer(server.store.audit, server.secret.derive(CHAIN), server.clock).round()
            is not None
        )
    return kid


async def opens(state: Path, kid: str) -> bool:
    """Return True if the machine's key opens under the secret of the state."""
    secret = load_secret(state)
    store = await open_store(Settings(state=state).database_url, secret.derive(KEY_LABEL))
    try:
        bound = await store.decisions.find_key(kid)
        return bound is not None and EncryptedKeys(secret).open_exchange(bound.key).kid == kid
    finally:
        await store.close()


async def test_everything_is_under_the_new_one(tmp_path: Path) -> None:
    """Keys open, rows are ours, the record holds; the old one opens nothing, but is there for older backups."""
    state = tmp_path / "state"
    kid = await made(state)
    old = (state / "kek").read_text()
    assert (await asyncio.to_thread(at, state, "backup", str(tmp_path / "before")))[2] == 0
    _, stderr, code = await asyncio.to_thread(at, state, "keys", "rotate-kek")
    assert code == 0, stderr
    assert "rows and their keys are under the new key-encryption key" in stderr
    assert (state / "kek").read_text() != old
    [kept] = state.glob("kek.old-*")
    assert (kept.read_text(), kept.stat().st_mode & 0o777) == (old, 0o400)
    assert not (state / "kek.new").exists()
    assert await opens(state, kid)
    _, stderr, code = await asyncio.to_thread(at, state, "audit", "verify")
    assert code == 0, stderr
    assert (await asyncio.to_thread(at, state, "audit"))[0].count("keys rotate-kek") == 1
    (state / "kek").unlink()
    kept.rename(state / "kek")
    _, stderr, code = await asyncio.to_thread(at, state, "device", "list")
    assert (code, "setting-invalid" in stderr) == (1, True)
    fresh = tmp_path / "fresh"
    fresh.mkdir(mode=0o700)
    (state / "kek").rename(fresh / "kek")
    assert (await asyncio.to_thread(at, fresh, "restore", str(tmp_path / "before")))[2] == 0
    assert await opens(fresh, kid)


async def test_an_interruption_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is moved and the file is not: the same command again does the rest."""
    state = tmp_path / "state"
    kid = await made(state)

    def interrupted(_: Path) -> Path:
        raise NotFound("file-unreadable", "The machine lost its power.")

    with monkeypatch.context() as patch:
        patch.setattr(rekeying, "replace_secret", interrupted)
        assert (await asyncio.to_thread(at, state, "keys", "rotate-kek"))[2] == 1
    assert (state / "kek.new").exists()
    assert (await asyncio.to_thread(at, state, "device", "list"))[2] == 1
    assert (await asyncio.to_thread(at, state, "keys", "rotate-kek"))[2] == 0
    assert await opens(state, kid)
    assert (await asyncio.to_thread(at, state, "audit", "verify"))[2] == 0


async def test_rows_of_somebody_else_are_not_blessed(tmp_path: Path) -> None:
    """A row that was not ours before is not ours afterwards; a record that was changed stops the rotation."""
    state = tmp_path / "state"
    kid = await made(state)
    with closing(sqlite3.connect(state / "tang-attest.db")) as connection, connection:
        connection.execute("UPDATE device SET labels = '[\"x\"]'")
    _, stderr, code = await asyncio.to_thread(at, state, "keys", "rotate-kek")
    assert (code, "1 rows are not, because this server did not write them" in stderr) == (0, True)
    stdout, _, code = await asyncio.to_thread(at, state, "doctor")
    assert (code, "row 'pi-b' of table device is not what this server wrote" in stdout) == (1, True)
    with closing(sqlite3.connect(state / "tang-attest.db")) as connection, connection:
        connection.execute("UPDATE audit SET actor = 'operator:eve' WHERE id = 1")
    before = (state / "kek").read_text()
    _, stderr, code = await asyncio.to_thread(at, state, "keys", "rotate-kek")
    assert (code, "audit-changed" in stderr) == (1, True)
    assert (state / "kek").read_text() == before
    assert kid


def test_a_kek_that_is_a_credential(tmp_path: Path) -> None:
    """It is exchanged where it comes from: the file that is missing here is named."""
    _, stderr, code = at(tmp_path, "keys", "rotate-kek")
    assert (code, "state-missing" in stderr) == (1, True)


def test_on_postgresql(tmp_path: Path, empty_postgres_url: str) -> None:
    """The same there."""
    state = tmp_path / "state"
    assert at(state, "init", database=empty_postgres_url)[2] == 0
    assert at(state, "policy", "create", "p", "--selection", "sha256:7", database=empty_postgres_url)[2] == 0
    _, stderr, code = at(state, "keys", "rotate-kek", database=empty_postgres_url)
    assert code == 0, stderr
    assert at(state, "keys", "rotate", database=empty_postgres_url)[2] == 0
    assert "p" in at(state, "policy", "list", database=empty_postgres_url)[0]
