"""The contents of one database arrive in another unchanged; an incomplete archive goes nowhere."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tang_attest.errors import TangAttestError, Unavailable
from tang_attest.ports.decisions import NewEvidence, Snapshot
from tang_attest.ports.enrollment import EkRoot
from tang_attest.store import Reader, SqlStore, back_up, look, open_store, restore
from tang_attest.store.database import schema, tables
from tang_attest.store.database.engine import connect, parse_url
from tang_attest.store.maintenance import archive
from tests.fakes import ROW_KEY
from tests.store.samples import (
    NOW,
    SELECTION,
    clock,
    decision,
    device,
    enrollment,
    entry,
    key,
    policy,
    token,
    values,
)

KEY = bytes(range(32))


def silent(_done: int, _total: int) -> None:
    pass


async def fill(url: str) -> None:
    """At least one row in every table, and a device that had a higher id than any that is left."""
    store = await open_store(url, ROW_KEY, create=True)
    await store.enrollment.add_token(
        token(), entry("token create", details={"ä": ["\U0001f511", None, 1.5, True]})
    )
    await store.enrollment.enroll(enrollment())
    await store.policies.add_policy(policy("shared"), entry())
    second = await store.devices.add_device(device("pi-c"), "shared", key("second", minutes=3), entry())
    await store.devices.add_device(device("gone"), "shared", key("gone"), entry())
    await store.devices.remove_device("gone", entry())
    await store.keys.add_key(key("open", "sign"), None, entry())
    await store.enrollment.add_ek_root(EkRoot("ff" * 32, "Vendor", bytes(range(256)), NOW), entry())
    shown = Snapshot(SELECTION, values("other"), bytes(1000))
    await store.decisions.decide(
        decision(
            second.id,
            "n",
            1,
            clock=clock(2**64 - 1, 2**32 - 1),
            observation=shown,
            evidence=NewEvidence(shown, False),
        )
    )
    await store._database.write(fill_rest)
    await store.close()


def fill_rest(connection: sa.Connection) -> None:
    """A row for every table that has none yet: whoever adds a table need not think of this test."""
    for table in archive.ours(connection):
        if not archive.count(connection, table):
            row = {
                column.name: anything(connection, column) for column in table.columns if column.name != "id"
            }
            connection.execute(table.insert(), row)


def anything(connection: sa.Connection, column: sa.Column[Any]) -> object:
    """A value that fits *column*."""
    for reference in column.foreign_keys:
        return connection.scalar(sa.select(sa.func.max(reference.column)))
    if isinstance(column.type, sa.Boolean):
        return True
    if isinstance(column.type, sa.Integer):
        return 7
    return b"\x00\xff" if isinstance(column.type, sa.LargeBinary) else "[]"


async def archived(url: str, **head: object) -> bytes:
    file = io.BytesIO()
    await back_up(url, file, KEY, head, silent)
    return file.getvalue()


async def restored(url: str, data: bytes, key: bytes = KEY) -> dict[str, int]:
    rows, _ = await restore(url, Reader(io.BytesIO(data)), key, silent, ROW_KEY, lambda key: key.jwe)
    return rows


#: The archive of a filled registry, made once.
_sample: list[bytes] = []


async def sample(directory: Path) -> bytes:
    """Return a good archive, for tests that damage it or restore it elsewhere."""
    if not _sample:
        source = f"sqlite:///{directory}/source.db"
        await fill(source)
        _sample.append(await archived(source))
    return _sample[0]


def content(data: bytes) -> list[bytes]:
    """The lines between the head and the foot."""
    return data.splitlines()[1:-2]


async def test_everything_arrives(url: str, empty_url: str) -> None:
    """From and to each database: every row of every table, the same bytes; ids go on where they were."""
    target = empty_url if empty_url != url else f"{empty_url}-2"
    await fill(url)
    data = await archived(url)
    rows = await restored(target, data)
    assert set(rows) == set(tables.metadata.tables)
    assert all(rows.values()), rows
    assert content(await archived(target)) == content(data)
    assert json.loads(data.splitlines()[-2])["last_ids"]["device"] == 3
    store = await open_store(target, ROW_KEY)
    assert (await store.devices.add_device(device("new"), "shared", key("new"), entry())).id == 4
    await store.policies.add_policy(policy("new"), entry())
    assert (await store.devices.get_device("pi-c")).clock == clock(2**64 - 1, 2**32 - 1)
    await store.close()


async def test_a_backup_is_one_moment(store: SqlStore, url: str) -> None:
    """A write during the backup is not in it: no audit entry without its device, and no device without its key."""
    await fill_with_devices(store, 1)
    written = []

    def write_meanwhile(done: int, _total: int) -> None:
        if done == 1:
            written.append(add_in_another_process(url))

    file = io.BytesIO()
    await back_up(url, file, KEY, {}, write_meanwhile)
    assert written == [2]
    foot = json.loads(file.getvalue().splitlines()[-2])
    assert (foot["rows"]["device"], foot["rows"]["sealed_key"]) == (1, 1)


async def fill_with_devices(store: SqlStore, count: int) -> None:
    await store.policies.add_policy(policy(), entry())
    for number in range(count):
        await store.devices.add_device(device(f"d{number}"), "policy", key(f"k{number}"), entry())


def add_in_another_process(url: str) -> int:
    """Add a device; how many there are then."""
    import subprocess
    import sys

    program = (
        "import asyncio, sys\n"
        "from tang_attest.store import open_store\n"
        "from tests.fakes import ROW_KEY\n"
        "from tests.store.samples import device, entry, key\n"
        "async def main():\n"
        "    store = await open_store(sys.argv[1], ROW_KEY)\n"
        "    await store.devices.add_device(device('late'), 'policy', key('late'), entry())\n"
        "    print(len(await store.devices.list_devices()))\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program, url],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return int(done.stdout)


async def test_an_older_schema_is_upgraded(empty_url: str, tmp_path: Path) -> None:
    """A backup from before an upgrade can be restored after it."""
    old = f"sqlite:///{tmp_path}/old.db"

    def make(connection: sa.Connection) -> None:
        schema.upgrade(connection, "0001")
        connection.exec_driver_sql(
            "INSERT INTO policy (name, selection, cap_pcr) VALUES ('p', 'sha256:7', 15)"
        )

    database = connect(parse_url(old), create=True)
    await database.write(make)
    await database.close()
    assert (await look(old)).schema == "0001"
    await restored(empty_url, await archived(old))
    assert (await look(empty_url)).schema == schema.REVISION
    store = await open_store(empty_url, ROW_KEY)
    assert [found.name for found in await store.policies.list_policies()] == ["p"]
    await store.close()


async def test_a_target_that_is_not_empty(url: str, tmp_path: Path) -> None:
    """Is refused, and stays as it is."""
    good = await sample(tmp_path)
    store = await open_store(url, ROW_KEY, create=True)
    await store.policies.add_policy(policy("mine"), entry())
    await store.close()
    before = await archived(url)
    with pytest.raises(TangAttestError) as refused:
        await restored(url, good)
    assert refused.value.code == "database-not-empty"
    assert content(await archived(url)) == content(before)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_a_row(data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    return b"".join(line for line in lines if b"pi-c" not in line)


def with_another_value(data: bytes) -> bytes:
    return data.replace(b'"pi-c"', b'"pi-d"', 1)


def with_a_wrong_type(data: bytes) -> bytes:
    return data.replace(b"[1,", b'[{"b":"AA=="},', 1)


def with_bad_base64(data: bytes) -> bytes:
    return data.replace(b'{"b":"', b'{"b":"*', 1)


def with_another_table(data: bytes) -> bytes:
    return data.replace(b'{"table":"device"', b'{"table":"pg_authid"')


def without_its_end(data: bytes) -> bytes:
    return b"".join(data.splitlines(keepends=True)[:-1])


def with_a_long_line(data: bytes) -> bytes:
    return data.replace(b'"pi-c"', b'"' + b"x" * 5_000_000 + b'"', 1)


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        without_a_row,
        with_another_value,
        with_a_wrong_type,
        with_bad_base64,
        with_another_table,
        without_its_end,
        with_a_long_line,
        lambda data: data + b"{}\n",
        lambda data: data.replace(b"[", b"7 [", 1),
        lambda _: b"",
        lambda _: b"[]\n",
        lambda _: b"\x1f\x8b\x08\n",
        lambda _: b'{"format":"something"}\n',
        lambda _: b"[" * 100_000 + b"\n",
    ],
)
async def test_damage_restores_nothing(
    empty_url: str, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Everything that is missing or changed is found, and the database has not even tables then."""
    good = await sample(tmp_path)
    with pytest.raises(TangAttestError) as refused:
        await restored(empty_url, damage(good))
    assert refused.value.code == "backup-damaged"
    assert refused.value.sentence.count(".") == 1
    await is_untouched(empty_url)


