"""The installation of one command: opened for it, closed whatever happens."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from tang_attest.config import Settings, load_settings
from tang_attest.server.compose import Installation, World, opened, password_in_file

_Result = TypeVar("_Result")


def settings() -> Settings:
    """Return the settings of ``--state``, ``--database`` and ``--server-tpm``.  Raises ``setting-invalid``."""
    parameters = click.get_current_context().find_root().params
    return load_settings(
        None, {name: parameters[name] for name in ("state", "database", "server_tpm", "owner_auth_file")}
    )


def run(use: Callable[[Installation], Awaitable[_Result]]) -> _Result:
    """Open the installation of ``--state``, call *use* with it, and close it."""

    async def _run() -> _Result:
        async with opened(settings(), at_terminal()) as installation:
            return await use(installation)

    return asyncio.run(_run())


def at_terminal() -> World:
    """Return the real world, in which an operator at a terminal is asked for the TPM owner's password."""
    return World(owner_auth=_owner_auth)


def _owner_auth(settings: Settings) -> bytes | None:
    password = password_in_file(settings)
    if password is not None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return password
    typed: str = click.prompt(
        "Password of the TPM's owner hierarchy", hide_input=True, default="", show_default=False, err=True
    )
    return typed.encode()
