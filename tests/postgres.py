"""PostgreSQL servers of the tests' own, from Debian's package: made in scratch.py's directory, durable, reached by a socket or loopback.

Debian's own cluster is left alone.  PostgreSQL refuses to run as root, so root becomes the package's user for it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

from tests import scratch
from tests.ports import free_port

_BINARIES: Final = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
_PATIENCE_S: Final = 120
#: The role that the tests are; it may do everything.
ROLE: Final = "tang"


class Postgres:
    """A server with its data in *parent* (scratch.py's directory); started and stopped with ``with``, its data gone afterwards."""

    def __init__(self, parent: Path | None = None, **settings: str) -> None:
        self._parent, self._settings = parent or scratch.directory(), settings
        self._databases = 0
        self._sessions: dict[str, _Psql] = {}

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="tang-pg-", dir=self._parent))
        self.port = free_port()
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        try:
            self._init()
            self.start()
        except BaseException:
            shutil.rmtree(self.directory)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.thaw()
        self.stop()
        shutil.rmtree(self.directory)

    @property
    def pid(self) -> int:
        """The first of its processes, which started the others."""
        return self._process.pid

    # --- databases ---

    def url(self, database: str, **options: str) -> str:
        """The URL of *database*, over the socket, which only root and the server's user reach."""
        query = "".join(f"&{name}={value}" for name, value in options.items())
        return f"postgresql://{ROLE}@/{database}?host={self.directory}&port={self.port}{query}"

    def loopback_url(self, database: str, role: str = ROLE, **options: str) -> str:
        """The URL of *database* over TCP, where a password is asked for."""
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}?{query}"

    def create(self, template: str = "template0", name: str | None = None) -> str:
        """Make a database like *template*; its name."""
        self._databases += 1
        name = name or f"test_{self._databases}"
        # The default copies by way of the log, which costs three times as much.
        self._hang_up(template)
        self._alone(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return name

    def drop(self, name: str) -> None:
        """Remove a database, whoever uses it."""
        self._hang_up(name)
        self._alone(f"DROP DATABASE {name} WITH (FORCE)")

    def _alone(self, statement: str) -> None:
        """Run *statement*, which waits five seconds by itself for the end of other sessions; a busy machine needs more."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                self.sql(statement)
            except AssertionError as failed:
                if "is being accessed by other users" not in str(failed) or time.monotonic() > deadline:
                    raise
            else:
                return

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Return psql's answer to *statement*, without decoration.

        A database has one session until it is dropped or the server stops: a psql for each statement costs ten times as much.
        """
        if database not in self._sessions:
            self._sessions[database] = _Psql(self.url(database))
        try:
            return self._sessions[database].ask(statement)
        except BaseException:
            self._hang_up(database)
            raise

    def _hang_up(self, *databases: str) -> None:
        for database in databases:
            session = self._sessions.pop(database, None)
            if session is not None:
                session.close()

    # --- the server ---

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._hang_up(*self._sessions)
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_BINARIES / "postgres", "-D", self.directory / "data"],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self._user,
            )
        self._wait()

    def stop(self, number: int = signal.SIGINT) -> None:
        """Stop it: SIGINT ends every session in order, SIGQUIT is a crash."""
        self._hang_up(*self._sessions)
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(_PATIENCE_S)

    def freeze(self) -> None:
        """Stop every process of it where it is; connections stay, and nobody answers."""
        stopped: set[int] = set()
        # The postmaster first: it could not start others then.  The list of children may miss some while one ends (proc(5)).
        while left := [pid for pid in self._pids() if pid not in stopped]:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped.update(left)

    def thaw(self) -> None:
        """Go on."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _pids(self) -> list[int]:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        if self._process.poll() is not None:
            return []
        return [self._process.pid, *map(int, children.read_text().split())]

    def _init(self) -> None:
        def run(*command: str | Path) -> None:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                cwd=self.directory,
                timeout=_PATIENCE_S,
                **self._user,
            )

        data = self.directory / "data"
        run(
            *(_BINARIES / "initdb", "-D", data, "-U", ROLE, "-E", "UTF8", "--locale=C.UTF-8"),
            *("--auth-local=trust", "--auth-host=scram-sha-256", "--no-instructions"),
        )
        self._configure()

    def _configure(self) -> None:
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
            "fsync": "on",
            "shared_buffers": "32MB",
        }
        text = "".join(f"{name} = '{value}'\n" for name, value in (settings | self._settings).items())
        (self.directory / "data" / "postgresql.auto.conf").write_text(text)

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline and self._process.poll() is None:
            ready = [str(_BINARIES / "pg_isready"), "-q", "-h", str(self.directory), "-p", str(self.port)]
            if subprocess.run(ready, check=False, timeout=_PATIENCE_S).returncode == 0:
                return
            time.sleep(0.02)
        raise RuntimeError(f"PostgreSQL does not start:\n{(self.directory / 'log').read_text()}")


class Replica(Postgres):
    """A server that begins as a copy of *primary*, which has to be stopped, and takes no writes; it follows nobody."""

    def __init__(self, primary: Postgres) -> None:
        super().__init__(primary._parent)
        self._primary = primary

    def _init(self) -> None:
        data = self.directory / "data"
        subprocess.run(["cp", "-a", self._primary.directory / "data", data], check=True, timeout=_PATIENCE_S)
        (data / "standby.signal").touch()
        self._configure()


class _Psql:
    """A psql with one session; both end with a statement that fails."""

    _END: Final = "--- the answer ends here ---"

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [_BINARIES / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._lock = threading.Lock()

    def ask(self, statement: str) -> str:
        """Return the answer to *statement*, without white space around it."""
        lines: list[str] = []
        with self._lock:
            with contextlib.suppress(BrokenPipeError):
                self._to.write(f"{statement}\n;\n\\echo {self._END}\n")
                self._to.flush()
            for line in self._from:
                if line.rstrip("\n") == self._END:
                    return "".join(lines).strip()
                lines.append(line)
        raise AssertionError("".join(lines))

    def close(self) -> None:
        """End the session, and wait for psql."""
        self._process.communicate(timeout=_PATIENCE_S)


@contextlib.contextmanager
def away() -> Iterator[str]:
    """The URL of a server that is not there: its port refuses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield f"postgresql://{ROLE}@127.0.0.1:{listener.getsockname()[1]}/registry"
