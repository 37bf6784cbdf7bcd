"""The place of exchanges: the event loop, or the TPM's own thread for a key in the server's TPM.

A multiplication takes a fifth of a millisecond.  A thread would add half as much processor time, and as much again
until the loop goes on; several workers use several processors without that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

from tang_attest.errors import Unavailable

#: Seconds after which a TPM counts as away; the pin waits for 10, and should get the answer.
PATIENCE_S: Final = 8.0

_Result = TypeVar("_Result")


async def run_in_tpm(place: Executor, call: Callable[..., _Result], *args: object) -> _Result:
    """Return ``call(*args)``, run in the TPM's thread.  Raises ``server-tpm-unavailable`` when that takes too
    long.

    A command under way then still ends, and its result is dropped.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.get_running_loop().run_in_executor(place, call, *args)
    except TimeoutError:
        raise Unavailable(
            "server-tpm-unavailable", f"The server's TPM did not answer within {PATIENCE_S:.0f} seconds."
        ) from None


async def run_where(place: Executor | None, call: Callable[..., _Result], *args: object) -> _Result:
    """Return ``call(*args)``, which multiplies with a key: run in the key's *place*, or else here."""
    if place is not None:
        return await run_in_tpm(place, call, *args)
    return call(*args)
