"""Run one program to its end: without a shell, with a minimal environment, within a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from tang_attest.errors import Unavailable

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Bytes kept of its stderr.
_MAX_SAID: Final = 4096


async def run_program(
    command: Sequence[str], *, stdin: bytes = b"", limit_s: float, environment: Mapping[str, str] = {}
) -> tuple[int, str]:
    """Return its exit code, negative for a signal, and the beginning of its stderr.

    Raises ``program-missing``, and :class:`TimeoutError` when it took longer than *limit_s*; nothing of it is
    left then.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ.get("PATH", _PATH), "LC_ALL": "C", **environment},
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable("program-missing", f"Cannot run {command[0]}: {error.strerror}.") from None
    try:
        async with asyncio.timeout(limit_s):
            return await _talk(process, stdin)
    finally:
        # The group: processes that it started end too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.returncode is None:
            await process.wait()
        await _end(process.stdin)


async def _talk(process: asyncio.subprocess.Process, stdin: bytes) -> tuple[int, str]:
    assert process.stdin is not None  # noqa: S101 - for the type checker
    assert process.stderr is not None  # noqa: S101 - for the type checker
    _, said = await asyncio.gather(_give(process.stdin, stdin), _hear(process.stderr))
    return await process.wait(), said.decode(errors="replace")


async def _give(pipe: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read
        pipe.write(data)
        await pipe.drain()
    await _end(pipe)


async def _end(pipe: asyncio.StreamWriter | None) -> None:
    if pipe is not None:
        pipe.close()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await pipe.wait_closed()


async def _hear(pipe: asyncio.StreamReader) -> bytes:
    said = bytearray()
    while chunk := await pipe.read(_MAX_SAID):
        said += chunk[: _MAX_SAID - len(said)]
    return bytes(said)
