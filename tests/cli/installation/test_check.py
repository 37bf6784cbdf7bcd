"""``serve --check``, the values that a start logs, and owners as ``doctor`` and ``init`` see them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tang_attest.config import Settings
from tang_attest.daemon import sockets, unit
from tang_attest.doctor import ownership
from tang_attest.doctor.finding import Severity
from tang_attest.doctor.host import look_at_host
from tang_attest.doctor.ownership import look_at_owners
from tests.cli.installation.test_doctor import NOW, about
from tests.cli.installation.test_serve import self_signed
from tests.cli.serving import initialize, serving
from tests.cli.transcript import environment, run
from tests.ports import free_port

NOBODY = 65534


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with an installation in ``state``, which listens where nobody else does."""
    monkeypatch.chdir(tmp_path)
    initialize(tmp_path / "state")
    with environment(TANG_ATTEST_PORT="0"):
        yield tmp_path


def thumbprint() -> str:
    """The thumbprint of the signing key."""
    return str(json.loads(run("keys", "list", "--json")[0])[0]["kid"])


def pin_of(certificate: Path) -> str:
    """The pin of a certificate's key, made by openssl's own tools."""
    line = 'openssl x509 -in "$1" -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | base64'
    der = subprocess.run(
        ["bash", "-c", line, "pin", certificate],
        check=True,
        capture_output=True,
        text=True,
    )
    return f"sha256//{der.stdout.strip()}"


# --- serve --check ---------------------------------------------------------------------------------------------


def test_a_good_configuration(home: Path) -> None:
    """It prints the values that machines compare, listens nowhere, and changes nothing."""
    certificate, key = self_signed(home, "one")
    before = (home / "state/tang-attest.db").read_bytes()
    _, stderr, code = run("serve", "--check", "--tls-certificate", str(certificate), "--tls-key", str(key))
    assert (code, stderr.splitlines()) == (
        0,
        [
            f"tang-attest: signing key: {thumbprint()}",
            f"tang-attest: key of the TLS certificate: {pin_of(certificate)}",
            "tang-attest: the server can start",
        ],
    )
    assert (home / "state/tang-attest.db").read_bytes() == before


def test_each_problem_is_said_at_once(home: Path) -> None:
    """Files, keys and the database; each with its code and its action."""
    certificate, _ = self_signed(home, "one")
    _, key = self_signed(home, "two")
    (home / "secret").write_text("short")
    (home / "state/kek").unlink()
    flags = {
        "--tls-certificate": certificate,
        "--tls-key": key,
        "--webhook-secret": home / "secret",
        "--hook-dir": home / "none",
        "--owner-auth-file": home / "no-password",
    }
    _, stderr, code = run("serve", "--check", *(str(word) for pair in flags.items() for word in pair))
    assert code == 1
    for words in (
        "setting tls_key: it is not the key of tls_certificate (setting-invalid)",
        "(webhook-failed)",
        f"setting hook_dir: {home}/none is not a directory (setting-invalid)",
        f"file {home}/no-password cannot be read: No such file or directory (file-unreadable)",
        "there is no key-encryption key at state/kek (state-missing)",
    ):
        assert words in stderr
    assert stderr.count("hint: ") == 5


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            "--host 203.0.113.9 --port 7500",
            "settings host and port: cannot listen on 203.0.113.9 port 7500: Cannot assign",
        ),
        ("--host 2001:db8::9 --port 0", "settings host and port: cannot listen on 2001:db8::9 port 0: "),
        (
            "--metrics-listen 203.0.113.9:9750",
            "setting metrics_listen: cannot listen on 203.0.113.9 port 9750: ",
        ),
        ("--port-file none/port", "/none is not a directory"),
    ],
)
def test_an_address_that_a_start_could_not_take(home: Path, flags: str, sentence: str) -> None:
    """Addresses of other machines (TEST-NET-3), and a file in no directory: the check said that the server
    can start.
    """
    _, stderr, code = run("serve", "--check", *flags.split())
    assert (code, sentence in stderr) == (1, True), stderr
    assert stderr.count("hint: ") == 1


