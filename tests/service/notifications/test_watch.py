"""Events that no request causes: certificates that end, and an audit record that was changed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tang_attest.config import Settings, load_settings
from tang_attest.doctor.finding import Severity
from tang_attest.ports.notices import Occurrence
from tang_attest.protocol.audit_chain import KEY_LABEL
from tang_attest.server.checkup import examine
from tang_attest.server.compose import World, opened
from tang_attest.server.initialize import initialize
from tang_attest.server.notify.watch import RecordCheck, ends_soon
from tang_attest.service.audit.chain import AuditSealer
from tests.client_pki import ClientCa, write_key
from tests.fakes import FakeClock
from tests.protocol.endorsement import ek_pki as pki


@pytest.fixture
async def settings(tmp_path: Path) -> Settings:
    """An installation with a certificate that lasts 30 days."""
    ca = ClientCa(tmp_path / "pki")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = tmp_path / "tls.pem"
    certificate.write_bytes(ca.issue_server("localhost", key.public_key()).public_bytes(Encoding.PEM))
    settings = Settings(
        state=tmp_path / "state",
        tls_certificate=certificate,
        tls_key=write_key(tmp_path / "tls.key", key),
        tls_client_ca=ca.file,
    )
    await initialize(settings, World())
    return settings


async def test_certificates_that_end(settings: Settings) -> None:
    """The server's, the client CA's and those of EK roots: once in each stage, and again when it is over."""
    clock = World().clock
    fake = FakeClock()
    fake.time = clock.now()
    async with opened(settings, World(clock=fake)) as installation:
        await installation.ek_roots.add(pki.ca("Root", not_after=clock.now() + timedelta(days=300)).pem, None)
        assert await ends_soon(installation) == []
        keys = set[str]()
        for days, names in (
            (20, {"tls_certificate"}),
            (28.5, {"tls_certificate"}),
            (31, {"tls_certificate"}),
        ):
            fake.time = clock.now() + timedelta(days=days)
            events = await ends_soon(installation)
            assert {event.subject for event in events} >= names
            mine = [event for event in events if event.subject == "tls_certificate"]
            assert "tls.pem" in mine[0].sentence
            keys.add(mine[0].key)
            assert [event.key for event in await ends_soon(installation)] == [event.key for event in events]
        assert len(keys) == 3
        fake.time = clock.now() + timedelta(days=395)
        assert "tls_client_ca" in {event.subject for event in await ends_soon(installation)}
        fake.time = clock.now() + timedelta(days=365 * 60)
        assert len(await ends_soon(installation)) == 3


async def test_a_certificate_that_cannot_be_read(settings: Settings) -> None:
    """Somebody replaced it by something else: that wants a person, too."""
    assert settings.tls_certificate is not None
    settings.tls_certificate.write_text("x")
    async with opened(settings, World()) as installation:
        (event,) = await ends_soon(installation)
    assert "cannot be read" in event.sentence


async def test_a_changed_record_is_told(settings: Settings) -> None:
    """One server checks the record now and then, and tells what it finds."""
    told = list[Occurrence]()
    clock = FakeClock()

    async def report(events: object) -> None:
        told.extend(events)  # type: ignore[arg-type]

    async with opened(settings, World(clock=clock)) as installation:
        sealer = AuditSealer(installation.store.audit, installation.secret.derive(KEY_LABEL), clock)
        assert await sealer.round() is not None
        check = RecordCheck(installation, report)
        await check.round()
        assert told == []
        engine = sa.create_engine(settings.database_url)
        with engine.begin() as connection:
            connection.execute(sa.text("UPDATE audit SET actor = 'operator:nobody' WHERE id = 1"))
        engine.dispose()
        await check.round()
        assert told == [], "it was checked a moment ago, by this server or another"
        clock.advance(hours=7)
        await check.round()
        (event,) = told
        assert "audit-changed" in event.sentence
        assert "audit verify" in event.action


async def test_doctor_looks_at_receivers(settings: Settings, tmp_path: Path) -> None:
    """A secret that is gone shows before it is needed."""
    token = tmp_path / "token"
    ntfy = {"kind": "ntfy", "url": "https://ntfy.example.org/alerts", "token_file": str(token)}
    configured = load_settings(None, settings.model_dump(exclude_defaults=True) | {"notify": {"phone": ntfy}})
    for level, words in (
        (Severity.PROBLEM, "Receiver 'phone': The access token cannot be read"),
        (Severity.OK, "phone"),
    ):
        found = [each for each in await examine(configured, World()) if each.subject == "notifications"]
        assert [each.level for each in found] == [level]
        assert words in found[0].sentence
        token.write_text("tk_x")
    assert [each for each in await examine(settings, World()) if each.subject == "notifications"] == []
