"""The ``tang-attest`` command: one file for each noun, no logic, and the single ``except`` of the program."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Final, NamedTuple, cast

import click
from click.shell_completion import CompletionItem

from tang_attest import __version__
from tang_attest.cli import output
from tang_attest.errors import Reason, TangAttestError, Unavailable


class _Lazy(NamedTuple):
    """A command that is not imported yet: ``module:attribute``, and its help in a line."""

    target: str
    help: str


#: The most foreign rows that a command names.
_NAMED: Final = 20


class LazyGroup(click.Group):
    """Imports a command's module only when it is used: ``--help`` and the completion of a name import none."""

    commands_by_name: ClassVar[Mapping[str, _Lazy]] = {
        "admin-token": _Lazy(
            "tang_attest.cli.installation.admin_token:admin_token",
            "Bearer tokens for the admin API.",
        ),
        "approve": _Lazy(
            "tang_attest.cli.policies.observation:approve",
            "Turn the refused boot of DEVICE into a reference state.",
        ),
        "audit": _Lazy(
            "tang_attest.cli.installation.audit:audit",
            "The audit record: decisions and changes.",
        ),
        "backup": _Lazy(
            "tang_attest.cli.installation.backup:backup",
            "Write everything in the database to FILE.",
        ),
        "checkquote": _Lazy(
            "tang_attest.cli.offline.checkquote:checkquote",
            "Check a TPM quote, as tpm2_checkquote does and better.",
        ),
        "completion": _Lazy(
            "tang_attest.cli.installation.completion:completion",
            "Print the completion script of a shell.",
        ),
        "db": _Lazy(
            "tang_attest.cli.installation.db:db",
            "The database: its status, upgrade and move.",
        ),
        "device": _Lazy(
            "tang_attest.cli.machines.device:device",
            "Devices: the machines that the server knows.",
        ),
        "doctor": _Lazy(
            "tang_attest.cli.installation.doctor:doctor",
            "Examine this installation, and say what to do.",
        ),
        "ek-root": _Lazy(
            "tang_attest.cli.machines.ek_root:ek_root",
            "Certificates of TPM vendors that vouch for EKs.",
        ),
        "eventlog": _Lazy(
            "tang_attest.cli.offline.eventlog:eventlog",
            "TCG event logs: replay one, compare two, try rules.",
        ),
        "ima": _Lazy(
            "tang_attest.cli.offline.ima:ima",
            "Measurement lists of Linux' IMA.",
        ),
        "init": _Lazy(
            "tang_attest.cli.installation.init:init",
            "Make the database, the kek and a signing key.",
        ),
        "keys": _Lazy(
            "tang_attest.cli.installation.keys:keys",
            "Signing keys and exchange keys.",
        ),
        "menu": _Lazy(
            "tang_attest.cli.machines.menu:menu",
            "Register, verify and remove machines by answering questions.",
        ),
        "notify": _Lazy(
            "tang_attest.cli.installation.notify:notify",
            "Notifications: the receivers, and a test of them.",
        ),
        "observation": _Lazy(
            "tang_attest.cli.policies.observation:observation",
            "Refused evidence that an operator may approve.",
        ),
        "operator": _Lazy(
            "tang_attest.cli.installation.operator:operator",
            "Operators of the console, who sign in with passkeys.",
        ),
        "policy": _Lazy(
            "tang_attest.cli.policies.policy:policy",
            "Policies: reference states, rules and conditions.",
        ),
        "restore": _Lazy(
            "tang_attest.cli.installation.backup:restore",
            "Fill an empty database from a backup.",
        ),
        "serve": _Lazy(
            "tang_attest.cli.installation.serve:serve",
            "Answer machines.",
        ),
        "status": _Lazy(
            "tang_attest.cli.installation.status:status",
            "Show what wants a person, and what ends when.",
        ),
        "tangd": _Lazy(
            "tang_attest.cli.installation.tangd:tangd",
            "Answer one connection, as Tang's own tangd does.",
        ),
        "token": _Lazy(
            "tang_attest.cli.machines.token:token",
            "Tokens with which machines enroll.",
        ),
        "values": _Lazy(
            "tang_attest.cli.offline.values:values",
            "Signed values of boots, for policies that trust the key.",
        ),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name, sorted."""
        return sorted(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        lazy = self.commands_by_name.get(cmd_name)
        if lazy is None:
            return None
        module_name, attribute = lazy.target.split(":")
        with _without_collection():
            module = importlib.import_module(module_name)
        return cast(click.Command, getattr(module, attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command and its help."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.commands_by_name[name].help) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options that begin with *incomplete*."""
        items = [
            CompletionItem(name, help=self.commands_by_name[name].help)
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Collect no garbage: an import makes hardly any, and looking for it takes a quarter of the time of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _check_text(arguments: list[str]) -> None:
    """Raise :class:`click.UsageError` for bytes that are not UTF-8, which Python keeps as lone surrogates.

    No database takes them, and no output shows them.
    """
    for number, argument in enumerate(arguments, 1):
        if any("\ud800" <= character <= "\udfff" for character in argument):
            raise click.UsageError(f"argument {number} is not UTF-8")


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="tang-attest")
@click.option(
    "--config",
    metavar="FILE",
    envvar="TANG_ATTEST_CONFIG",
    type=click.Path(path_type=Path),
    help="TOML file with the settings of service and commands (docs/settings.md); the environment and flags win."
    "  [default: /etc/tang-attest.toml, if there is one]",
)
@click.option(
    "--state",
    metavar="DIR",
    envvar="TANG_ATTEST_STATE",
    help="Where the database and the key-encryption key are.  [default: /var/lib/tang-attest]",
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
def group(**_settings: object) -> None:
    """A Tang server that answers only machines whose TPM has just proved what they booted.

    \b
    A first machine, in four steps, the last of them on the machine:
      tang-attest init                                 make keys and database
      tang-attest serve                                answer on port 7500
      tang-attest token create --name pi-b --record    make a one-time token
      clevis luks bind -d DEV attest '{"url":..., "name":"pi-b", "token":"..."}'

    After an update that was refused:  tang-attest approve pi-b
    """


def main() -> None:
    """Run the command; every error a person can act on ends here as two lines on stderr and exit code 1."""
    try:
        _check_text(sys.argv[1:])
        # Exit code given to ctx.exit() inside of a command; None when the command just returned.
        foreign: dict[str, None] = {}
        exit_code = group(prog_name="tang-attest", standalone_mode=False, obj=foreign)
        # Now, while it can still be caught: at its end Python could only complain about a reader that left.
        sys.stdout.flush()
        if foreign:
            # They were left out of what was shown.
            named = (Reason("registry-tampered", sentence) for sentence in list(foreign)[:_NAMED])
            output.error(Unavailable.because(*named))
            exit_code = exit_code or 1
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
        output.drop()
        sys.exit(1)
    except OSError as error:
        click.echo(f"tang-attest: cannot write the output: {error.strerror}", err=True)
        output.drop()
        sys.exit(1)
    else:
        sys.exit(exit_code or 0)
