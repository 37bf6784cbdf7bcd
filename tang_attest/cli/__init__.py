"""The ``tang-attest`` command: one file for each noun, no logic, and the single ``except`` of the program."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, cast

import click

from tang_attest import __version__
from tang_attest.cli import output
from tang_attest.errors import TangAttestError


class LazyGroup(click.Group):
    """Imports a command's module only when it is used, so that ``--help`` and small commands start fast."""

    #: command -> "module:attribute"
    commands_by_name: ClassVar[Mapping[str, str]] = {
        "admin-token": "tang_attest.cli.installation.admin_token:admin_token",
        "approve": "tang_attest.cli.policies.observation:approve",
        "audit": "tang_attest.cli.installation.audit:audit",
        "backup": "tang_attest.cli.installation.backup:backup",
        "checkquote": "tang_attest.cli.offline.checkquote:checkquote",
        "completion": "tang_attest.cli.installation.completion:completion",
        "db": "tang_attest.cli.installation.db:db",
        "device": "tang_attest.cli.machines.device:device",
        "doctor": "tang_attest.cli.installation.doctor:doctor",
        "ek-root": "tang_attest.cli.machines.ek_root:ek_root",
        "eventlog": "tang_attest.cli.offline.eventlog:eventlog",
        "ima": "tang_attest.cli.offline.ima:ima",
        "init": "tang_attest.cli.installation.init:init",
        "keys": "tang_attest.cli.installation.keys:keys",
        "menu": "tang_attest.cli.machines.menu:menu",
        "observation": "tang_attest.cli.policies.observation:observation",
        "policy": "tang_attest.cli.policies.policy:policy",
        "restore": "tang_attest.cli.installation.backup:restore",
        "serve": "tang_attest.cli.installation.serve:serve",
        "tangd": "tang_attest.cli.installation.tangd:tangd",
        "token": "tang_attest.cli.machines.token:token",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name, sorted."""
        return sorted(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        target = self.commands_by_name.get(cmd_name)
        if target is None:
            return None
        module_name, attribute = target.split(":")
        with _without_collection():
            module = importlib.import_module(module_name)
        return cast(click.Command, getattr(module, attribute))


@contextmanager
def _without_collection() -> Iterator[None]:
    """Collect no garbage: an import makes hardly any, and looking for it takes a quarter of the time of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="tang-attest")
@click.option(
    "--state",
    metavar="DIR",
    envvar="TANG_ATTEST_STATE",
    default="/var/lib/tang-attest",
    show_default=True,
    help="Where the database and the key-encryption key are.",
)
@click.option(
    "--database",
    metavar="URL",
    envvar="TANG_ATTEST_DATABASE",
    help="The database, when it is not the SQLite file in the state directory (docs/how-to/postgresql.md).",
)
@click.option(
    "--server-tpm",
    metavar="TCTI",
    envvar="TANG_ATTEST_SERVER_TPM",
    help="This machine's TPM, when exchange keys live in it (docs/how-to/server-tpm.md).",
)
@click.option(
    "--owner-auth-file",
    metavar="FILE",
    envvar="TANG_ATTEST_OWNER_AUTH_FILE",
    help="A file with the password of that TPM's owner hierarchy; without it, a person at a terminal is asked.",
)
@click.pass_context
def group(
    ctx: click.Context, state: str, database: str | None, server_tpm: str | None, owner_auth_file: str | None
) -> None:
    """A Tang server that answers only machines whose TPM has just proved what they booted.

    \b
    A first machine, in four steps, the last of them on the machine:
      tang-attest init                                 make keys and database
      tang-attest serve                                answer on port 7500
      tang-attest token create --name pi-b --record    make a one-time token
      clevis luks bind -d DEV attest '{"url":..., "name":"pi-b", "token":"..."}'

    After an update that was refused:  tang-attest approve pi-b
    """
    ctx.obj = state


def main() -> None:
    """Run the command; every error a person can act on ends here as two lines on stderr and exit code 1."""
    try:
        # Exit code given to ctx.exit() inside of a command; None when the command just returned.
        exit_code = group(prog_name="tang-attest", standalone_mode=False)
        # Now, while it can still be caught: at its end Python could only complain about a reader that left.
        sys.stdout.flush()
    except TangAttestError as error:
        output.error(error)
        sys.exit(1)
    except click.UsageError as error:
        output.usage_error(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("tang-attest: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # Drop the rest of the buffer, instead of failing again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        click.echo(f"tang-attest: cannot write the output: {error.strerror}", err=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    else:
        sys.exit(exit_code or 0)
