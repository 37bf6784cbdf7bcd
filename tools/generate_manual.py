"""The manual page of ``tang-attest``, made from the help of its commands; tools/generate_docs.py writes it.

Rules of this module:

* The language is man(7): every man program reads it, and its few macros have few traps.
* No date: a page changes when the program does, and only then.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, Final

import click

from tang_attest import __version__
from tang_attest.cli import group

#: Exit codes for scripts, of every command.
EXIT_CODES: Final = {
    0: "done; a check found nothing",
    1: "refused, an error that two lines on standard error explain, or a check found something",
    2: "the command line is wrong; checkquote and ek-root check: nothing was checked",
    3: "device verify and device watch: no evidence came",
    4: "device verify and device watch: there is no such device",
    130: "interrupted",
}

_HEAD = r""".\" made by tools/generate_docs.py
.TH TANG-ATTEST 8 "" "tang-attest {version}" "System Manager's Manual"
.SH NAME
tang-attest \- a Tang server that answers only machines whose TPM has just proved what they booted
.SH SYNOPSIS
.B tang-attest
[\fB\-\-state\fR \fIDIR\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]
"""

_TAIL = r""".SH ENVIRONMENT
.TP
.B TANG_ATTEST_STATE
Used instead of
.B \-\-state
when that is not given.
.TP
.B CREDENTIALS_DIRECTORY
Where systemd puts credentials.
One that is named
.I tang-attest.kek
is used instead of the file
.IR kek .
.PP
Each flag of
.B tang-attest serve
has a variable of its own, such as
.BR TANG_ATTEST_PORT .
.SH FILES
.TP
.I /var/lib/tang-attest/kek
The key-encryption key, mode 0400.
Without it the database opens nothing.
.TP
.I /var/lib/tang-attest/tang-attest.db
Devices, policies, observations, keys and the audit record.
{exit_status}.SH EXAMPLES
Make a server, and a token for the machine pi-b:
.PP
.nf
.RS
tang-attest init
tang-attest serve
tang-attest token create \-\-name pi-b \-\-record
.RE
.fi
.PP
Accept what pi-b booted after an update:
.PP
.nf
.RS
tang-attest observation list \-\-device pi-b
tang-attest approve pi-b \-\-observation 12 \-\-label "kernel 6.1.0-29"
.RE
.fi
.SH SEE ALSO
.BR clevis-encrypt-attest (1),
.BR clevis-attest-enroll (1),
.BR clevis-attest-status (1),
.BR clevis-luks-attest-regen (1),
.BR tang (8)
.PP
docs/threat-model.md in the source says what this protects against, and what not.
"""


def manual() -> str:
    """The page, in man(7)."""
    context = root()
    parts = [_HEAD.format(version=__version__), ".SH DESCRIPTION\n", _prose(group)]
    parts.append(".SH OPTIONS\n")
    parts += _options(group, context)
    parts.append(".SH COMMANDS\n")
    for command, child in _commands(group, context):
        parts += [f".SS {_escape(_usage(command, child))}\n", _prose(command), *_options(command, child)]
    return "".join(parts) + _TAIL.replace("{exit_status}", exit_status())


def root(**settings: Any) -> click.Context:
    """The context of the whole program, with more *settings* of :class:`click.Context`.

    A command keeps the help option of the first context that asks for it, so each context has to name it alike.
    """
    return click.Context(group, info_name="tang-attest", **group.context_settings, **settings)


def pages() -> dict[str, str]:
    """A page for each command and each group of commands, by its file name; `man tang-attest device verify` finds it."""
    context = root()
    return {_file_name(child): _page(command, child) for command, child in _all(group, context)}


def _all(parent: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Every command and group below *parent*, depth first."""
    for name in parent.list_commands(context):
        command = parent.get_command(context, name)
        if command is None:
            raise LookupError(name)
        child = click.Context(command, info_name=name, parent=context)
        yield command, child
        if isinstance(command, click.Group):
            yield from _all(command, child)


def _file_name(context: click.Context) -> str:
    return context.command_path.replace(" ", "-") + ".8"


def _page(command: click.Command, context: click.Context) -> str:
    name = context.command_path.replace(" ", "-")
    summary, _, rest = _help(command).partition("\n\n")
    parts = [
        f'.\\" made by tools/generate_manual.py\n.TH {_escape(name.upper())} 8 "" "tang-attest {__version__}" "System Manager\'s Manual"\n',
        f".SH NAME\n{_escape(name)} \\- {_escape(_summary(summary))}\n",
        f".SH SYNOPSIS\n.B {_escape(context.command_path)}\n{_line(' '.join(command.collect_usage_pieces(context)))}\n",
        f".SH DESCRIPTION\n{_paragraph(summary)}",
        *(_paragraph(paragraph) for paragraph in rest.split("\n\n") if rest),
    ]
    if options := "".join(_options(command, context)):
        parts.append(f".SH OPTIONS\n{options}")
    if isinstance(command, click.Group):
        parts.append(".SH COMMANDS\n")
        for child, below in _all(command, context):
            parts.append(
                f".TP\n.BR {_escape(_file_name(below)[:-2])} (8)\n{_line(child.get_short_help_str(200))}\n"
            )
    parts.append(exit_status())
    parts.append(".SH SEE ALSO\n.BR tang\\-attest (8)\n")
    return "".join(parts)


def _summary(text: str) -> str:
    """The first sentence of a help, as a line of NAME has it."""
    sentence = " ".join(text.split()).rstrip(".")
    return sentence[:1].lower() + sentence[1:] if sentence[1:2].islower() else sentence


def exit_status() -> str:
    """The section about exit codes."""
    rows = "".join(f".TP\n.B {code}\n{_line(meaning)}.\n" for code, meaning in EXIT_CODES.items())
    return f".SH EXIT STATUS\n{rows}"


def _commands(parent: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield every command that does something, depth first; most groups only hold commands."""
    for name in parent.list_commands(context):
        command = parent.get_command(context, name)
        if command is None:
            raise LookupError(name)
        child = click.Context(command, info_name=name, parent=context)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield command, child
        if isinstance(command, click.Group):
            yield from _commands(command, child)


def _usage(command: click.Command, context: click.Context) -> str:
    path = context.command_path.removeprefix("tang-attest ")
    return " ".join([path, *command.collect_usage_pieces(context)])


def _prose(command: click.Command) -> str:
    r"""The help text; a paragraph that click leaves alone (\b) is an example, set as it is."""
    return "".join(_paragraph(paragraph) for paragraph in _help(command).split("\n\n"))


def _help(command: click.Command) -> str:
    """The help text without indentation, which a docstring has until Python 3.13."""
    return inspect.cleandoc((command.help or "").replace("\f", "")).strip()


def _paragraph(text: str) -> str:
    lines = [line.rstrip() for line in text.strip("\n").split("\n")]
    if lines[0].strip() == "\b":
        return ".PP\n.nf\n" + "".join(f"{_line(f'    {line}')}\n" for line in lines[1:]) + ".fi\n"
    return ".PP\n" + "".join(f"{_line(line.strip())}\n" for line in lines)


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            flags, explanation = record
            yield f".TP\n.B {_escape(flags)}\n{_line(re.sub(r'  +', ' ', explanation))}\n"


def _line(text: str) -> str:
    """A line of text: escaped, and never taken for a request."""
    escaped = _escape(text)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escape(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
