"""Debian's tangd and our plain Tang over the same key directory, and a client that sends any bytes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from tang_attest.keys.tang_dir import TangDirectory
from tang_attest.service.tang.plain import KeySetProvider
from tang_attest.web.tang_routes import handle_adv, handle_rec, match
from tests.ports import free_port

TANGD = "/usr/libexec/tangd"
KEYGEN = "/usr/libexec/tangd-keygen"
ROTATE = "/usr/libexec/tangd-rotate-keys"


@dataclass(frozen=True)
class Answer:
    """Parts of a response that a test compares."""

    status: int
    content_type: str | None
    body: bytes


# --- the tools of Tang -------------------------------------------------------------------------------------------


def jose(*arguments: str, stdin: str = "") -> str:
    """Return the output of ``jose``."""
    command = ["jose", *arguments]
    run = subprocess.run(command, input=stdin, capture_output=True, text=True, check=True, timeout=120)
    return run.stdout.strip()


def generate(**template: Any) -> dict[str, Any]:
    """A private key by ``jose jwk gen``."""
    jwk: dict[str, Any] = json.loads(jose("jwk", "gen", "-i", json.dumps(template)))
    return jwk


def public(jwk: dict[str, Any]) -> dict[str, Any]:
    """The public half by ``jose jwk pub``."""
    half: dict[str, Any] = json.loads(jose("jwk", "pub", "-i-", stdin=json.dumps(jwk)))
    return half


def thumbprint(jwk: dict[str, Any], algorithm: str = "S256") -> str:
    """The thumbprint by ``jose jwk thp``."""
    return jose("jwk", "thp", "-i-", "-a", algorithm, stdin=json.dumps(jwk))


def verifies(jws: bytes, jwk: dict[str, Any]) -> bool:
    """Return True if ``jose jws ver`` finds a good signature of *jwk*."""
    command = ["jose", "jws", "ver", "-i", jws.decode(), "-k-"]
    run = subprocess.run(
        command, input=json.dumps(jwk).encode(), capture_output=True, check=False, timeout=120
    )
    return run.returncode == 0


def keygen(directory: Path, *names: str) -> None:
    """``tangd-keygen``: a signing key and an exchange key."""
    subprocess.run([KEYGEN, directory, *names], check=True, capture_output=True, timeout=120)


def rotate(directory: Path) -> None:
    """``tangd-rotate-keys``: hide all keys and make new ones."""
    subprocess.run([ROTATE, "-d", directory], check=True, capture_output=True, timeout=120)


# --- the servers -------------------------------------------------------------------------------------------------


@contextmanager
def tangd(directory: Path, port: int = 0) -> Iterator[int]:
    """Debian's tangd behind socat; yields its port."""
    socat = shutil.which("socat")
    assert socat is not None, "socat is missing; run `make setup`"
    assert os.access(TANGD, os.X_OK), "tangd is missing; run `make setup`"
    port = port or free_port()
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr"
    server = subprocess.Popen([socat, listen, f"EXEC:{TANGD} {directory}"], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        yield port
    finally:
        server.terminate()
        server.wait(120)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "tangd does not listen"
            time.sleep(0.02)
        else:
            return


def make_app(keys: KeySetProvider, endpoint: str = "") -> web.Application:
    """Nothing but plain Tang."""

    async def dispatch(request: web.Request) -> web.Response:
        route = match(request.method, request.raw_path, endpoint)
        if isinstance(route, int):
            return web.Response(status=route)
        if route.name == "adv":
            return await handle_adv(keys, route.kid)
        assert route.kid is not None
        return await handle_rec(keys, route.kid, await request.read())

    app = web.Application()
    app.router.add_route("*", "/{target:.*}", dispatch)
    return app


@contextmanager
def ours(keys: Path | KeySetProvider, port: int = 0, endpoint: str = "") -> Iterator[int]:
    """Our handlers in a thread of their own; yields the port."""
    provider = TangDirectory(keys) if isinstance(keys, Path) else keys
    started: Future[int] = Future()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()
    app = make_app(provider, endpoint)
    thread = threading.Thread(target=loop.run_until_complete, args=(_serve(app, port, started, stop),))
    thread.start()
    try:
        yield started.result(120)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(120)
        loop.close()


async def _serve(app: web.Application, port: int, started: Future[int], stop: asyncio.Event) -> None:
    # Longer request lines than aiohttp takes by default, so that we see them and can answer 414.
    runner = web.AppRunner(app, max_line_size=16 << 10, shutdown_timeout=1)
    try:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        started.set_result(runner.addresses[0][1])
        await stop.wait()
    except BaseException as error:
        if not started.done():
            started.set_exception(error)
        raise
    finally:
        await runner.cleanup()


# --- the client --------------------------------------------------------------------------------------------------


def send(port: int, method: str, target: str, body: bytes = b"") -> Answer:
    """One request with exactly this target, which need not be a valid one."""
    length = f"Content-Length: {len(body)}\r\n" if body or method == "POST" else ""
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(head.encode() + body)
        return _read_answer(connection, method)


def _read_answer(connection: socket.socket, method: str) -> Answer:
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        headers = {}
        while line := stream.readline().strip():
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        length = 0 if method == "HEAD" else int(headers["content-length"])
        return Answer(status, headers.get("content-type") if length else None, stream.read(length))
