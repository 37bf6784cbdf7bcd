"""Write the documents that are made from the program itself; tests/docs/test_docs.py compares them.

docs/errors.md, docs/settings.md, docs/cli.md, man/tang-attest.8, docs/nixos-options.md and nix/settings.json, and the
tables in docs/protocol.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from tang_attest.cli import group
from tang_attest.config import DEFAULT_FILE, Settings
from tang_attest.errors import ACTIONS
from tang_attest.web.admin.routes import document
from tools import generate_nix
from tools.generate_manual import EXIT_CODES, manual, root
from tools.protocol_tables import filled

ROOT = Path(__file__).parent.parent
MADE = "<!-- made by tools/generate_docs.py -->\n\n"


def errors() -> str:
    """Every code and its action."""
    rows = "".join(f"| `{code}` | {action} |\n" for code, action in ACTIONS.items())
    return (
        f"# Errors\n\n{MADE}"
        "A code means the same on the boot console, in the API, on the command line and in the audit record.\n"
        "It never changes its meaning.\n\n"
        f"| code | what to do |\n|---|---|\n{rows}"
    )


def settings() -> str:
    """Every setting of `serve`."""
    rows = ""
    for name, field in Settings.model_fields.items():
        default = (
            ""
            if field.default in (None, "", {})
            else f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"
        )
        flag = "`--state` (before the command)" if name == "state" else f"`--{name.replace('_', '-')}`"
        rows += f"| `{name}` | {flag} | `TANG_ATTEST_{name.upper()}` | {default} | {field.description} |\n"
    return (
        f"# Settings\n\n{MADE}"
        "The service and every command read one file, so that no command acts on another database or key store.\n"
        f"It is `{DEFAULT_FILE}`, in TOML; without it, the defaults count.\n"
        "`tang-attest --config FILE` or `TANG_ATTEST_CONFIG` names another file, which then has to exist.\n"
        "A setting is given in the file, in the environment, or as a flag;\n"
        "a flag wins over the environment, and both win over the file.\n"
        "A setting that is unknown or wrong stops `serve` and every command that opens the database,\n"
        "with a message that names it.\n"
        "`checkquote`, `eventlog`, `ima`, `completion` and `tangd` need no server, and do not read the file.\n\n"
        f"| in the file | flag | environment | default | what |\n|---|---|---|---|---|\n{rows}"
    )


def cli() -> str:
    """The help of every command."""
    context = root(terminal_width=100)
    rows = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    preface = f"## Exit codes\n\n| code | meaning |\n|---|---|\n{rows}"
    return "\n".join([f"# The command line\n\n{MADE}", preface, *_help(group, context)])


def openapi() -> str:
    """The admin API."""
    return json.dumps(document(), indent=2) + "\n"


def protocol() -> str:
    """The specification, with its tables of limits and codes."""
    return filled((ROOT / "docs" / "protocol.md").read_text())


def _help(command: click.Command, context: click.Context) -> Iterator[str]:
    """The help of *command*, and of everything under it."""
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if child is None:
            raise LookupError(name)
        yield from _help(child, click.Context(child, info_name=name, parent=context, terminal_width=100))


DOCUMENTS = {
    "docs/errors.md": errors,
    "docs/settings.md": settings,
    "docs/cli.md": cli,
    "docs/openapi.json": openapi,
    "docs/protocol.md": protocol,
    "man/tang-attest.8": manual,
    "nix/settings.json": generate_nix.settings,
    "docs/nixos-options.md": generate_nix.options,  # reads nix/settings.json
}

if __name__ == "__main__":
    for name, make in DOCUMENTS.items():
        (ROOT / name).write_text(make())
        click.echo(f"wrote {name}")
