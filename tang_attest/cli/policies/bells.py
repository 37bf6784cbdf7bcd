"""Hooks and webhooks of a policy, looked at when they are set: one that cannot ring fails at the incident."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tang_attest.cli import output
from tang_attest.cli.invocation import settings
from tang_attest.errors import TangAttestError, Unavailable

if TYPE_CHECKING:
    from tang_attest.config import Settings
    from tang_attest.protocol.conditions import Watch


def warn_of_silent(policy: str, watch: Watch) -> None:
    """Warn of each hook and webhook of *watch* that cannot ring with the settings of the service."""
    current = settings()
    silent = 0
    for action in _bells(watch):
        try:
            _check(current, action)
        except TangAttestError as error:
            silent += 1
            output.say(f"WARNING: {action} cannot ring: {output.decapitalize(error.sentence.rstrip('.'))}")
    if silent:
        output.hint(
            "correct the settings hook_dir and webhook_secret of 'serve',"
            f" then run 'tang-attest policy require-rounds {policy} on --test'"
        )


def ring(policy: str, watch: Watch) -> None:
    """Ring each hook and webhook of *watch* with a test.  Raises ``hook-failed``, ``webhook-failed``."""
    from tang_attest.server.compose import SystemClock
    from tang_attest.server.courier import SettingsCourier

    courier, actions = SettingsCourier(settings()), list(_bells(watch))
    at = SystemClock().now().isoformat(timespec="seconds")
    body = {"event": "test", "policy": policy, "device": None, "outcome": "test", "code": None, "at": at}
    for action in actions:
        asyncio.run(courier.deliver(action, json.dumps(body, separators=(",", ":"), sort_keys=True).encode()))
        output.say(f"{action} rang")
    if not actions:
        output.say(f"policy {policy} has no hook and no webhook: nothing rings")


def _bells(watch: Watch) -> Iterator[str]:
    """Yield the actions outside of this server, each once."""
    for action in dict.fromkeys((*watch.on_refused, *watch.on_unreachable)):
        if action.startswith(("hook:", "webhook:")):
            yield action


def _check(current: Settings, action: str) -> None:
    """Raise ``hook-failed`` or ``webhook-failed`` for an action that cannot ring; nothing is run or sent."""
    from tang_attest.web.webhook import read_secret

    kind, _, target = action.partition(":")
    if kind == "webhook":
        read_secret(current.webhook_secret)
    elif current.hook_dir is None:
        raise Unavailable("hook-failed", f"There is no hook directory to find '{target}' in.")
    elif not ((program := current.hook_dir / target).is_file() and os.access(program, os.X_OK)):
        raise Unavailable("hook-failed", f"There is no program {program} that can be run.")
