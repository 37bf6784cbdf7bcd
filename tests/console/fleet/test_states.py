"""The fleet of the demonstration and of the pictures has a machine in each state that the console shows."""

from __future__ import annotations

from pathlib import Path

from tang_attest.config import Settings
from tang_attest.server.compose import opened
from tests.console.fleet.boots import recorded, with_other_kernel
from tests.console.fleet.states import make_fleet


async def test_a_machine_is_in_each_state(tmp_path: Path) -> None:
    """Refused alone and in a group, waiting for a person, suspended, silent, announced, stopped, and opened."""
    fleet = await make_fleet(tmp_path / "state")
    async with opened(Settings(state=fleet.state)) as installation:
        attention = await installation.store.attention.attention(20)
        devices = {device.name: device for device in await installation.store.devices.list_devices()}
    codes = {device.name: device.last_code for device, _ in attention.refused}
    assert {name: codes[name] for name in ("web-2", "backup-1", "kiosk-1", "kiosk-2", "kiosk-3")} == (
        dict.fromkeys(("web-2", "backup-1", "kiosk-1", "kiosk-2", "kiosk-3"), "pcr-mismatch")
    )
    assert codes["vault-1"] == "approval-required"
    assert [device.name for device in attention.suspended] == ["pi-garage"]
    assert [device.name for device in attention.unwell] == ["nas"]
    assert [(policy, state.label) for policy, state in attention.announced] == [("servers", "6.1.0-43")]
    assert [rollout.name for rollout in attention.stopped] == ["november"]
    assert devices["web-1"].last_code == "ok"
    assert {device.grade and device.grade["grade"] for device in devices.values()} == {"verified chain"}


def test_another_kernel_is_another_boot() -> None:
    """A version that a log does not have changes it, and each version in its own way."""
    log = recorded("secure-boot")
    assert len({log, with_other_kernel(log, "6.1"), with_other_kernel(log, "6.12")}) == 3
