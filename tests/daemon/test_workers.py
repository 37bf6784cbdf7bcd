"""Worker processes of ``serve``: shared port, replacement, reload, and what the service manager sees."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli import forked
from tests.cli.forked import command
from tests.cli.serving import PATIENCE_S, Serving, clean_environment, program, request, serving
from tests.cli.transcript import environment, run


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with an initialized state."""
    with environment():
        assert run("--state", str(tmp_path / "state"), "init")[2] == 0
    return tmp_path


def workers_of(server: Serving) -> set[int]:
    """The process ids of the workers."""
    path = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    return {int(pid) for pid in path.read_text().split()}


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def asks(server: Serving, target: str = "/adv") -> int:
    """The status of a request."""
    return request(server.port, "GET", target)[0]


def test_workers_share_one_port(directory: Path) -> None:
    """Two processes answer, and both are asked; the supervisor ends them."""
    with serving(directory, "--workers", "2", "--log-format", "json") as server:
        assert len(workers_of(server)) == 2
        assert {asks(server) for _ in range(8)} == {200}
        pids = workers_of(server)
        assert server.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        assert server.listening()["workers"] == 2


def test_a_worker_that_dies_is_replaced(directory: Path) -> None:
    """Killed while clients ask: its neighbor and its successor answer, and the log says what happened."""
    with serving(directory, "--workers", "2", "--log-format", "json") as server:
        before = workers_of(server)
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len(workers_of(server) - before) == 1, "no new worker")
        assert {asks(server) for _ in range(8)} == {200}
        assert [record["event"] for record in server.records()].count("worker-died") == 1
        assert server.stop() == 0


def test_the_only_worker_dies(directory: Path) -> None:
    """Clients that connect meanwhile wait for its successor: the supervisor holds the socket."""
    with serving(directory) as server:
        [worker] = workers_of(server)
        os.kill(worker, signal.SIGKILL)
        assert asks(server) == 200
        assert workers_of(server) != {worker}


def test_workers_end_with_their_supervisor(directory: Path) -> None:
    """Also when it was killed and could not tell them."""
    with serving(directory, "--workers", "2") as server:
        pids = workers_of(server)
        server.process.kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers stayed")


def test_a_reload_takes_new_settings_without_a_failed_request(directory: Path) -> None:
    """SIGHUP: new workers with the new settings first, then the old ones end; a client asks all the while."""
    file = directory / "settings.toml"
    file.write_text('endpoint = ""\nworkers = 2\n')
    with serving(directory, "--config", file) as server:
        before = workers_of(server)
        file.write_text('endpoint = "/tang"\nworkers = 2\n')
        server.process.send_signal(signal.SIGHUP)
        statuses = []
        deadline = time.monotonic() + PATIENCE_S
        while workers_of(server) & before:
            assert time.monotonic() < deadline, "the old workers stayed"
            statuses.append(asks(server))  # the one before or the one after, never a broken connection
        assert set(statuses) <= {200, 404}
        assert (asks(server, "/tang/adv"), asks(server)) == (200, 404)
        assert server.stop() == 0


@pytest.mark.parametrize(
    "settings", ["workers = 2\nnonsense = 1\n", 'workers = 2\ndatabase = "sqlite:////nowhere/x.db"\n']
)
def test_a_bad_reload_changes_nothing(directory: Path, settings: str) -> None:
    """If the settings cannot be read, or only the new workers find out: the old ones go on."""
    file = directory / "settings.toml"
    file.write_text("workers = 2\n")
    with serving(directory, "--config", file, "--log-format", "json") as server:
        before = workers_of(server)
        file.write_text(settings)
        server.process.send_signal(signal.SIGHUP)

        def told() -> bool:
            return any('"reload-failed"' in line for line in server.log.read_text().splitlines())

        until(told, "nothing was logged")
        until(lambda: workers_of(server) == before, "the workers changed")
        assert asks(server) == 200
        os.kill(min(before), signal.SIGKILL)  # and a successor has the old settings too
        until(lambda: len(workers_of(server) - before) == 1, "no new worker")
        assert {asks(server) for _ in range(4)} == {200}
        assert server.stop() == 0


def test_a_setting_of_the_start_is_named_at_a_reload(directory: Path) -> None:
    """The port is bound already."""
    file = directory / "settings.toml"
    file.write_text('metrics_listen = "127.0.0.1:0"\n')
    with serving(directory, "--config", file) as server:
        file.write_text('metrics_listen = "127.0.0.1:9750"\n')
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "setting-needs-restart" in server.log.read_text(), "nothing was said")
        assert asks(server) == 200


def test_systemd_is_told(directory: Path) -> None:
    """READY once requests are answered, RELOADING and READY around a reload, STOPPING at the end (sd_notify(3))."""
    path = directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(PATIENCE_S)
        with serving(directory, NOTIFY_SOCKET=str(path)) as server:
            assert manager.recv(256) == b"READY=1"
            server.process.send_signal(signal.SIGHUP)
            assert manager.recv(256).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
            assert manager.recv(256) == b"READY=1"
            assert server.stop() == 0
            assert manager.recv(256) == b"STOPPING=1"


def test_a_socket_of_systemd(directory: Path) -> None:
    """It listens on what it is given (sd_listen_fds(3)); a client may have connected before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        early = socket.create_connection(("127.0.0.1", port))
        early.sendall(b"GET /adv HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        process = forked.Popen(
            command("--state", directory / "state", "serve", "--workers", "2"),
            sockets=[listener.fileno()],
            env=clean_environment(LISTEN_FDS="1"),
            stderr=subprocess.DEVNULL,
        )
        try:
            early.settimeout(PATIENCE_S)
            assert early.recv(64).startswith(b"HTTP/1.1 200")
            assert request(port, "GET", "/adv")[0] == 200
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            early.close()


def refused_sockets(state: Path, descriptor: int, count: str) -> str:
    """Return the stderr of a ``serve`` that refuses what it is passed as systemd passes sockets."""
    done = forked.run(
        command("--state", state, "serve", "--workers", "1"),
        timeout=PATIENCE_S,
        sockets=[descriptor],
        env=clean_environment(LISTEN_FDS=count),
        text=True,
    )
    assert done.returncode == 1
    assert "(setting-invalid)" in done.stderr
    return str(done.stderr)


def test_a_connection_of_systemd_is_no_listener(directory: Path) -> None:
    """A socket unit with Accept=yes is told apart at once, instead of a server that never says anything."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        said = refused_sockets(directory / "state", ours.fileno(), "1")
    assert "Accept=no" in said


@pytest.mark.parametrize(("count", "sentence"), [("x", "no number"), ("²", "no number"), ("1", "no socket")])
def test_listen_fds_of_nobody(count: str, sentence: str, tmp_path: Path) -> None:
    """LISTEN_FDS that names no sockets is a setting, not a traceback."""
    with (tmp_path / "file").open("wb") as file:
        assert sentence in refused_sockets(tmp_path / "state", file.fileno(), count)


@pytest.mark.parametrize("workers", [1, 5])
def test_an_error_of_every_worker_is_said_once(directory: Path, workers: int) -> None:
    """A database that none can use ends the start with one error, whichever worker is first, and however they end."""
    state = directory / "state"
    with closing(sqlite3.connect(state / "tang-attest.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0000'")
    for _ in range(3):
        done = program(
            "--state", state, "serve", "--host", "127.0.0.1", "--port", "0", "--workers", str(workers)
        )
        assert (done.returncode, done.stderr.count("(schema-old)")) == (1, 1), done.stderr
