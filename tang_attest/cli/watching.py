"""What ``serve`` does beside answering: it watches running machines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import structlog

from tang_attest.cli.courier import SettingsCourier
from tang_attest.cli.state import State, SystemClock, SystemRandomness
from tang_attest.config import Settings
from tang_attest.errors import TangAttestError
from tang_attest.service.agents import Agents
from tang_attest.service.notify import Notify
from tang_attest.service.polls import Polls
from tang_attest.service.verify import Verify
from tang_attest.service.watching import Watching

#: Seconds between two sweeps, and between two looks for somebody to tell.
_EVERY_S = 1.0

_log = structlog.get_logger("watch")


def watch(settings: Settings, state: State, polls: Polls, stack: AsyncExitStack) -> Agents:
    """Begin to watch, until *stack* is left; what answers the agents."""
    clock, random, nonce_key = SystemClock(), SystemRandomness(), state.secret.derive("nonce")
    verify = Verify(state.store, clock, random, nonce_key, settings.challenge_ttl)
    watching = Watching(state.store, verify, polls, clock)
    notify = Notify(state.store, SettingsCourier(settings), clock)
    for work in (watching.sweep, notify.deliver):
        task = asyncio.create_task(_again_and_again(work))
        stack.callback(task.cancel)
    return Agents(state.store, verify, polls, clock, random, nonce_key)


async def _again_and_again(work: Callable[[], Awaitable[object]]) -> None:
    """*work* once a second; a failure is logged and tried again."""
    while True:
        await asyncio.sleep(_EVERY_S)
        try:
            await work()
        except TangAttestError as error:
            _log.warning("watching", code=error.code, sentence=error.sentence)
        except Exception:  # noqa: BLE001 - a defect must not end the watch; the next line says what it was
            _log.exception("defect")
