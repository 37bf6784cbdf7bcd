"""A process that has imported ``tang_attest`` and forks: each child is a started program without the time of its imports.

``python -m tests.cli.zygote FD`` takes requests from the socket FD (:mod:`tests.cli.forked` sends them).  A child gets the
arguments, environment, directory and descriptors of its request, and runs the program as ``python -m tang_attest`` does,
to the interpreter's end: threads are waited for, and what was registered for the end is called. Two things
are different. Databases have more time (:mod:`tests.store.patience`). And objects are not taken apart one by
one at last: in a copy of this process that costs 70 ms of a processor, more than most programs do.
"""

from __future__ import annotations

import array
import atexit
import fcntl
import gc
import importlib
import io
import json
import os
import pkgutil
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any, Final

import tang_attest
from tang_attest.cli import main
from tests.store import patience

#: Libraries that programs import late.
_LATE: Final = ("alembic.command", "asyncpg", "sqlalchemy.dialects.postgresql.asyncpg", "sqlite3", "uvloop")
_MAX_REQUEST: Final = 1 << 20
_MAX_DESCRIPTORS: Final = 64
#: Descriptors of a request are first moved above those that a program is given.
_ABOVE: Final = 500


def serve(requests: socket.socket) -> None:
    """Answer each request with the id of a child, until the other end closes; in a child, return."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST, _MAX_DESCRIPTORS)
        if not data:
            os._exit(0)
        pid = _fork_orphan()
        if pid == 0:
            requests.close()
            _become(json.loads(data), descriptors)
            return
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(str(pid).encode())


def _fork_orphan() -> int:
    """Fork a grandchild, and return when its parent is gone: it then belongs to the nearest subreaper."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            os.close(reader)
            os.close(writer)
            return 0
        os.write(writer, array.array("i", [grandchild]).tobytes())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    [pid] = array.array("i", os.read(reader, 4))
    os.close(reader)
    return pid


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Take the place of a fresh interpreter that was given *request*."""
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _ABOVE) for descriptor in descriptors]
    os.closerange(0, _ABOVE)
    for number, descriptor in zip(request["numbers"], high, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if request["session"]:
        os.setsid()
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["listens"]:
        os.environ["LISTEN_PID"] = str(os.getpid())
    time.tzset()
    sys.argv = request["arguments"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        stream = io.TextIOWrapper(
            open(number, "rb" if number == 0 else "wb", closefd=False),  # noqa: SIM115 - a descriptor
            encoding=before.encoding,
            errors=before.errors,
            line_buffering=number == 2 or os.isatty(number),
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _run() -> None:
    try:
        main()
    except SystemExit as stop:
        # As Py_FinalizeEx() does, up to the modules; a stream that cannot be written is its business.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(stop.code or 0))
        raise


def _preload() -> None:
    for module in pkgutil.walk_packages(tang_attest.__path__, "tang_attest."):
        if "migrations" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LATE:
        importlib.import_module(name)
    for changed, name, value in patience.limits():
        setattr(changed, name, value)
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _preload()
    with suppress(KeyboardInterrupt):
        serve(socket.socket(fileno=int(sys.argv[1])))
    _run()
