"""One configuration: every command acts on the database and the keys of the service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tang_attest import config
from tests.cli.fleet import Machines
from tests.cli.serving import initialize
from tests.cli.transcript import environment, run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with the service's state in ``state``, and nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    initialize(tmp_path / "state")
    with environment(TANG_ATTEST_STATE="", TANG_ATTEST_CONFIG=""):
        yield tmp_path


@pytest.fixture
def default(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default file, which names the service's state."""
    file = home / "tang-attest.toml"
    file.write_text(f'state = "{home}/state"\n')
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    return file


#: A command of each noun that reads or writes the database.
COMMANDS = (
    "admin-token list",
    "admin-token create ansible --scope read",
    "audit list",
    "audit verify",
    "backup copy",
    "db status",
    "db upgrade",
    "device list",
    "ek-root list",
    "keys list",
    "keys rotate",
    "observation list",
    "policy list",
    "policy create web --selection sha256:7",
    "token list",
    "token create --record",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_acts_on_the_state_of_the_default_file(default: Path, command: str) -> None:
    """Without it the command would not find a state."""
    _, stderr, code = run(*command.split())
    assert code == 0, stderr
    Path("copy").unlink(missing_ok=True)
    default.write_text('state = "/nonexistent/state"\n')
    _, stderr, code = run(*command.split())
    assert code == 1
    assert "/nonexistent/state" in stderr


def test_a_key_is_not_made_beside_the_servers_tpm(default: Path) -> None:
    """``server_tpm`` is only in the file: ``keys rotate`` makes a machine's key in that TPM, or none."""
    with Machines() as machines:
        token = run("token", "create", "--record", "--allow-unverified-ek")[0].strip()
        assert machines.act(f"pi-b enrolls with {token}") == "enrolled"
    with default.open("a") as file:
        file.write('server_tpm = "swtpm:path=/nonexistent/tpm"\n')
    _, stderr, code = run("keys", "rotate", "--device", "pi-b")
    assert (code, "(server-tpm-unavailable)" in stderr) == (1, True)


def test_flag_over_environment_over_file(default: Path, home: Path) -> None:
    """Each names another state, and a later one wins."""
    for name in ("variable", "flag"):
        initialize(home / name)

    def thumbprint(*flags: str) -> str:
        listed = json.loads(run(*flags, "keys", "list", "--json")[0])
        return str(listed[0]["kid"])

    in_file = thumbprint()
    with environment(TANG_ATTEST_STATE=str(home / "variable"), TANG_ATTEST_CONFIG=""):
        in_variable = thumbprint()
        by_flag = thumbprint("--state", str(home / "flag"))
    assert len({in_file, in_variable, by_flag}) == 3
    assert thumbprint("--state", str(home / "variable")) == in_variable


def test_another_file_is_named_by_flag_or_variable(home: Path) -> None:
    """``--config`` wins over TANG_ATTEST_CONFIG, which wins over the default."""
    wanted, other = home / "wanted.toml", home / "other.toml"
    wanted.write_text(f'state = "{home}/state"\n')
    other.write_text('state = "/nonexistent"\n')
    assert run("--config", str(wanted), "device", "list")[2] == 0
    with environment(TANG_ATTEST_STATE="", TANG_ATTEST_CONFIG=str(wanted)):
        assert run("device", "list")[2] == 0
        assert run("--config", str(other), "device", "list")[2] == 1
    with environment(TANG_ATTEST_STATE="", TANG_ATTEST_CONFIG=str(other)):
        assert run("--config", str(wanted), "device", "list")[2] == 0
        assert "/nonexistent" in run("device", "list")[1]


@pytest.mark.parametrize("arguments", [["doctor", "--config"], ["serve", "--config"]])
def test_a_file_named_after_the_command_counts(home: Path, arguments: list[str]) -> None:
    """As units and scripts of before have it."""
    file = home / "settings.toml"
    file.write_text("nonsense = 1\n")
    stdout, stderr, code = run(*arguments, str(file))
    assert (code, "nonsense" in stdout + stderr) == (1, True)


def test_a_missing_default_file_is_as_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without a file uses flags and defaults."""
    monkeypatch.setattr(config, "DEFAULT_FILE", home / "none.toml")
    assert run("--state", str(home / "state"), "device", "list")[2] == 0


@pytest.mark.parametrize("kind", ["missing", "directory", "dangling"])
def test_a_file_that_is_named_has_to_be_readable(home: Path, kind: str) -> None:
    """Nothing else is read instead of it."""
    file = home / "named.toml"
    if kind == "directory":
        file.mkdir()
    if kind == "dangling":
        file.symlink_to("nowhere")
    for flags in (["--config", str(file)], []):
        with environment(TANG_ATTEST_STATE="state", TANG_ATTEST_CONFIG=str(file)):
            _, stderr, code = run(*flags, "device", "list")
        assert code == 1
        assert f"file {file} cannot be read: " in stderr
        assert "(file-unreadable)\nhint: check the path and the permissions" in stderr


def test_a_dangling_default_file_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody configured something: the defaults would be another installation."""
    monkeypatch.setattr(config, "DEFAULT_FILE", home / "link.toml")
    (home / "link.toml").symlink_to("nowhere")
    assert "(file-unreadable)" in run("--state", "state", "device", "list")[1]


@pytest.mark.parametrize(
    "command",
    [
        ["completion", "bash"],
        ["eventlog", "no-such-log"],
        ["ima", "check", "no-such-list"],
        ["checkquote", "--help"],
        ["tangd", "no-such-directory"],
        ["--version"],
    ],
)
def test_a_command_without_a_server_does_not_read_the_file(default: Path, command: list[str]) -> None:
    """A broken file keeps nobody from looking at a quote."""
    default.write_text("this is [not TOML\n")
    stdout, stderr, _ = run(*command)
    assert "TOML" not in stdout + stderr
    assert "not TOML" in run("device", "list")[1]


def test_the_environment_gives_settings_to_every_command(home: Path) -> None:
    """As it does for ``serve``; a wrong one is named."""
    with environment(TANG_ATTEST_STATE="state", TANG_ATTEST_CONFIG="", TANG_ATTEST_PORT="many"):
        _, stderr, code = run("device", "list")
    assert (code, "setting port: " in stderr) == (1, True)


def test_tests_do_not_read_this_machines_file() -> None:
    """Their configuration is named, and empty."""
    with environment():
        stdout, _, _ = run("doctor")
    assert "settings: /dev/null" in stdout
