"""How a command reaches the state: opened for one command, closed whatever happens."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

import click

from tang_attest.config import Settings, load_settings
from tang_attest.errors import Malformed, Unavailable
from tang_attest.keys.sealed import SealedKeys, SessionBox
from tang_attest.keys.secret import ServerSecret, load_secret
from tang_attest.keys.server_tpm import ServerTpm
from tang_attest.ports import Store
from tang_attest.service.admin_tokens import AdminTokens
from tang_attest.service.caller import Author
from tang_attest.service.explanation import Explanations
from tang_attest.service.policy_changes import PolicyChanges
from tang_attest.service.reference_values import ReferenceValues
from tang_attest.service.registry import Registry
from tang_attest.service.rollouts import Rollouts
from tang_attest.service.server_keys import ServerKeys
from tang_attest.store import KEY_LABEL, open_store

_Result = TypeVar("_Result")


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
class State:
    """Everything a command may need of an initialized server."""

    store: Store
    sealed: SealedKeys
    sessions: SessionBox
    secret: ServerSecret
    registry: Registry
    reference_values: ReferenceValues
    policy_changes: PolicyChanges
    explanations: Explanations
    rollouts: Rollouts
    admin_tokens: AdminTokens
    keys: ServerKeys


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[State]:
    """The state that *settings* names.

    Raises ``state-missing`` before anything is made, and ``setting-invalid`` when the key-encryption key is another
    one than the database's: a key made under it could never be opened again.
    """
    secret = load_secret(settings.state)
    store = await open_store(settings.database_url, secret.derive(KEY_LABEL))
    try:
        state = compose(store, secret, settings.server_tpm)
        try:
            await _check_secret(state)
            yield state
        finally:
            state.sealed.tpm.shutdown()
    finally:
        await store.close()


async def _check_secret(state: State) -> None:
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


def compose(store: Store, secret: ServerSecret, server_tpm: str | None = None) -> State:
    """Wire the use cases to *store* and to keys made from *secret*, in the TPM at *server_tpm* if there is one."""
    clock, random = SystemClock(), SystemRandomness()
    sealed = SealedKeys(secret, ServerTpm(server_tpm))
    operator = operator_name()
    author = Author.operator(operator)
    return State(
        store,
        sealed,
        SessionBox(secret),
        secret,
        Registry(store, sealed, clock, random, operator),
        ReferenceValues(store, clock, author),
        PolicyChanges(store, clock, author),
        Explanations(store, clock),
        Rollouts(store, clock, random, author),
        AdminTokens(store, clock, random, Author.operator(operator)),
        ServerKeys(store, sealed, clock, f"operator:{operator}"),
    )


def settings() -> Settings:
    """What ``--state``, ``--database`` and ``--server-tpm`` say.  Raises ``setting-invalid``."""
    parameters = click.get_current_context().find_root().params
    return load_settings(None, {name: parameters[name] for name in ("state", "database", "server_tpm")})


def run(use: Callable[[State], Awaitable[_Result]]) -> _Result:
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
