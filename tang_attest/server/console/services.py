"""The composition of the console's services; a module of its own, because few commands need WebAuthn."""

from __future__ import annotations

from dataclasses import dataclass

from tang_attest.config import Settings
from tang_attest.errors import Malformed
from tang_attest.server.compose import Installation
from tang_attest.service.operators.address import ConsoleAddress
from tang_attest.service.operators.sign_in import KEY_LABEL, SignIn
from tang_attest.service.operators.signed_acts import SignedActs


@dataclass(frozen=True, slots=True)
class ConsoleServices:
    """Sign-in and signed acts under one address."""

    address: ConsoleAddress
    sign_in: SignIn
    acts: SignedActs


def console_address(settings: Settings) -> ConsoleAddress:
    """Return the console's address.  Raises ``setting-invalid`` when the setting ``console_url`` is missing."""
    if settings.console_url is None:
        raise Malformed(
            "setting-invalid",
            "Setting console_url: it is missing; operators open the console at this address.",
        )
    return ConsoleAddress(settings.console_url)


def console_services(installation: Installation) -> ConsoleServices:
    """Return the services behind the console's pages.  Raises as :func:`console_address`."""
    address, store, world = console_address(installation.settings), installation.store, installation.world
    key = installation.secret.derive(KEY_LABEL)
    return ConsoleServices(
        address,
        SignIn(store.operators, address, key, world.clock, world.random),
        SignedActs(store, installation.private_keys, address, world.clock, world.random),
    )
