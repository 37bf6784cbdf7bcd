"""Findings of ``tang-attest doctor``: each thing that can be wrong, and that it is not found when it is not."""

from __future__ import annotations

import shutil
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from tang_attest.config import Settings
from tang_attest.doctor.finding import Finding, Severity
from tang_attest.doctor.host import look_at_host
from tang_attest.doctor.registry import look_at_database, look_at_records
from tang_attest.keys.encrypted import EncryptedKeys
from tang_attest.keys.secret import create_secret
from tang_attest.ports.enrollment import EkRoot
from tang_attest.service.audit.chain import AuditSealer
from tang_attest.service.policies.reference_values import Approval
from tests.attester import Attester
from tests.cli.installation.test_serve import self_signed
from tests.cli.serving import initialize, serving
from tests.client_pki import ClientCa, server_certificate
from tests.server import Server

NOW = datetime.now(UTC)


def about(findings: Any, subject: str) -> list[tuple[str, str]]:
    """Level and sentence of the findings about *subject*; each that is not well says what to do."""
    found = list(findings)
    for finding in found:
        assert isinstance(finding, Finding)
        assert bool(finding.action) == (finding.level is not Severity.OK), finding
    return [(str(finding.level), finding.sentence) for finding in found if finding.subject == subject]


# --- the host ----------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    create_secret(directory)
    return directory


