"""Hook programs: run a program of the hook directory with JSON on its stdin."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from tang_attest.errors import Unavailable
from tang_attest.programs.run import run_program

LIMIT_S: Final = 30.0


async def run_hook(directory: Path | None, name: str, body: bytes, limit_s: float = LIMIT_S) -> None:
    """Run the program *name* of *directory* with *body* on its stdin.  Raises ``hook-failed``,
    ``program-missing``.

    *name* has no slash (:class:`tang_attest.protocol.conditions.Watch`).
    """
    if directory is None:
        raise Unavailable("hook-failed", f"There is no hook directory to find '{name}' in.")
    program = await asyncio.to_thread((directory / name).absolute)
    try:
        code, _ = await run_program([str(program)], stdin=body, limit_s=limit_s)
    except TimeoutError:
        raise Unavailable(
            "hook-failed", f"Hook '{name}' did not end within {limit_s:.0f} s, and was killed."
        ) from None
    if code != 0:
        raise Unavailable("hook-failed", f"Hook '{name}' ended with {code}.")