def test_the_running_service_is_no_problem(home: Path) -> None:
    """The check is made beside the service, before it is restarted, also with other settings."""
    certificate, key = self_signed(home, "one")
    tls = ("--tls-certificate", certificate, "--tls-key", key)
    console = ("--console-listen", f"127.0.8.3:{free_port()}", "--metrics-listen", f"127.0.8.3:{free_port()}")
    flags = ("--host", "127.0.8.3", *console, "--workers", "1")
    with serving(home, *flags, "--console-url", "https://localhost") as server:
        for more in ((), tls, ("--endpoint", "elsewhere")):
            checked = ("--port", server.port, *flags, "--console-url", "https://localhost", *more)
            _, stderr, code = run("serve", "--check", *(str(word) for word in checked))
            assert (
                code,
                f"127.0.8.3 port {server.port} is held by a server of this installation" in stderr,
            ) == (0, True), stderr
            assert stderr.count("restart it to use these settings") == 3
            assert "the server can start" in stderr
    (home / "other").mkdir()
    initialize(home / "other/state")
    with serving(home / "other", "--host", "127.0.8.3") as server:
        _, stderr, code = run("serve", "--check", "--host", "127.0.8.3", "--port", str(server.port))
        assert (code, "(address-taken)" in stderr) == (1, True), "a server with other keys is another one"


@pytest.mark.parametrize("setting", ["port", "metrics_listen", "console_listen"])
def test_a_port_that_another_program_has(home: Path, setting: str) -> None:
    """It is named with its setting, the system's reason, and the action; the check said that the server can start."""
    with socket.create_server(("127.0.8.4", 0)) as other:
        port = other.getsockname()[1]
        answering = threading.Thread(target=hang_up, args=(other,), daemon=True)
        answering.start()
        flags = {"port": f"--host 127.0.8.4 --port {port}"}.get(setting) or (
            f"--port 0 --{setting.replace('_', '-')} 127.0.8.4:{port} --workers 1"
        )
        if setting == "console_listen":
            flags += " --console-url https://localhost"
        _, stderr, code = run("serve", "--check", *flags.split())
        other.shutdown(socket.SHUT_RDWR)
        answering.join()
    named = "settings host and port" if setting == "port" else f"setting {setting}"
    assert code == 1
    assert (
        f"{named}: cannot listen on 127.0.8.4 port {port}: Address already in use (address-taken)" in stderr
    )
    assert "hint: stop the program that listens there ('ss -ltnp' names it)" in stderr


def hang_up(listener: socket.socket) -> None:
    """Accept connections until the listener is shut, and answer none."""
    with suppress(OSError):
        while True:
            listener.accept()[0].close()