@pytest.mark.parametrize(
    ("free", "level"), [(100 << 30, "ok"), (512 << 20, "warning"), (16 << 20, "problem")]
)
def test_the_disk(state: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str) -> None:
    """Room for the audit record, which has to be written before anything is opened."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    [(found, sentence)] = about(look_at_host(Settings(state=state, port=0), NOW), "disk")
    assert (found, sentence) == (level, f"{free >> 20:,} MiB are free at {state}")


@pytest.mark.parametrize(
    ("later", "level", "words"),
    [
        (timedelta(0), "warning", "the certificate is good until "),
        (timedelta(days=-30), "ok", "and the key is its own"),
        (timedelta(days=2), "problem", "the certificate has expired on "),
    ],
)
def test_the_certificate(state: Path, later: timedelta, level: str, words: str) -> None:
    """It was made for a day."""
    certificate, key = self_signed(state.parent, "one")
    settings = Settings(state=state, port=0, tls_certificate=certificate, tls_key=key)
    [(found, sentence)] = about(look_at_host(settings, NOW + later), "tls")
    assert found == level
    assert words in sentence


def test_a_key_of_another_certificate(state: Path) -> None:
    """It would not start."""
    certificate, _ = self_signed(state.parent, "one")
    _, key = self_signed(state.parent, "two")
    settings = Settings(state=state, port=0, tls_certificate=certificate, tls_key=key)
    assert about(look_at_host(settings, NOW), "tls") == [
        ("problem", "Setting tls_key: it is not the key of tls_certificate.")
    ]


def test_permissions(state: Path) -> None:
    """Permissions of the directory, the database and the secret."""
    database = state / "tang-attest.db"
    database.touch(0o644)
    (state / "kek").chmod(0o440)
    state.chmod(0o750)
    findings = list(look_at_host(Settings(state=state, port=0), NOW))
    assert about(findings, "permissions") == [
        ("warning", f"others than its owner may use {path}") for path in (state, database)
    ]
    assert about(findings, "key-encryption key")[0][0] == "problem"


#: A port that this address lets go is not taken by the server of another test, which listens on 127.0.0.1.
OWN_ADDRESS = "127.0.8.1"


def test_the_port(tmp_path: Path) -> None:
    """The server answers there; nobody does; somebody else does."""
    initialize(tmp_path / "state")
    with serving(tmp_path, "--host", OWN_ADDRESS) as server:
        settings = Settings(state=tmp_path / "state", host=OWN_ADDRESS, port=server.port)
        assert about(look_at_host(settings, NOW), "port")[0][0] == "ok"
        assert server.stop() == 0  # workers of a supervisor that is killed answer for a moment longer
    assert about(look_at_host(settings, NOW), "port")[0][0] == "warning"
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(120)
        settings = Settings(state=tmp_path / "state", host="127.0.0.1", port=stranger.getsockname()[1])
        [(level, sentence)] = about(look_at_host(settings, NOW), "port")
    assert level == "problem"
    assert "cannot listen on" in sentence


def test_the_port_over_tls(tmp_path: Path) -> None:
    """It is asked as its clients ask."""
    initialize(tmp_path / "state")
    certificate, key = self_signed(tmp_path, "one")
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--endpoint", "/tang")
    with serving(tmp_path, *flags) as server:
        settings = Settings(
            state=tmp_path / "state",
            host="0.0.0.0",  # noqa: S104 - where it is asked then is the question
            port=server.port,
            endpoint="/tang",
            tls_certificate=certificate,
            tls_key=key,
        )
        assert about(look_at_host(settings, NOW), "port")[0][0] == "ok"


@pytest.mark.parametrize(
    ("later", "level", "words"),
    [
        (timedelta(0), "ok", "the CRL of the clients is good until "),
        (timedelta(days=20), "warning", "the CRL of the clients is good until "),
        (timedelta(days=31), "problem", "the CRL of the clients has expired on "),
    ],
)
def test_the_ca_of_the_clients(tmp_path: Path, state: Path, later: timedelta, level: str, words: str) -> None:
    """An expired list shuts every machine out."""
    certificate, key = server_certificate(tmp_path)
    ca = ClientCa(tmp_path / "ca")
    settings = Settings(state=state, port=0, tls_certificate=certificate, tls_key=key, tls_client_ca=ca.file)
    [(found, sentence)] = about(look_at_host(settings, NOW), "tls-clients")
    assert (found, sentence.startswith("a CA of the clients is good until ")) == ("ok", True)
    ca.revoke()
    [(found, sentence)] = about(look_at_host(settings, NOW + later), "tls-clients")
    assert (found, sentence.startswith(words)) == (level, True)
    ca.file.write_text("nothing")
    found_of = {finding.subject: finding.level for finding in look_at_host(settings, NOW)}
    assert (found_of["tls"], found_of["tls-clients"]) == (Severity.PROBLEM, Severity.WARNING)


def test_the_port_that_demands_a_certificate(tmp_path: Path) -> None:
    """To be told so is an answer."""
    initialize(tmp_path / "state")
    certificate, key = server_certificate(tmp_path)
    ca = ClientCa(tmp_path / "ca")
    flags = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", ca.file)
    with serving(tmp_path, "--host", OWN_ADDRESS, *flags) as server:
        settings = Settings(
            state=tmp_path / "state",
            host=OWN_ADDRESS,
            port=server.port,
            tls_certificate=certificate,
            tls_key=key,
            tls_client_ca=ca.file,
        )
        assert about(look_at_host(settings, NOW), "port")[0][0] == "ok"
        assert server.stop() == 0
    assert about(look_at_host(settings, NOW), "port")[0][0] == "warning"


# --- the database ------------------------------------------------------------------------------------------------


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with Server(tmp_path / "state") as started:
        yield started


async def records(server: Server, **later: float) -> list[Finding]:
    return await look_at_records(server.store, server.private_keys, server.clock.now() + timedelta(**later))


async def test_all_is_well(server: Server) -> None:
    """A machine with a verified EK would be; without one that is the only finding."""
    attester = Attester()
    kid = await server.enroll(attester)
    assert (await server.unlock(attester, kid)).status == 200
    findings = await records(server)
    assert about(findings, "device pi-b") == [("warning", "no certificate proves that its TPM is one")]
    assert about(findings, "server keys") == [("ok", "1 open")]
    assert about(findings, "clock") == [("ok", "it is not behind the audit record")]
    assert about(findings, "devices") == [("ok", "0 of 1 are well")]
    url = Settings(state=server.directory).database_url
    assert about(await look_at_database(url), "database")[0][0] == "ok"


@pytest.mark.parametrize(("version", "words"), [("0001", "this program needs"), ("9999", "knows only")])
async def test_another_schema(server: Server, version: str, words: str) -> None:
    """Older and newer."""
    with closing(sqlite3.connect(server.directory / "tang-attest.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [version])
    connection.close()
    findings = await look_at_database(Settings(state=server.directory).database_url)
    [(level, sentence)] = about(findings, "database")
    assert level == "problem"
    assert words in sentence


async def test_a_damaged_database(tmp_path: Path) -> None:
    """Bytes of the file that are not what was written."""
    async with Server(tmp_path / "state") as server:
        for number in range(3):
            await server.enroll(Attester(), f"pi-{number}")
    path = tmp_path / "state" / "tang-attest.db"
    content = bytearray(path.read_bytes())
    for start in range(8192, len(content), 4096):
        content[start + 8 : start + 64] = b"\xff" * 56
    path.write_bytes(content)
    findings = await look_at_database(Settings(state=tmp_path / "state").database_url)
    assert about(findings, "database")[0][0] == "problem"


async def test_another_secret(server: Server, tmp_path: Path) -> None:
    """A kek that is not this database's opens nothing."""
    other = EncryptedKeys(create_secret(tmp_path))
    findings = await look_at_records(server.store, other, server.clock.now())
    [(level, sentence)] = about(findings, "server keys")
    assert level == "problem"
    assert "another one than the database's" in sentence


