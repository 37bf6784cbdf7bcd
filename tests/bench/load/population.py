"""A registry of any size: a few machines that are real, and as many copies of one of them as it takes.

A copy has a name, an AK, an EK and an exchange key's thumbprint of its own, at random: indexes are as deep and as
scattered as those of real machines.  Nobody can unlock as one.
"""

from __future__ import annotations

import os
import subprocess
from itertools import islice
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from tang_attest.keys.secret import load_secret
from tang_attest.protocol.values.base64url import b64u
from tang_attest.store.database import authentic, tables
from tests.bench.load.servers import PROGRAM

_CHUNK: Final = 2000


def grow(state: Path, devices: int) -> None:
    """Add copies of a device to the SQLite registry in *state*, until it has so many *devices*."""
    engine = sa.create_engine(f"sqlite:///{state / 'tang-attest.db'}")
    with engine.begin() as connection:
        device = connection.execute(sa.select(tables.device).limit(1)).mappings().one()
        mine = tables.sealed_key.c.device_id == device["id"]
        key = connection.execute(sa.select(tables.sealed_key).where(mine)).mappings().one()
        there = connection.scalar(sa.select(sa.func.count()).select_from(tables.device)) or 0
        numbers = iter(range(device["id"] + there, device["id"] + devices))
        seals = authentic.Authenticity(load_secret(state).derive(authentic.KEY_LABEL))
        while copies := [_copy(device, key, number) for number in islice(numbers, _CHUNK)]:
            for table, own in ((tables.device, 0), (tables.sealed_key, 1)):
                connection.execute(table.insert(), [_sealed(seals, table, copy[own]) for copy in copies])
    engine.dispose()


def _copy(device: sa.RowMapping, key: sa.RowMapping, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {
        "id": number,
        "name": f"copy-{number}",
        "ak_name": os.urandom(len(device["ak_name"])),
        "ak_spki": os.urandom(len(device["ak_spki"])),
        "ek_spki": os.urandom(len(device["ek_spki"])),
    }
    return {**device, **own}, {**key, "kid": b64u(os.urandom(32)), "device_id": number}


def _sealed(seals: authentic.Authenticity, table: sa.Table, row: dict[str, Any]) -> dict[str, Any]:
    """*row* with a seal of its own, as if the server had written it."""
    form = authentic.form(table)
    raw = {name: form.encode(name, row[name]) for name in form.names}
    return {**row, authentic.SEAL: authentic.made_again(seals, form, raw, None)}


def copy_to(state: Path, database: str) -> None:
    """Copy the registry in *state* to the PostgreSQL *database*, as an operator does it."""
    command: list[str | Path] = [PROGRAM, "--state", state, "db", "copy", "--to", database]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
