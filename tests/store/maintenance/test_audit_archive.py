"""Archives of the audit record on each database: made, checked, interrupted, and under another secret."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import json
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tang_attest import store as maintenance
from tang_attest.errors import TangAttestError
from tang_attest.ports.audit import Archive
from tang_attest.protocol.passkeys.record import SignatureCheck
from tang_attest.service.audit.chain import AuditSealer
from tang_attest.service.audit.check import AuditCheck, check_audit
from tang_attest.store import ArchiveKeys, Authenticity, Side, SqlStore, Stretch
from tests.fakes import ROW_KEY, FakeClock
from tests.store.conftest import CHAIN_KEY, Opener
from tests.store.records.test_audit_chain import codes, sql
from tests.store.samples import NOW, entry, policy, state

KEYS = ArchiveKeys(CHAIN_KEY, b"f" * 32)


@pytest_asyncio.fixture
async def sealed(store: SqlStore, sealer: AuditSealer, clock: FakeClock) -> AsyncIterator[SqlStore]:
    """A policy that was changed twice, under three seals of three hours, and an entry without a seal."""
    await store.policies.add_policy(policy(), entry("policy create"))
    await seal(sealer, clock)
    await store.policies.trust_predictions("policy", True, entry("policy trust"))
    await store.audit.append(entry("unlock", device="pi-b", details={"ä": [1.5, None]}))
    await seal(sealer, clock)
    await store.policies.add_state("policy", state("more"), entry("policy state add"))
    await seal(sealer, clock)
    await store.audit.append(entry("last"))
    yield store


async def seal(sealer: AuditSealer, clock: FakeClock) -> None:
    assert await sealer.round() is not None
    clock.advance(hours=1)


async def check(
    store: SqlStore, clock: FakeClock, expected: tuple[int, bytes] | None = None, key: bytes = CHAIN_KEY
) -> AuditCheck:
    return await check_audit(
        store.audit, key, clock, lambda _done, _total: None, expected, signatures=lambda: SignatureCheck({})
    )


async def write(
    url: str, path: Path, hours: float = 1.5, keys: ArchiveKeys = KEYS, rows: bytes = ROW_KEY
) -> bool:
    before = NOW + timedelta(hours=hours)
    return await maintenance.write_archive(
        url, rows, path, keys, before, "operator:test", lambda _done, _total: None
    )


async def take_out(url: str, stretch: Stretch, rows: bytes = ROW_KEY) -> Archive:
    return await maintenance.take_out(url, rows, stretch, "file", entry("audit archive"))


async def archive(
    url: str, path: Path, hours: float = 1.5, keys: ArchiveKeys = KEYS, rows: bytes = ROW_KEY
) -> Archive:
    assert await write(url, path, hours, keys, rows)
    return await take_out(url, maintenance.read_archive(path, [keys]), rows)


async def refused(code: str, call) -> None:
    with pytest.raises(TangAttestError) as caught:
        await call
    assert caught.value.code == code


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.gz*"))


async def numbers(store: SqlStore) -> list[int]:
    return [number for number, _ in reversed(await store.audit.list_audit(limit=100))]


async def findings(url: str) -> list[str]:
    return [found.sentence for found in (await maintenance.check_rows(url, ROW_KEY)).findings]


async def test_the_chain_goes_on_after_an_archive(
    url: str, sealed: SqlStore, sealer: AuditSealer, clock: FakeClock, tmp_path: Path
) -> None:
    """Rows and seals are in the file; what remains verifies, new seals follow, and noted heads are found."""
    heads = await sealed.audit.list_seals(0, 10)
    made = await archive(url, tmp_path / "a.gz")
    assert (made.first_seq, made.head.head, made.rows, made.first_id) == (1, heads[1].head, 3, 1)
    assert await sealed.audit.list_archives() == [made]
    assert await numbers(sealed) == [4, 5, 6]
    assert [each.seq for each in await sealed.audit.list_seals(0, 10)] == [3]
    found = await check(sealed, clock)
    assert (found.rows, found.seals, found.unsealed, found.archived) == (1, 1, 2, made.head)
    await seal(sealer, clock)
    assert codes(await check(sealed, clock)) == []
    for head in heads[1:]:
        assert codes(await check(sealed, clock, (head.seq, head.hash))) == []
    assert codes(await check(sealed, clock, (1, heads[0].hash))) == ["audit-archived"]
    assert codes(await check(sealed, clock, (2, bytes(32)))) == ["audit-cut"]
    stretch = maintenance.read_archive(tmp_path / "a.gz", [KEYS], wanted=1)
    assert (stretch.noted, stretch.previous, stretch.seals) == (heads[0].hash, "", 2)


async def test_what_is_kept(url: str, sealed: SqlStore, tmp_path: Path) -> None:
    """The newest seal, rows without one, and what is not old enough; then there is no file."""
    assert not await write(url, tmp_path / "early.gz", hours=0)
    assert not (tmp_path / "early.gz").exists()
    await archive(url, tmp_path / "a.gz", hours=1000)
    assert await numbers(sealed) == [4, 5, 6]
    assert not await write(url, tmp_path / "b.gz", hours=1000)
    assert files(tmp_path) == ["a.gz"]


async def test_a_sealer_that_saw_an_archived_head_goes_on(
    url: str, sealed: SqlStore, sealer: AuditSealer, clock: FakeClock, tmp_path: Path
) -> None:
    """It was asleep meanwhile; that is no cut record."""
    await seal(sealer, clock)
    other = AuditSealer(sealed.audit, CHAIN_KEY, clock)
    await sealed.audit.append(entry("more"))
    await seal(other, clock)
    await archive(url, tmp_path / "a.gz", hours=1000)
    await sealed.audit.append(entry("even more"))
    assert await sealer.round() is not None
    assert codes(await check(sealed, clock)) == []


async def test_versions_outlive_their_entries(
    url: str, sealed: SqlStore, sealer: AuditSealer, clock: FakeClock, open_another: Opener, tmp_path: Path
) -> None:
    """A row of before that is put back is found, and refused by a new process, after one archive and after two."""
    await sql(sealed, "CREATE TABLE kept AS SELECT * FROM policy")
    await sealed.policies.trust_predictions("policy", False, entry("policy trust"))
    await seal(sealer, clock)
    await sealed.audit.append(entry("next"))
    await seal(sealer, clock)
    for name in ("a.gz", "b.gz"):
        await archive(url, tmp_path / name, hours=1000)
        assert await findings(url) == []
        await sealed.audit.append(entry("next"))
        await seal(sealer, clock)
    assert not any("policy" in each.event for _, each in await sealed.audit.list_audit(limit=100))
    await sql(
        sealed,
        "UPDATE policy SET trust_predictions = (SELECT trust_predictions FROM kept), seal = (SELECT seal FROM kept)",
    )
    assert await findings(url) == [
        "Row 'policy' of table policy is older than the audit record says: version 2, not 3."
    ]
    other = await open_another()
    assert await other.remember_versions() > 0
    await refused("registry-tampered", other.policies.get_policy("policy"))
    await sql(sealed, "DELETE FROM reference_state", "DELETE FROM policy")
    assert any("'policy' of table policy is missing" in sentence for sentence in await findings(url))


async def test_an_attacker_changes_what_archives_left(
    url: str, sealed: SqlStore, clock: FakeClock, tmp_path: Path
) -> None:
    """The note of an archive, the versions, and rows that are put where archived ones were."""
    await archive(url, tmp_path / "a.gz")
    await sql(
        sealed,
        "INSERT INTO audit (id, at, event, actor, verdict, code, details) VALUES (2, 1, 'x', 'y', 'done', 'ok', '{}')",
    )
    assert "audit-changed" in codes(await check(sealed, clock))
    await sql(sealed, "DELETE FROM audit WHERE id = 2", "DELETE FROM audit_version")
    assert any("table audit_version is missing" in sentence for sentence in await findings(url))
    await sql(sealed, "UPDATE audit_archive SET last_id = last_id + 1")
    await refused("registry-tampered", check(sealed, clock))
    await sql(sealed, "DELETE FROM audit_archive")
    assert "audit-changed" in codes(await check(sealed, clock))
    assert any("table audit_archive is missing" in sentence for sentence in await findings(url))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'operator:eve' WHERE id = 2",
        "DELETE FROM audit WHERE id = 2",
        "DELETE FROM audit_seal WHERE seq = 1",
        "UPDATE audit_seal SET sealed_at = 1 WHERE seq = 2",
    ],
)
async def test_a_record_that_was_changed_is_not_archived(
    url: str, sealed: SqlStore, tmp_path: Path, statement: str
) -> None:
    """Nothing is written, and nothing deleted."""
    await sql(sealed, statement)
    before = await numbers(sealed)
    await refused("audit-changed", write(url, tmp_path / "a.gz"))
    assert await numbers(sealed) == before
    assert files(tmp_path) == []


async def test_rows_that_change_after_the_file_was_written(
    url: str, sealed: SqlStore, tmp_path: Path
) -> None:
    """The transaction takes out what is in the file, or nothing."""
    assert await write(url, tmp_path / "a.gz")
    stretch = maintenance.read_archive(tmp_path / "a.gz", [KEYS])
    await sql(sealed, "DELETE FROM audit WHERE id = 2")
    await refused("audit-changed", take_out(url, stretch))
    assert await numbers(sealed) == [1, 3, 4, 5]
    assert await sealed.audit.list_archives() == []


async def test_an_interrupted_run_is_repeated(
    url: str, sealed: SqlStore, clock: FakeClock, tmp_path: Path
) -> None:
    """A part of a file is written anew; a complete file is taken up; one that was taken out is not taken twice."""
    (tmp_path / "a.gz.part").write_bytes(b"half a file")
    assert await write(url, tmp_path / "a.gz")
    await refused("file-exists", write(url, tmp_path / "a.gz"))
    stretch = maintenance.read_archive(tmp_path / "a.gz", [KEYS])
    ended = await asyncio.gather(take_out(url, stretch), take_out(url, stretch), return_exceptions=True)
    assert sorted(each.code if isinstance(each, TangAttestError) else "ok" for each in ended) in (
        ["archive-elsewhere", "ok"],
        ["audit-changed", "ok"],
    )
    await refused("archive-elsewhere", take_out(url, stretch))
    assert await numbers(sealed) == [4, 5, 6]
    assert "audit-changed" not in codes(await check(sealed, clock))


async def test_a_directory_that_the_service_may_not_write_to(
    url: str, sealed: SqlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is taken out, and the error leads to a directory of the service's user, as whom the command goes on."""
    really = os.open

    def refusing(path: Any, *rest: Any, **more: Any) -> int:
        if str(path) == str(tmp_path / "a.gz.part"):
            raise PermissionError(13, "Permission denied")
        return really(path, *rest, **more)

    before = await numbers(sealed)
    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(TangAttestError) as caught:
        await write(url, tmp_path / "a.gz")
    assert caught.value.code == "file-unreadable"
    assert caught.value.sentence.endswith("Permission denied. Name a directory of the service's user.")
    assert (await numbers(sealed), files(tmp_path)) == (before, [])


