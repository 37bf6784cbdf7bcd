"""A database of an older schema is brought to this one with everything in it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic import command

from tang_attest.errors import Unavailable
from tang_attest.protocol.endorsement import subject_digest
from tang_attest.protocol.reference_state import Life, Limits
from tang_attest.service import sealing
from tang_attest.service.audit_check import check_audit
from tang_attest.service.sealing import Sealer
from tang_attest.store import open_store, schema, upgrade
from tang_attest.store.engine import connect, parse_url
from tests.fakes import ROW_KEY, FakeClock
from tests.protocol import ek_pki as pki

#: Rows as version 0.1's first schema has them.
_ROWS = (
    "INSERT INTO policy (id, name, selection, cap_pcr) VALUES (1, 'pi-b', 'sha256:4', 15)",
    """INSERT INTO reference_state (id, policy_id, label, pcr_values, origin)
        VALUES (1, 1, 'recorded', '{"4":"1111111111111111111111111111111111111111111111111111111111111111"}', 'recorded')
    """,
    """INSERT INTO device (id, name, policy_id, ak_public, ak_name, ak_spki, ak_scheme, ak_hash, ek_verified, origin,
        enrolled_at) VALUES (1, 'pi-b', 1, '', '', '', 'ECDSA', 'sha256', true, 'enrolled', 1)""",
)


async def test_a_database_of_the_first_schema_is_upgraded(empty_url: str) -> None:
    """Until then it is not opened; afterwards its states count, for everybody and for good."""
    database = connect(parse_url(empty_url), create=True)

    def old(connection: sa.Connection) -> None:
        command.upgrade(schema.config(connection), "0001")
        for row in _ROWS:
            connection.exec_driver_sql(row)

    await database.write(old)
    await database.close()
    with pytest.raises(Unavailable) as error:
        await open_store(empty_url, ROW_KEY)
    assert error.value.code == "state-missing" or error.value.code.startswith("schema")
    await upgrade(empty_url, ROW_KEY)
    store = await open_store(empty_url, ROW_KEY)
    [state] = (await store.get_policy("pi-b")).states
    assert (state.life, state.limits, state.notes) == (Life.ACTIVE, Limits(), ())
    device = await store.get_device("pi-b")
    assert (device.labels, device.grade, device.last_state) == ((), None, None)
    await store.close()


async def test_rows_of_before_the_chain_are_sealed(empty_url: str) -> None:
    """Schema 0004 had no seals: the first rounds seal what is there, as it was written."""
    database = connect(parse_url(empty_url), create=True)

    def old(connection: sa.Connection) -> None:
        command.upgrade(schema.config(connection), "0004")
        row = {"at": 1, "event": "e", "actor": "a", "verdict": "done", "code": "ok", "details": '{ "b" : 1 }'}
        insert = "INSERT INTO audit (at, event, actor, verdict, code, details) VALUES "
        insert += "(:at, :event, :actor, :verdict, :code, :details)"
        connection.execute(sa.text(insert), [row] * (2 * sealing.ROWS + 1))

    await database.write(old)
    await database.close()
    await upgrade(empty_url, ROW_KEY)
    store = await open_store(empty_url, ROW_KEY)
    clock = FakeClock()
    assert (await store.unsealed_audit(None))[0] == 2 * sealing.ROWS + 1
    assert (await Sealer(store, bytes(32), clock).round()).seq == 3  # type: ignore[union-attr]
    check = await check_audit(store, bytes(32), clock, lambda _done, _total: None)
    assert (check.rows, check.seals, check.bad, check.unsealed) == (2 * sealing.ROWS + 1, 3, 0, 0)
    await store.close()


async def test_roots_of_before_are_found_by_subject(empty_url: str) -> None:
    """Schema 0006 had no subjects: the upgrade reads them, and leaves what cannot be read to be looked at each time."""
    database = connect(parse_url(empty_url), create=True)
    root = pki.ca("Root")

    def old(connection: sa.Connection) -> None:
        command.upgrade(schema.config(connection), "0006")
        insert = sa.text("INSERT INTO ek_root (fingerprint, label, der, added_at) VALUES (:f, 'x', :der, 1)")
        connection.execute(insert, [{"f": "a", "der": root.der}, {"f": "b", "der": b"not a certificate"}])

    await database.write(old)
    await database.close()
    await upgrade(empty_url, ROW_KEY)
    store = await open_store(empty_url, ROW_KEY)
    found = await store.find_ek_roots(subject_digest(root.der), "")
    assert [each.fingerprint for each in found] == ["a", "b"]
    assert [each.fingerprint for each in await store.find_ek_roots(b"another", "")] == ["b"]
    await store.close()
