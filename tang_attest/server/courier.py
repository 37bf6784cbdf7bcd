"""The delivery of notifications, by the settings: hooks and webhooks."""

from __future__ import annotations

from tang_attest.config import Settings
from tang_attest.programs.hook import run_hook
from tang_attest.web.webhook import post_signed


class SettingsCourier:
    """:class:`tang_attest.ports.world.Courier`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def deliver(self, action: str, body: bytes) -> None:
        """See :class:`~tang_attest.ports.world.Courier`."""
        kind, _, target = action.partition(":")
        if kind == "hook":
            await run_hook(self._settings.hook_dir, target, body)
        else:
            await post_signed(self._settings.webhook_secret, target, body)
