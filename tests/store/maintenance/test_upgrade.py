"""A database of an older schema is brought to this one with everything in it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwcrypto.common import base64url_encode
from jwcrypto.jwe import JWE
from jwcrypto.jwk import JWK

from tang_attest.errors import Unavailable
from tang_attest.keys.encrypted import EncryptedKeys
from tang_attest.keys.secret import ServerSecret
from tang_attest.ports.keys import OPEN
from tang_attest.protocol.endorsement.endorsement import subject_digest
from tang_attest.protocol.passkeys.record import SignatureCheck
from tang_attest.protocol.reference_state import Life, StateLimits
from tang_attest.service.audit import chain as sealing
from tang_attest.service.audit.chain import AuditSealer
from tang_attest.service.audit.check import check_audit
from tang_attest.store import KEY_LABEL, Reader, back_up, check_rows, look, open_store, restore, upgrade
from tang_attest.store.database import schema
from tang_attest.store.database.engine import connect, parse_url
from tang_attest.store.maintenance import resealing
from tests.fakes import ROW_KEY, FakeClock
from tests.protocol.endorsement import ek_pki as pki
from tests.store.samples import NOW

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
    [state] = (await store.policies.get_policy("pi-b")).states
    assert (state.life, state.limits, state.notes) == (Life.ACTIVE, StateLimits(), ())
    device = await store.devices.get_device("pi-b")
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
    assert (await store.audit.unsealed_audit(None))[0] == 2 * sealing.ROWS + 1
    assert (await AuditSealer(store.audit, bytes(32), clock).round()).seq == 3  # type: ignore[union-attr]
    check = await check_audit(
        store.audit, bytes(32), clock, lambda _done, _total: None, signatures=lambda: SignatureCheck({})
    )
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
    found = await store.enrollment.find_ek_roots(subject_digest(root.der), "")
    assert [each.fingerprint for each in found] == ["a", "b"]
    assert [each.fingerprint for each in await store.enrollment.find_ek_roots(b"another", "")] == ["b"]
    await store.close()


SECRET = ServerSecret(b"s" * 32)
ROWS = SECRET.derive(KEY_LABEL)


def _without_holder(kid: str, private: ec.EllipticCurvePrivateKey, secret: ServerSecret = SECRET) -> str:
    """A key as versions sealed it whose keys did not name their holder."""
    plain = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    jwe = JWE(plain, protected=json.dumps({"alg": "dir", "enc": "A256GCM", "kid": kid, "use": "exchange"}))
    jwe.add_recipient(JWK(kty="oct", k=base64url_encode(secret.derive("seal"))))
    return str(jwe.serialize(True))


async def _before_seals(url: str) -> tuple[str, str]:
    """A database of schema 0007: a machine's key, and one that somebody sealed under a secret of their own; kids."""
    keys = [EncryptedKeys(SECRET).create("exchange", "P-256", NOW) for _ in range(2)]
    database = connect(parse_url(url), create=True)

    def old(connection: sa.Connection) -> None:
        command.upgrade(schema.config(connection), "0007")
        for row in _ROWS:
            connection.exec_driver_sql(row)
        ak = sa.text("UPDATE device SET ak_public = :public, ak_name = :name, ak_spki = :spki")
        connection.execute(ak, {"public": b"public", "name": b"name", "spki": b"spki"})
        insert = sa.text(
            "INSERT INTO sealed_key (kid, use, curve, public, sealed, created_at, device_id)"
            " VALUES (:kid, 'exchange', 'P-256', :public, :sealed, 1, 1)"
        )
        for key, secret in zip(keys, (SECRET, ServerSecret(b"o" * 32)), strict=True):
            private = EncryptedKeys(SECRET)._private_key(key, "exchange")
            text = _without_holder(key.kid, private, secret)
            connection.execute(insert, {"kid": key.kid, "public": json.dumps(key.public), "sealed": text})

    await database.write(old)
    await database.close()
    return keys[0].kid, keys[1].kid


async def test_rows_of_before_there_were_seals(empty_url: str) -> None:
    """They get one, and how many is told; keys name their holder; a key under another secret stays out and is named."""
    kid, foreign = await _before_seals(empty_url)
    done = await upgrade(empty_url, ROWS, EncryptedKeys(SECRET).rebind)
    assert (done.before, done.after, done.sealed) == ("0007", schema.REVISION, 4)
    assert [(row.table, row.key) for row in done.foreign] == [("sealed_key", foreign)]
    store = await open_store(empty_url, ROWS)
    bound = await store.decisions.find_key(kid)
    assert bound is not None
    assert bound.key.holder != OPEN
    assert EncryptedKeys(SECRET).open_exchange(bound.key).kid == kid
    with pytest.raises(Unavailable) as refused:
        EncryptedKeys(SECRET).open_exchange(replace(bound.key, holder=OPEN))
    assert refused.value.code == "registry-tampered"
    with pytest.raises(Unavailable, match="is not what this server wrote"):
        await store.decisions.find_key(foreign)
    await store.close()
    again = await upgrade(empty_url, ROWS, EncryptedKeys(SECRET).rebind)
    assert (again.before, again.sealed, again.foreign) == (schema.REVISION, 0, ())


async def test_an_upgrade_under_another_secret_changes_nothing(empty_url: str) -> None:
    """Rows sealed under a kek that is not this database's would be lost to its server."""
    await _before_seals(empty_url)
    other = ServerSecret(b"x" * 32)
    with pytest.raises(Unavailable) as refused:
        await upgrade(empty_url, other.derive(KEY_LABEL), EncryptedKeys(other).rebind)
    assert refused.value.code == "setting-invalid"
    with pytest.raises(Unavailable) as refused:
        await upgrade(empty_url, ROWS)
    assert refused.value.code == "schema-old"
    assert (await look(empty_url)).schema == "0007"


async def test_a_later_upgrade_seals_nobody_elses_rows(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From schema 0008 on, what was not ours before is not ours afterwards."""
    monkeypatch.setattr(resealing, "_FIRST", "0007")  # so that this program's last migration is a later one
    kid, _ = await _before_seals(empty_url)
    done = await upgrade(empty_url, ROWS, EncryptedKeys(SECRET).rebind)
    assert done.sealed == 0
    assert {row.table for row in done.foreign} == {"policy", "reference_state", "device", "sealed_key"}
    store = await open_store(empty_url, ROWS)
    with pytest.raises(Unavailable, match="is not what this server wrote"):
        await store.decisions.find_key(kid)
    await store.close()


async def test_a_backup_of_before_there_were_seals(empty_url: str, tmp_path: Path) -> None:
    """It is restored under the server's secret, and its rows are sealed then; a newer one brings its seals along."""
    source = f"sqlite:///{tmp_path}/old.db"
    kid, foreign = await _before_seals(source)
    for url, sealed in ((source, 4), (f"sqlite:///{tmp_path}/new.db", 0)):
        file = io.BytesIO()
        await back_up(url, file, bytes(32), {}, lambda _done, _total: None)
        file.seek(0)
        target = empty_url if url != source else f"sqlite:///{tmp_path}/new.db"
        rebind = EncryptedKeys(SECRET).rebind
        _, done = await restore(target, Reader(file), bytes(32), lambda _d, _t: None, ROWS, rebind)
        assert done.sealed == sealed
        store = await open_store(target, ROWS)
        assert await store.decisions.find_key(kid) is not None
        with pytest.raises(Unavailable):
            await store.decisions.find_key(foreign)
        await store.close()
        assert len((await check_rows(target, ROWS)).findings) == 1