async def test_files_follow_each_other_under_another_secret(
    url: str, sealed: SqlStore, sealer: AuditSealer, clock: FakeClock, tmp_path: Path
) -> None:
    """The archived part stays under the secret of its time, and the chain goes on from it under the new one."""
    first = await archive(url, tmp_path / "a.gz")
    new, row_key = ArchiveKeys(b"n" * 32, b"g" * 32), b"r" * 32
    old_side, new_side = Side(Authenticity(ROW_KEY), CHAIN_KEY), Side(Authenticity(row_key), new.chain)
    await maintenance.rekey(url, old_side, new_side, lambda text: text, entry("keys rotate-kek"))
    store = await maintenance.open_store(url, row_key)
    resealer = AuditSealer(store.audit, new.chain, clock)
    await seal(resealer, clock)
    assert codes(await check(store, clock, key=new.chain)) == []
    assert (await maintenance.check_rows(url, row_key)).findings == ()
    assert codes(await check(store, clock, (first.head.seq, first.head.hash), key=new.chain)) == []
    second = await archive(url, tmp_path / "b.gz", 1000, new, row_key)
    for path, keys in (("a.gz", KEYS), ("b.gz", new)):
        others = [new, KEYS]
        stretch = maintenance.read_archive(tmp_path / path, others)
        assert maintenance.read_archive(tmp_path / path, [keys]) == stretch
    assert stretch.previous == first.head.head
    assert stretch.head == second.head
    with pytest.raises(TangAttestError) as caught:
        maintenance.read_archive(tmp_path / "a.gz", [new])
    assert caught.value.code == "archive-foreign"
    await store.close()


