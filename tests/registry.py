"""An empty SQLite registry, made once in each process and copied: migrating one takes half of a test's time.

:func:`create` replaces ``upgrade`` where ``open_store`` calls it.  Tests of ``upgrade`` itself, ``tang-attest init``
and every program of its own migrate as users do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from tang_attest.store import upgrade
from tests.fakes import ROW_KEY

_SQLITE: Final = "sqlite:///"
#: The file; it has tables and no row of ours, so nothing in it depends on a key.
_empty: list[bytes] = []


async def create(url: str, key: bytes) -> None:
    """Make the registry at *url*: a copy where there is no file yet, else with ``upgrade``."""
    path = Path(url.removeprefix(_SQLITE))
    if not url.startswith(_SQLITE) or path.exists() or not path.parent.is_dir():  # noqa: ASYNC240 - a local file
        await upgrade(url, key)
    else:
        await copy_empty(path)


async def copy_empty(path: Path) -> None:
    """Put an empty registry of the newest schema at *path*, readable by its owner only."""
    if not _empty:
        with tempfile.TemporaryDirectory() as directory:
            made = Path(directory) / "registry.db"
            await upgrade(f"{_SQLITE}{made}", ROW_KEY)
            _empty.append(made.read_bytes())
    _write(path, _empty[0])


def _write(path: Path, data: bytes) -> None:
    path.touch(0o600, exist_ok=False)
    path.write_bytes(data)