async def test_a_clock_that_is_wrong(server: Server) -> None:
    """Behind what was written already; or from before there was this program."""
    assert about(await records(server, seconds=-4), "clock")[0][0] == "ok"
    assert about(await records(server, hours=-1), "clock") == [
        ("problem", "it is 1:00:00 behind the newest entry of the audit record")
    ]
    assert about(await records(server, days=-3000), "clock")[0][1].startswith("it says 2017-")


async def test_a_record_that_nobody_seals(server: Server) -> None:
    """New rows wait for the server's next second; old ones for a server."""
    sealer = AuditSealer(server.store.audit, bytes(32), server.clock)
    assert about(await records(server), "audit record")[0][0] == "ok"
    [(level, sentence)] = about(await records(server, minutes=2), "audit record")
    assert (level, sentence.partition(", the")[0]) == ("warning", "its newest 1 rows are not sealed")
    await sealer.round()
    assert about(await records(server, minutes=2), "audit record")[0][0] == "ok"
    with closing(sqlite3.connect(server.directory / "tang-attest.db")) as connection, connection:
        connection.execute("UPDATE audit_seal SET hash = 1")
    connection.close()
    assert about(await records(server), "audit record") == [
        ("problem", "Seal 1 of the audit record is not what a seal can be.")
    ]


async def test_a_missing_signing_key(server: Server) -> None:
    """Nothing could be advertised."""
    with closing(sqlite3.connect(server.directory / "tang-attest.db")) as connection, connection:
        connection.execute("DELETE FROM sealed_key")
    connection.close()
    assert about(await records(server), "server keys") == [("problem", "there is no signing key")]


async def test_ek_roots_end(server: Server) -> None:
    """Good, about to end, ended."""
    certificate, _ = self_signed(server.directory, "root")
    der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(serialization.Encoding.DER)
    entry = (await server.store.audit.list_audit(limit=1))[0][1]
    await server.store.enrollment.add_ek_root(EkRoot("0" * 64, "vendor", der, NOW), entry)
    for now, level in (
        (NOW - timedelta(days=365), "ok"),
        (NOW, "warning"),
        (NOW + timedelta(days=2), "warning"),
    ):
        findings = await look_at_records(server.store, server.private_keys, now)
        assert about(findings, "ek-root vendor")[0][0] == level
    assert about(findings, "ek-root vendor")[0][1].startswith("it has expired on ")


@pytest.mark.parametrize(("vector", "listed"), [("ovmf", True), ("secure-boot", False)])
async def test_machines_that_boot_with_secure_boot_off(server: Server, vector: str, listed: bool) -> None:
    """systemd then obeys an EFI variable that nothing measures; what helps is said."""
    attester = Attester()
    attester.boot(vector)
    await server.enroll(attester)
    findings = await records(server)
    said = [
        sentence for level, sentence in about(findings, "device pi-b") if "Secure Boot is off" in sentence
    ]
    assert bool(said) == listed


async def test_devices_that_need_somebody(server: Server) -> None:
    """Never seen, refused last, suspended, with a policy that permits nothing, with an approval that is over."""
    attester = Attester()
    kid = await server.enroll(attester)
    assert about(await records(server), "device pi-b")[0] == ("warning", "it was never seen")
    attester.extend(4, b"something")
    assert (await server.unlock(attester, kid)).code == "pcr-mismatch"
    assert about(await records(server), "device pi-b")[0][1].endswith(": pcr-mismatch")
    await server.reference_values.approve("pi-b", None, approval=Approval(once=True))
    assert (await server.unlock(attester, kid)).status == 200
    findings = about(await records(server), "device pi-b")
    assert [level for level, _ in findings] == ["warning"] * 2
    assert "was approved for fewer boots than this" in findings[0][1]
    await server.devices.suspend("pi-b", "it was seen in a market")
    assert ("warning", "it is suspended: it was seen in a market") in about(
        await records(server), "device pi-b"
    )
    for state in (await server.store.policies.get_policy("pi-b")).states:
        if state.life != "retired":
            await server.reference_values.retire("pi-b", state.label, force=True)
    assert about(await records(server), "device pi-b")[0] == ("problem", "policy 'pi-b' permits it nothing")