async def test_files_that_are_no_archives(url: str, sealed: SqlStore, tmp_path: Path) -> None:
    """Cut, changed, changed with a new digest, of another form, or not there: each is said, and never a traceback."""
    await archive(url, tmp_path / "a.gz")
    good = (tmp_path / "a.gz").read_bytes()
    lines = gzip.decompress(good).splitlines(keepends=True)

    def code_of(data: bytes) -> str:
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(TangAttestError) as caught:
            maintenance.read_archive(tmp_path / "bad", [KEYS])
        return caught.value.code

    assert code_of(b"") == "archive-damaged"
    assert code_of(b"plain text") == "archive-damaged"
    for cut in (10, len(good) // 2, len(good) - 1):
        assert code_of(good[:cut]) == "archive-damaged"
    for number in range(len(lines)):
        assert code_of(gzip.compress(b"".join(lines[:number]))) == "archive-damaged"
        without = [line for position, line in enumerate(lines) if position != number]
        assert code_of(gzip.compress(b"".join(without))) == "archive-damaged"
    changed = [line.replace(b"policy create", b"policy remove") for line in lines]
    assert code_of(gzip.compress(b"".join(changed))) == "archive-damaged"
    digest = hashlib.sha256(b"".join(changed[:-1])).hexdigest()
    anew = json.loads(lines[-1]) | {"sha256": digest}
    assert (
        code_of(gzip.compress(b"".join([*changed[:-1], json.dumps(anew).encode() + b"\n"])))
        == "archive-foreign"
    )
    assert (
        code_of(gzip.compress(b'{"format":"tang-attest backup","version":1,"schema":"1"}\n'))
        == "archive-damaged"
    )
    with pytest.raises(TangAttestError) as caught:
        maintenance.read_archive(tmp_path / "nosuch", [KEYS])
    assert caught.value.code == "file-unreadable"


async def test_a_forger_with_the_key_of_files_alone(url: str, sealed: SqlStore, tmp_path: Path) -> None:
    """The seals themselves are checked, not only the digest at the end."""
    await archive(url, tmp_path / "a.gz")
    lines = gzip.decompress((tmp_path / "a.gz").read_bytes()).splitlines(keepends=True)
    changed = [line.replace(b"policy create", b"policy remove") for line in lines[:-1]]
    digest = hashlib.sha256(b"".join(changed)).digest()
    end = {"sha256": digest.hex(), "hmac": hmac.digest(KEYS.file, digest, "sha256").hex()}
    (tmp_path / "bad").write_bytes(gzip.compress(b"".join([*changed, json.dumps(end).encode() + b"\n"])))
    with pytest.raises(TangAttestError) as caught:
        maintenance.read_archive(tmp_path / "bad", [KEYS])
    assert caught.value.code == "audit-changed"


async def test_a_file_is_its_owners_alone(url: str, sealed: SqlStore, tmp_path: Path) -> None:
    """The record names machines and people."""
    await write(url, tmp_path / "a.gz")
    assert (tmp_path / "a.gz").stat().st_mode & 0o777 == 0o600
