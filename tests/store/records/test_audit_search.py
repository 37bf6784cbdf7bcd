"""Searches of the audit record: each condition, all together, and the indexes that they read."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tang_attest.ports.audit import AuditSearch
from tang_attest.store import SqlStore, open_store
from tests import registry
from tests.fakes import ROW_KEY
from tests.store.database.test_plans import scans, statements
from tests.store.samples import NOW, entry


@pytest_asyncio.fixture
async def record(store: SqlStore) -> SqlStore:
    """Entries an hour apart."""
    rows = (
        ("token create", "operator:alice", "done", "ok", "pi-b"),
        ("enroll", "device:pi-b", "done", "ok", "pi-b"),
        ("unlock", "device:pi-b", "permitted", "ok", "pi-b"),
        ("unlock", "device:pi-b", "refused", "pcr-mismatch", "pi-b"),
        ("unlock", "server", "refused", "too-many-requests", "pi-b"),
        ("policy state add", "token:alice", "done", "ok", None),
        ("tokenize", "operator:alicea", "done", "ok", None),
        ("token revoke", "operator:bob", "done", "ok", "pi-c"),
    )
    for number, (event, actor, verdict, code, device) in enumerate(rows):
        at = NOW + timedelta(hours=number)
        await store.audit.append(
            entry(event, at=at, actor=actor, verdict=verdict, code=code, device=device, kid=f"kid {device}")
        )
    return store


async def found(store: SqlStore, device: str | None = None, before: int | None = None, **search) -> list[int]:
    """Numbers of the entries, oldest first."""
    rows = await store.audit.list_audit(device, 1000, before, AuditSearch(**search))
    return [number for number, _ in reversed(rows)]


@pytest.mark.parametrize(
    ("search", "numbers"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"since": NOW + timedelta(hours=6)}, [7, 8]),
        ({"until": NOW + timedelta(hours=2)}, [1, 2]),
        ({"since": NOW + timedelta(hours=1), "until": NOW + timedelta(hours=3)}, [2, 3]),
        ({"since": NOW + timedelta(days=1)}, []),
        ({"codes": ("ok",)}, [1, 2, 3, 6, 7, 8]),
        ({"codes": ("pcr-mismatch",)}, [4]),
        ({"codes": ("pcr-mismatch", "ok")}, [1, 2, 3, 4, 6, 7, 8]),
        ({"events": ("unlock",)}, [3, 4, 5]),
        ({"events": ("token",)}, [1, 8]),  # a first word, and not the beginning of one
        ({"events": ("token revoke", "enroll")}, [2, 8]),
        ({"events": ("policy", "unlock")}, [3, 4, 5, 6]),
        ({"events": ("%", "_nlock")}, []),
        ({"actors": ("alice",)}, [1, 6]),
        ({"actors": ("operator:alice",)}, [1]),
        ({"actors": ("server",)}, [5]),
        ({"actors": ("pi-b",)}, [2, 3, 4]),
        ({"actors": ("bob", "token:alice")}, [6, 8]),
        ({"kid": "kid pi-c"}, [8]),
        ({"verdict": "refused"}, [4, 5]),
        ({"verdict": "refused", "actors": ("pi-b",), "codes": ("pcr-mismatch",), "events": ("unlock",)}, [4]),
        ({"device": "pi-c"}, [8]),
        ({"device": "pi-b", "verdict": "permitted"}, [3]),
        ({"device": "pi-b", "before": 3}, [1, 2]),
        ({"before": 3, "events": ("token",)}, [1]),
        ({"codes": ("' OR 1=1 --",)}, []),
    ],
)
async def test_conditions(record: SqlStore, search: dict[str, Any], numbers: list[int]) -> None:
    """An entry has to meet all of them; several values of one are alternatives."""
    assert await found(record, **search) == numbers


@pytest.mark.parametrize(
    "search",
    [
        {"since": NOW, "until": NOW + timedelta(days=1)},
        {"codes": ("pcr-mismatch",)},
        {"events": ("token",)},
        {"actors": ("operator:alice",)},
        {"device": "pi-b"},
    ],
    ids="+".join,
)
async def test_a_search_reads_an_index(tmp_path: Path, search: dict[str, Any]) -> None:
    """A record of years is not read from its end to its beginning for one rare entry."""
    file = tmp_path / "registry.db"
    await registry.copy_empty(file)
    store = await open_store(f"sqlite:///{file}", ROW_KEY)
    with statements() as seen:
        await found(store, **search)
    await store.close()
    assert [step for sql, parameters in seen if "audit" in sql for step in scans(file, sql, parameters)] == []
