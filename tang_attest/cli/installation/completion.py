"""``tang-attest completion``."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import ShellComplete, get_completion_class

#: The variable in which the shell's function asks for completions, as :meth:`click.Command.main` reads it.
_VARIABLE: Final = "_TANG_ATTEST_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    The packages install these scripts.  Elsewhere:

    \b
    tang-attest completion bash >~/.local/share/bash-completion/completions/tang-attest
    tang-attest completion zsh >~/.zfunc/_tang-attest            (a directory in fpath)
    tang-attest completion fish >~/.config/fish/completions/tang-attest.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise LookupError(shell)
    # Not kind.source(), which runs bash to look at its version: a package is built where there is none.
    script = ShellComplete.source(kind(ctx.find_root().command, {}, "tang-attest", _VARIABLE))
    click.echo(script)
