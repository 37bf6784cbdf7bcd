"""The examination of an installation by ``tang-attest doctor``; nothing is changed."""

from __future__ import annotations

from tang_attest.config import Settings
from tang_attest.doctor.finding import Finding, Severity, failure
from tang_attest.doctor.host import look_at_host
from tang_attest.doctor.registry import look_at_database, look_at_records, look_at_rows
from tang_attest.doctor.server_tpm import look_at_server_tpm
from tang_attest.errors import TangAttestError
from tang_attest.keys.secret import ServerSecret, load_secret
from tang_attest.server.compose import Installation, World, composed
from tang_attest.store import KEY_LABEL, open_store


async def examine(settings: Settings, world: World) -> list[Finding]:
    """Return the findings about the host, the database, its rows, and the server's TPM."""
    findings = [
        *look_at_host(settings, world.clock.now()),
        *await look_at_database(settings.database_url),
    ]
    try:
        secret = load_secret(settings.state)
    except TangAttestError:
        return findings  # it was said already, and without it nothing opens
    if findings[-1].level is Severity.OK:
        findings += await _look_inside(settings, secret, world)
    return findings


async def _look_inside(settings: Settings, secret: ServerSecret, world: World) -> list[Finding]:
    store = await open_store(settings.database_url, secret.derive(KEY_LABEL))
    try:
        async with composed(store, secret, settings, world) as installation:
            return [
                *await look_at_rows(settings.database_url, secret.derive(KEY_LABEL)),
                *await _look_at_records(installation),
                await look_at_server_tpm(store, installation.sealed),
            ]
    finally:
        await store.close()


async def _look_at_records(installation: Installation) -> list[Finding]:
    now = installation.world.clock.now()
    try:
        return list(await look_at_records(installation.store, installation.sealed, now))
    except TangAttestError as error:
        return [failure("records", error)]
