"""The composition of the console: pages over an opened installation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tang_attest.config import Settings
from tang_attest.server.checkup import check_record
from tang_attest.server.compose import Installation
from tang_attest.server.console.services import console_services
from tang_attest.service.audit.check import AuditCheck
from tang_attest.service.machines.devices import DeviceAdministration
from tang_attest.service.operators.accounts import Operators
from tang_attest.service.policies.changes import PolicyChanges
from tang_attest.service.policies.reference_values import ReferenceValues
from tang_attest.service.policies.rollouts import Rollouts
from tang_attest.service.tang.plain import current_keys
from tang_attest.web.console.desk import Desk, UseCases


def compose_desk(installation: Installation) -> Desk:
    """Compose the needs of the console's handlers.  Raises ``setting-invalid`` without the setting ``console_url``."""
    services, store = console_services(installation), installation.store
    return Desk(
        origin=services.address.origin,
        machines=_address_of_machines(installation.settings, services.address.rp_id),
        store=store,
        clock=installation.world.clock,
        sign_in=services.sign_in,
        acts=services.acts,
        explanations=installation.explanations,
        use=_use_cases(installation),
        thumbprints=partial(_thumbprints, installation),
        check_audit=partial(_check_audit, installation),
        forwarded=installation.settings.console_forwarded,
    )


def _use_cases(installation: Installation) -> UseCases:
    store, clock, random = installation.store, installation.world.clock, installation.world.random
    return UseCases(
        devices=lambda author: DeviceAdministration(store.devices, installation.private_keys, clock, author),
        reference_values=lambda author: ReferenceValues(store, clock, author),
        policy_changes=lambda author: PolicyChanges(store, clock, author),
        rollouts=lambda author: Rollouts(store, clock, random, author),
        operators=lambda author: Operators(store.operators, clock, random, author),
    )


def _address_of_machines(settings: Settings, host: str) -> str:
    """Return the address that machines use, as far as this server knows: its own port on the console's host."""
    scheme, usual = ("https", 443) if settings.tls_certificate is not None else ("http", 80)
    port = "" if settings.port == usual else f":{settings.port}"
    return f"{scheme}://{host}{port}{settings.endpoint}"


async def _thumbprints(installation: Installation) -> Sequence[str]:
    return (await current_keys(installation.served_keys())).thumbprints


async def _check_audit(installation: Installation) -> AuditCheck:
    return await check_record(installation, lambda _rows, _seals: None, None)