async def test_another_key(empty_url: str, tmp_path: Path) -> None:
    """Somebody without the server's secret can make a digest, but not the HMAC."""
    good = await sample(tmp_path)
    with pytest.raises(TangAttestError) as refused:
        await restored(empty_url, good, bytes(32))
    assert refused.value.code == "backup-foreign"
    await is_untouched(empty_url)


async def is_untouched(url: str) -> None:
    """No SQLite file, no PostgreSQL tables."""
    found = None
    with contextlib.suppress(Unavailable):  # no file
        found = (await look(url)).schema
    assert found is None


async def test_what_arrived_is_compared(
    empty_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that stored something else than it was given is found out."""
    data = await sample(tmp_path)
    finish = archive._Inserter.finish

    def lossy(self: Any) -> None:
        self._rows = self._rows[:-1]
        finish(self)

    monkeypatch.setattr(archive._Inserter, "finish", lossy)
    with pytest.raises(TangAttestError, match="holds something else"):
        await restored(empty_url, data)
    await is_untouched(empty_url)


async def test_no_tables_no_backup(empty_url: str, tmp_path: Path) -> None:
    """A wrong address must not look like an empty registry."""
    file = io.BytesIO()
    with pytest.raises(TangAttestError) as refused:
        await back_up(empty_url, file, KEY, {}, silent)
    assert refused.value.code == "state-missing"
    assert file.getvalue() == b""


async def test_long_tables_come_in_pages(empty_url: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row once, whatever the size of a page; text keys too."""
    monkeypatch.setattr(archive, "_PAGE", 20)
    target = empty_url if empty_url != url else f"{empty_url}-2"
    store = await open_store(url, ROW_KEY, create=True)
    for number in range(archive._PAGE + 3):
        await store.enrollment.add_token(token(f"t{number}"), entry())
        await store.keys.add_key(key(f"K{number}" if number % 2 else f"k{number}"), None, entry())
    await store.close()
    data = await archived(url)
    rows = await restored(target, data)
    assert rows["token"] == rows["sealed_key"] == archive._PAGE + 3
    assert content(await archived(target)) == content(data)


async def test_progress_counts_rows(tmp_path: Path) -> None:
    """From the first to the last, and of how many."""
    source = f"sqlite:///{tmp_path}/source.db"
    await fill(source)
    told: list[tuple[int, int]] = []
    rows = await back_up(source, io.BytesIO(), KEY, {}, lambda done, total: told.append((done, total)))
    total = sum(rows.values())
    assert told == [(done, total) for done in range(1, total + 1)]
