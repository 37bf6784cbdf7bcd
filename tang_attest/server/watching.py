"""What ``serve`` does beside answering: it watches running machines."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from tang_attest.cli.state import Installation, SystemClock, SystemRandomness
from tang_attest.config import Settings
from tang_attest.server.chores import again_and_again
from tang_attest.server.courier import SettingsCourier
from tang_attest.service.rounds.agents import Agents
from tang_attest.service.rounds.notify import Notify
from tang_attest.service.rounds.polls import Polls
from tang_attest.service.rounds.sweep import Watching
from tang_attest.service.rounds.verify import RoundVerifier

#: Seconds between two sweeps, and between two looks for somebody to tell.
_EVERY_S = 1.0


def watch(settings: Settings, state: Installation, polls: Polls, stack: AsyncExitStack) -> Agents:
    """Begin to watch, until *stack* is left; what answers the agents."""
    clock, random, nonce_key = SystemClock(), SystemRandomness(), state.secret.derive("nonce")
    verify = RoundVerifier(state.store, clock, random, nonce_key, settings.challenge_ttl)
    watching = Watching(state.store, verify, polls, clock)
    notify = Notify(state.store, SettingsCourier(settings), clock)
    for work in (watching.sweep, notify.deliver):
        task = asyncio.create_task(again_and_again("watching", _EVERY_S, work))
        stack.callback(task.cancel)
    return Agents(state.store, verify, polls, clock, random, nonce_key)
