"""Commands import what they use and no more: a start that imports everything takes a second of a processor."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from tang_attest.cli import LazyGroup, group
from tools.generate_manual import root


def loaded_by(statement: str) -> set[str]:
    """Return the names of the modules that are loaded after *statement* in a new process."""
    program = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.splitlines())


@pytest.mark.parametrize("name", sorted(LazyGroup.commands_by_name))
def test_the_list_shows_each_commands_own_help(name: str) -> None:
    """The help that is shown without importing a command is the first sentence of the command's own."""
    command = group.get_command(click.Context(group), name)
    assert command is not None
    assert command.get_short_help_str(limit=200) == LazyGroup.commands_by_name[name].help


def test_help_lists_every_command() -> None:
    """One line each, in the order of the alphabet."""
    lines = CliRunner().invoke(group, ["--help"]).stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == sorted(LazyGroup.commands_by_name)


def test_a_name_is_completed() -> None:
    """The completion offers commands with their help, and the options of the program."""
    context = root()
    assert [(item.value, item.help) for item in group.shell_complete(context, "tan")] == [
        ("tangd", LazyGroup.commands_by_name["tangd"].help)
    ]
    assert "--state" in [item.value for item in group.shell_complete(context, "--")]


@pytest.mark.parametrize(
    "use", ["group(['--help'], standalone_mode=False)", "group.shell_complete(context, '')"]
)
def test_help_and_completion_import_no_command(use: str) -> None:
    """No command, no database, no web server."""
    loaded = loaded_by(
        f"import click\nfrom tang_attest.cli import group\ncontext = click.Context(group)\n{use}"
    )
    assert not loaded & {"sqlalchemy", "aiohttp", "pydantic", "tpm2_pytss", "cryptography", "structlog"}


def test_a_commands_help_imports_no_server() -> None:
    """``policy --help`` and a wrong option load no database, no web, and no composition of a server."""
    commands = sorted(LazyGroup.commands_by_name.keys() - {"tangd"})
    program = "".join(f"import_of({[name]})\n" for name in commands)
    loaded = loaded_by(
        "from tang_attest.cli import group\nfrom click.testing import CliRunner\n"
        "def import_of(command):\n"
        "    for wrong in ('--help', '--no-such-option'):\n"
        "        CliRunner().invoke(group, [*command, wrong])\n" + program
    )
    assert not loaded & {"sqlalchemy", "aiohttp", "alembic", "asyncpg", "tang_attest.server.compose"}


@pytest.mark.parametrize(
    ("module", "unused"),
    [
        ("server.serve", {"alembic", "asyncpg", "prometheus_client", "tang_attest.web.admin.wire"}),
        ("cli.installation.tangd", {"sqlalchemy", "tang_attest.web.wire", "tang_attest.web.admin.wire"}),
        ("cli.machines.token", {"aiohttp", "alembic", "asyncpg"}),
        ("cli.policies.policy", {"sqlalchemy", "aiohttp", "alembic", "asyncpg"}),
        ("cli.offline.checkquote", {"aiohttp", "sqlalchemy"}),
    ],
)
def test_a_command_leaves_out_what_it_rarely_uses(module: str, unused: set[str]) -> None:
    """The schema's migrations, the driver of another database, the admin API: imported where they are used."""
    assert not loaded_by(f"import tang_attest.{module}") & unused