def test_a_port_that_only_root_may_bind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said for the service's user, although root runs the check; not if the unit has the capability, or a socket unit."""
    home.chmod(0o755)
    given(home)
    asked: list[int] = []

    def refuse(family: int, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
        asked.append(os.geteuid())
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(sockets, "_bound", refuse)
    _, stderr, code = run("serve", "--check", "--port", "80")
    assert (code, asked) == (1, [NOBODY])
    assert (
        "settings host and port: cannot listen on 0.0.0.0 port 80: Permission denied (port-privileged)"
        in stderr
    )
    assert "hint: choose a port above 1023, or give the service CAP_NET_BIND_SERVICE" in stderr
    for granted in ({"AmbientCapabilities": "cap_net_bind_service"}, {"ActiveState": "active"}):
        shown = home / "systemctl"
        shown.write_text(
            "#!/bin/sh\ncase $3 in "
            + " ".join(f"--property={name}) echo {value};;" for name, value in granted.items())
            + " esac\n"
        )
        shown.chmod(0o755)
        monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
        monkeypatch.setattr(unit, "_BOOTED", home)
        assert run("serve", "--check", "--port", "80")[2] == 0
    assert os.geteuid() == 0


def test_a_tangd_with_the_same_keys_is_no_problem(home: Path) -> None:
    """The order of docs/how-to/move-from-tang.md: the check comes before the old server stops."""
    (home / "tang").mkdir()
    flags = ("--plain-tang", "--tang-dir", home / "tang", "--host", "127.0.8.5")
    (home / "elsewhere").mkdir()
    with serving(home / "elsewhere", *flags) as server:
        words = ("--state", "none", "serve", "--check", *flags, "--port", server.port)
        _, stderr, code = run(*(str(word) for word in words))
        assert (code, "is held by a server of this installation" in stderr) == (0, True), stderr


def test_each_wrong_setting_is_named_at_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator corrects the file once, not once for each line."""
    monkeypatch.delenv("TANG_ATTEST_PORT")
    file = home / "settings.toml"
    file.write_text('port = 70000\nnonsense = 1\nworkers = "many"\n')
    _, stderr, code = run("serve", "--check", "--config", str(file))
    assert code == 1
    for name in ("port", "nonsense", "workers"):
        assert f"setting {name}: " in stderr


@pytest.mark.parametrize("fault", ["kek", "database", "schema", "signing key"])
def test_keys_and_database_are_opened(home: Path, fault: str) -> None:
    """Each fault that would stop a start."""
    if fault == "kek":
        initialize(home / "other")
        shutil.copy(home / "other/kek", home / "state/kek")
    elif fault == "database":
        (home / "state/tang-attest.db").write_bytes(b"not a database, but long enough for its header" * 40)
    else:
        statement = (
            "UPDATE alembic_version SET version_num = '0001'"
            if fault == "schema"
            else "DELETE FROM sealed_key"
        )
        with closing(sqlite3.connect(home / "state/tang-attest.db")) as database, database:
            database.execute(statement)
    _, stderr, code = run("serve", "--check")
    assert code == 1
    expected = {
        "kek": "(setting-invalid)",
        "database": "(unavailable)",
        "schema": "(schema-old)",
        "signing key": "there is no signing key (state-missing)",
    }[fault]
    assert expected in stderr


def test_a_drop_in_tangd_needs_no_state(home: Path) -> None:
    """Its keys are those of the directory."""
    (home / "tang").mkdir()
    assert run("--state", "none", "serve", "--check", "--plain-tang", "--tang-dir", "tang")[2] == 0
    assert run("--state", "none", "serve", "--check", "--plain-tang", "--tang-dir", "none")[2] == 1


def test_a_start_logs_what_machines_compare(home: Path) -> None:
    """The thumbprint of the signing key, and the pin of the certificate's key."""
    certificate, key = self_signed(home, "one")
    with serving(home, "--tls-certificate", certificate, "--tls-key", key, "--log-format", "json") as server:
        records = {record["event"]: record for record in server.records()}
    assert records["signing-keys"]["thumbprints"] == [thumbprint()]
    assert records["tls"]["spki"] == pin_of(certificate)


# --- owners ----------------------------------------------------------------------------------------------------


def given(home: Path) -> Path:
    """The state, as a package gives it to the service's user."""
    state = home / "state"
    for path in (state, *state.iterdir()):
        os.chown(path, NOBODY, -1)
    return state


def owners(state: Path, **settings: Any) -> list[tuple[str, str, str]]:
    """Subject, sentence and action of each problem."""
    found = look_at_owners(Settings(state=state, **settings), None)
    return [(f.subject, f.sentence, f.action) for f in found if f.level is Severity.PROBLEM]


def test_a_kek_of_root_is_a_problem(home: Path) -> None:
    """A recovery as root leaves it so: the service could not start."""
    state = given(home)
    assert owners(state) == []
    os.chown(state / "kek", 0, 0)
    assert owners(state) == [
        (
            "owner",
            f"the service runs as nobody, but {state}/kek belongs to others",
            f"run 'chown nobody: {state}/kek'",
        )
    ]
    stdout, _, code = run("--state", str(state), "doctor")
    assert (code, f"hint: run 'chown nobody: {state}/kek'" in stdout) == (1, True)


def test_a_restored_state_names_the_owner_of_its_kek(home: Path) -> None:
    """The kek that root copied back is root's: the service could not start, and `restore` says so."""
    state = given(home)
    assert run("backup", "first")[2] == 0
    (state / "tang-attest.db").unlink()
    os.chown(state / "kek", 0, 0)
    _, stderr, code = run("restore", "first")
    assert code == 0
    assert (
        "the state directory belongs to the service's user, and files in it do not: run 'chown nobody: "
        in stderr
    )
    assert f"{state.relative_to(home)}/kek" in stderr


def test_a_backup_where_the_service_may_not_write_names_the_way(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installed command runs as the service's user; the shell that root has makes the file."""
    really = os.open

    def refusing(path: Any, *rest: Any, **more: Any) -> int:
        if str(path) == "my backups/first":
            raise PermissionError(13, "Permission denied")
        return really(path, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    _, stderr, code = run("backup", "my backups/first")
    assert (code, "(file-unreadable)" in stderr) == (1, True)
    assert "Let the shell make it: (umask 077; tang-attest backup - >'my backups/first')" in " ".join(
        stderr.split()
    )


def test_many_files_of_root_are_given_at_once(home: Path) -> None:
    """A restored directory has more files than a command line should name."""
    state = given(home)
    for number in range(8):
        (state / f"copy {number}").touch()
    [(_, sentence, action)] = owners(state)
    assert " and 3 more belong to others" in sentence
    assert action == f"run 'chown -R nobody: {state}'"


@pytest.mark.parametrize("part", ["file", "directory"])
def test_files_that_the_service_cannot_read(home: Path, part: str) -> None:
    """A key of root, mode 0600, and a directory that only root enters; the group's permission is enough."""
    home.chmod(0o755)
    for parent in home.parents:
        if any(part.startswith("pytest-of-") for part in parent.parts):
            parent.chmod(parent.stat().st_mode | 0o011)
    state, tls = given(home), home / "tls"
    tls.mkdir(mode=0o755)
    certificate, key = self_signed(tls, "one")
    certificate.chmod(0o644)
    key.chmod(0o644)
    settings = {"tls_certificate": certificate, "tls_key": key}
    assert owners(state, **settings) == []
    closed = key if part == "file" else tls
    closed.chmod(0o600 if part == "file" else 0o700)
    bit = "r" if part == "file" else "x"
    assert ("tls_key", f"run 'chgrp nobody {closed} && chmod g+{bit} {closed}'") in [
        (subject, action) for subject, _, action in owners(state, **settings)
    ]
    group = next(iter(ownership.service_user(state).groups))  # type: ignore[union-attr]
    os.chown(closed, 0, group)
    closed.chmod(0o640 if part == "file" else 0o750)
    assert owners(state, **settings) == []


def test_init_as_root_says_chown(home: Path) -> None:
    """The directory was made for the service's user, and root filled it."""
    (home / "made").mkdir(mode=0o700)
    os.chown(home / "made", NOBODY, -1)
    _, stderr, code = run("--state", str(home / "made"), "init")
    assert (code, f"chown nobody: {home}/made/kek {home}/made/tang-attest.db" in stderr) == (0, True)
    assert "run 'chown" not in run("--state", str(home / "own"), "init")[1]


# --- messages --------------------------------------------------------------------------------------------------


def test_a_database_that_cannot_be_used_is_named(home: Path) -> None:
    """Its path or its address, and the reason in words."""
    stdout, stderr, _ = run("--database", f"postgresql://tang@/tang?host={home}/no-socket", "doctor")
    assert f"host={home}/no-socket" in stdout.replace("%2F", "/")
    assert "No such file or directory" in stdout
    assert "Error: 2" not in stdout + stderr
    database = home / "state/tang-attest.db"
    database.write_bytes(b"not a database, but long enough for its header" * 40)
    stdout, _, _ = run("doctor")
    assert f"sqlite:///{database}: DatabaseError: file is not a database" in stdout


@pytest.mark.parametrize("command", ["device list", "status", "db status", "audit list", "policy list"])
def test_another_user_is_told_to_use_sudo(home: Path, command: str) -> None:
    """The state is closed to others, also for commands that only read."""
    for parent in home.parents:
        if any(part.startswith("pytest-of-") for part in parent.parts):
            parent.chmod(parent.stat().st_mode | 0o011)
    home.chmod(0o755)
    given(home)
    with as_user(NOBODY - 1):
        _, stderr, code = run("--state", str(home / "state"), *command.split())
    assert (code, "(permission-denied)\nhint: run the command with sudo" in stderr) == (1, True)


@contextmanager
def as_user(number: int) -> Iterator[None]:
    """Another user for the block, in this process's threads too."""
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_server_of_another_protocol_is_recognized(home: Path) -> None:
    """``doctor`` does not say to stop the server that runs, only because it was given other settings."""
    certificate, key = self_signed(home, "one")
    tls = ("--tls-certificate", certificate, "--tls-key", key)
    with serving(home, "--host", "127.0.8.2", *tls) as server:
        settings = Settings(state=home / "state", host="127.0.8.2", port=server.port)
        [(level, sentence)] = about(look_at_host(settings, NOW), "port")
    assert (level, "speaks https, and these settings say http" in sentence) == ("problem", True)
