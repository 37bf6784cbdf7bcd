"""Old names of commands and options: each works for one version, with a note that says the new one.

Rules of this module:

* An old name is rewritten to the new one before click parses it, so no command knows its old names.
* Old names are in no help, and in no completion.
* The note goes to stderr, once for each old name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from tang_attest.cli import output

Arguments = list[str]
Rewrite = Callable[[Arguments], Arguments]


def note(old: str, new: str) -> None:
    """Say that *old* is *new* now."""
    output.say(f"note: '{old}' is now '{new}'; the old name goes with the next version")


@dataclass(frozen=True, slots=True)
class Renamed:
    """The new *name* of a command, and the *rewrite* of the arguments that followed the old one."""

    name: str
    rewrite: Rewrite = list
    #: For the note, where the name alone does not say it.
    usage: str | None = None


class RenamingGroup(click.Group):
    """A group whose *renamed* commands, by their old names, work as the new ones do.

    *synonyms* are other words for the name of a command: what people type first, without a note.
    """

    def __init__(
        self,
        *args: Any,
        renamed: Mapping[str, Renamed] = {},
        synonyms: Mapping[str, str] = {},
        **attributes: Any,
    ) -> None:
        super().__init__(*args, **attributes)
        self.renamed, self.synonyms = renamed, synonyms

    def resolve_command(
        self, ctx: click.Context, args: Arguments
    ) -> tuple[str | None, click.Command | None, Arguments]:
        """Find the command that *args* begin with, by its new name or its old one."""
        if args and (renamed := self.renamed.get(args[0])) is not None:
            path = ctx.command_path
            note(f"{path} {args[0]}", f"{path} {renamed.usage or renamed.name}")
            args = [renamed.name, *renamed.rewrite(args[1:])]
        elif args and args[0] in self.synonyms:
            args = [self.synonyms[args[0]], *args[1:]]
        return super().resolve_command(ctx, args)


class Command(click.Command):
    """A command with *renamed* options, old name to new; *rewrite* changes arguments that need more than a new name."""

    def __init__(
        self, *args: Any, renamed: Mapping[str, str] = {}, rewrite: Rewrite = list, **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.renamed, self.rewrite = renamed, rewrite

    def parse_args(self, ctx: click.Context, args: Arguments) -> Arguments:
        """Parse *args*, with old names of options made new."""
        return super().parse_args(ctx, self.rewrite(self._with_new_options(args)))

    def _with_new_options(self, args: Sequence[str]) -> Arguments:
        said: set[str] = set()
        made: Arguments = []
        for number, word in enumerate(args):
            if word == "--":
                return [*made, *args[number:]]
            name, equals, value = word.partition("=")
            new = self.renamed.get(name)
            if new is not None and name not in said:
                note(name, new)
                said.add(name)
            made.append(word if new is None else f"{new}{equals}{value}")
        return made


def switched(args: Arguments) -> Arguments:
    """Return *args* with the argument ``off`` for the old ``--off``, else with ``on``."""
    if "--help" in args or "-h" in args:
        return args
    kept = [word for word in args if word != "--off"]
    return [*kept, "off" if len(kept) < len(args) else "on"]
