"""Help: every command has it, and it says enough."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click
import pytest

from tang_attest import __version__
from tang_attest.cli import group
from tang_attest.cli.types import Duration, Seconds
from tang_attest.config import Settings
from tests.cli.transcript import run


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of *command* and of everything under it."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, (*path, name))


PATHS = list(commands(group))


@pytest.mark.parametrize("path", PATHS, ids=[" ".join(path) or "tang-attest" for path in PATHS])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(path: tuple[str, ...], flag: str) -> None:
    """Every command explains itself, with a text for each option, and exits with 0."""
    stdout, stderr, code = run(*path, flag)
    assert (stderr, code) == ("", 0)
    assert stdout.startswith(" ".join(["Usage: tang-attest", *path]))
    _, _, options = stdout.partition("Options:\n")
    for line in re.findall(r"^  -.*$", options, re.MULTILINE):
        assert re.search(r"\S  +\S", line.strip()) or line + "\n   " in options, line
    # A paragraph that click filled would show its mark or run lines together.
    assert "\b" not in stdout
    assert "\\b" not in stdout


@pytest.mark.parametrize(
    ("path", "example"),
    [
        ((), "    tang-attest token create --name pi-b --record "),
        (("token", "create"), "  tang-attest token create --policy webservers --for 7d\n"),
        (("serve",), "  tang-attest serve --plain-tang --tang-dir /var/db/tang --port 80\n"),
        (
            ("policy", "record"),
            "  tpm2 pcrread sha256:0,2,4,7,8,9,15 | tang-attest policy record webservers --file - ",
        ),
    ],
)
def test_examples(path: tuple[str, ...], example: str) -> None:
    """An example stands on a line of its own, to be copied."""
    assert f"\n{example}" in run(*path, "--help")[0]


def test_every_setting_is_an_option_of_serve() -> None:
    """A setting that only the file knows would be missed in a container."""
    text = run("serve", "--help")[0]
    for name in Settings.model_fields:
        if name != "state":
            assert f"--{name.replace('_', '-')}" in text


#: Commands that print nothing for programs: servers, a dialog, a script of a shell.
WITHOUT_JSON = {("serve",), ("tangd",), ("menu",), ("completion",)}


def leaves() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that is no group, with its path."""
    for path in PATHS:
        command: click.Command = group
        for name in path:
            assert isinstance(command, click.Group)
            found = command.get_command(click.Context(command), name)
            assert found is not None
            command = found
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield path, command


def test_every_command_that_prints_has_json() -> None:
    """Programs read JSON, so every command prints it."""
    for path, command in leaves():
        assert any(option.name == "as_json" for option in command.params) != (path in WITHOUT_JSON), path


def test_options_mean_the_same_everywhere() -> None:
    """One word for a duration, one for a file that is read, one for a switch."""
    for path, command in leaves():
        for parameter in command.params:
            if isinstance(parameter, click.Option) and isinstance(parameter.type, Duration):
                assert parameter.opts[0] in ("--for", "--every", "--stale") or parameter.hidden, (
                    path,
                    parameter.opts,
                )
            assert "--off" not in parameter.opts, path


@pytest.mark.parametrize("path", [path for path in PATHS if not path or len(path) < 3])
def test_one_line_helps_fit_80_columns(path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of commands cuts no sentence."""
    monkeypatch.setenv("COLUMNS", "80")
    listing = run(*path, "--help")[0].partition("Commands:\n")[2]
    for line in listing.splitlines():
        assert len(line) <= 80
        assert line.endswith("."), line
        assert not line.endswith("..."), line


def test_version() -> None:
    """The version is that of the package."""
    assert run("--version") == (f"tang-attest, version {__version__}\n", "", 0)


def test_no_command() -> None:
    """Nothing was asked: the help, and an exit code that a script notices."""
    for path in ((), ("device",)):
        stdout, stderr, code = run(*path)
        assert code == 2
        assert (stdout + stderr).startswith("Usage: tang-attest")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.5", None),
        ("2s", None),
        ("3m", "not between"),
        ("-1", "not between"),
        ("soon", "is not a number with"),
        ("nan", "not between"),
        ("inf", "not between"),
    ],
)
def test_seconds_are_durations_too(text: str, said: str | None) -> None:
    """A bare number is a number of seconds."""
    if said is None:
        assert Seconds(0, 60).convert(text, None, None) == float(text.rstrip("s"))
    else:
        with pytest.raises(click.BadParameter, match=said):
            Seconds(0, 60).convert(text, None, None)
