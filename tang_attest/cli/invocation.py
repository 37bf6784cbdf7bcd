"""The settings and the installation of one command: read and opened for it, closed whatever happens.

The composition of a server is imported when a command runs: ``--help`` and a wrong option need none.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from tang_attest.config import Settings
    from tang_attest.server.compose import Installation, World

_Result = TypeVar("_Result")


#: ``--config`` after a command that has no other flags for it; before the command, every one takes it.
config_option: Final[Callable[[Any], Any]] = click.option(
    "--config",
    "named",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file with the settings, as before the command.",
)


def configuration(named: Path | None = None) -> Path | None:
    """Return the file of the settings: *named*, that of ``--config`` or TANG_ATTEST_CONFIG, or the default."""
    from tang_attest.config import settings_file

    given: Path | None = click.get_current_context().find_root().params["config"]
    return settings_file(named or given)


def settings(named: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings: flags win over the environment, which wins over the file.

    *named* and *flags* are those after the command; they win over those before it.  Raises
    ``setting-invalid``, ``file-unreadable``.
    """
    from tang_attest.config import load_settings, settings_in

    before = click.get_current_context().find_root().params
    given = settings_in(os.environ) | _given(before) | _given(flags or {})
    return load_settings(configuration(named), {**given, "config": None})


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def run(use: Callable[[Installation], Awaitable[_Result]]) -> _Result:
    """Open the installation that the settings name, call *use* with it, and close it.

    Rows of its database that *use* left out, because this server did not write them, are noted for the end of the
    command (:func:`foreign_rows`).
    """
    from tang_attest.server.compose import opened

    async def _run() -> _Result:
        async with opened(settings(), at_terminal()) as installation:
            result = await use(installation)
            foreign_rows().update(dict.fromkeys(installation.store.foreign_rows()))
            return result

    return asyncio.run(_run())


def foreign_rows() -> dict[str, None]:
    """Return the sentences on foreign rows that this command has met; each once, in their order."""
    noted: dict[str, None] = click.get_current_context().find_root().ensure_object(dict)
    return noted


def at_terminal() -> World:
    """Return the real world, in which an operator at a terminal is asked for the TPM owner's password."""
    from tang_attest.server.compose import World

    return World(owner_auth=_owner_auth)


def _owner_auth(settings: Settings) -> bytes | None:
    from tang_attest.server.compose import password_in_file

    password = password_in_file(settings)
    if password is not None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return password
    typed: str = click.prompt(
        "Password of the TPM's owner hierarchy", hide_input=True, default="", show_default=False, err=True
    )
    return typed.encode()
