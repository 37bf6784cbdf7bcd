"""How a command reaches the state: opened for one command, closed whatever happens."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import click

from tang_attest.cli.files import read_file
from tang_attest.config import Settings, load_settings
from tang_attest.errors import Malformed, Unavailable
from tang_attest.keys.sealed import EncryptedKeys, SessionEncryption
from tang_attest.keys.secret import ServerSecret, load_secret
from tang_attest.keys.server_tpm import ServerTpm
from tang_attest.ports.store import Store
from tang_attest.service.admin.tokens import AdminTokens
from tang_attest.service.audit.actors import Author
from tang_attest.service.machines.registry import DeviceAdministration
from tang_attest.service.policies.changes import PolicyChanges
from tang_attest.service.policies.explanation import Explanations
from tang_attest.service.policies.reference_values import ReferenceValues
from tang_attest.service.policies.rollouts import Rollouts
from tang_attest.service.tang.server_keys import ServerKeys
from tang_attest.store import KEY_LABEL, open_store

_Result = TypeVar("_Result")
#: Bytes; a password has at most 64 (TPM2B_AUTH of SHA-512).
_MAX_PASSWORD_FILE: Final = 256


class SystemClock:
    """The computer's clock."""

    def now(self) -> datetime:
        """Now, aware, UTC."""
        return datetime.now(UTC)


class SystemRandomness:
    """The operating system's random bytes."""

    def bytes(self, count: int) -> bytes:
        """*count* fresh bytes."""
        return os.urandom(count)


@dataclass(frozen=True, slots=True)
class Installation:
    """Everything a command may need of an initialized server."""

    store: Store
    sealed: EncryptedKeys
    sessions: SessionEncryption
    secret: ServerSecret
    registry: DeviceAdministration
    reference_values: ReferenceValues
    policy_changes: PolicyChanges
    explanations: Explanations
    rollouts: Rollouts
    admin_tokens: AdminTokens
    keys: ServerKeys


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Installation]:
    """The state that *settings* names.

    Raises ``state-missing`` before anything is made, and ``setting-invalid`` when the key-encryption key is another
    one than the database's: a key made under it could never be opened again.
    """
    secret = load_secret(settings.state)
    store = await open_store(settings.database_url, secret.derive(KEY_LABEL))
    try:
        state = compose(store, secret, settings)
        try:
            await _check_secret(state)
            yield state
        finally:
            state.sealed.tpm.shutdown()
    finally:
        await store.close()


async def _check_secret(state: Installation) -> None:
    there, ours = await state.store.count_signing_keys()
    if there and not ours:
        raise _wrong_secret()
    for key in (key for key in await state.store.server_keys() if key.use == "sign"):
        try:
            state.sealed.open_signer(key)
        except Unavailable:
            raise _wrong_secret() from None
        return


def _wrong_secret() -> Malformed:
    return Malformed(
        "setting-invalid",
        "Setting state: its key-encryption key is not the one that the database was made with.",
    )


def compose(store: Store, secret: ServerSecret, settings: Settings | None = None) -> Installation:
    """Wire the use cases to *store* and to keys made from *secret*, in the TPM that *settings* name, if they do."""
    clock, random = SystemClock(), SystemRandomness()
    sealed = EncryptedKeys(secret, _server_tpm(settings))
    operator = operator_name()
    author = Author.operator(operator)
    return Installation(
        store,
        sealed,
        SessionEncryption(secret),
        secret,
        DeviceAdministration(store, sealed, clock, random, operator),
        ReferenceValues(store, clock, author),
        PolicyChanges(store, clock, author),
        Explanations(store, clock),
        Rollouts(store, clock, random, author),
        AdminTokens(store, clock, random, Author.operator(operator)),
        ServerKeys(store, sealed, clock, f"operator:{operator}"),
    )


def _server_tpm(settings: Settings | None) -> ServerTpm:
    if settings is None or settings.server_tpm is None:
        return ServerTpm()
    file = settings.owner_auth_file
    context = click.get_current_context(silent=True)
    # A server that waited for a person in a thread of its own would not answer meanwhile.
    person = (
        context is not None and context.info_name != "serve" and sys.stdin.isatty() and sys.stderr.isatty()
    )
    return ServerTpm(settings.server_tpm, lambda: _owner_auth(file, person=person))


def _owner_auth(file: Path | None, *, person: bool) -> bytes | None:
    """The password of the owner hierarchy: the first line of *file*, or what a person at a terminal types."""
    if file is not None:
        return read_file(file, _MAX_PASSWORD_FILE).split(b"\n", 1)[0]
    if not person:
        return None
    typed: str = click.prompt(
        "Password of the TPM's owner hierarchy", hide_input=True, default="", show_default=False, err=True
    )
    return typed.encode()


def settings() -> Settings:
    """What ``--state``, ``--database`` and ``--server-tpm`` say.  Raises ``setting-invalid``."""
    parameters = click.get_current_context().find_root().params
    return load_settings(
        None, {name: parameters[name] for name in ("state", "database", "server_tpm", "owner_auth_file")}
    )


def run(use: Callable[[Installation], Awaitable[_Result]]) -> _Result:
    """Open the state of ``--state``, call *use* with it, close it."""

    async def _run() -> _Result:
        async with opened(settings()) as state:
            return await use(state)

    return asyncio.run(_run())


def operator_name() -> str:
    """Who types: the person behind sudo, else the user; goes to the audit record."""
    name = os.environ.get("SUDO_USER")
    if name:
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
