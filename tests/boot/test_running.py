"""Machines that are verified while they run: what becomes of one that changes, and of the one beside it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import pytest

from tests.boot.hardware.machine import PATIENCE, Console, Machine
from tests.boot.images import disk
from tests.boot.images.tree import ROOT_UUID
from tests.boot.site import Site
from tests.boot.world import NAME, PROMPT, REFUSED, ROOT_IS_OPEN, UNLOCKED, World, open_by_passphrase

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

OTHER: Final = "pi-c"
#: Under emulation a round may take longer than three intervals; nobody shall be called unreachable for that.
WATCH: Final = ("--every", "5s", "--misses", "60", "--on-failure", "suspend")


def another_machine(world: World) -> Machine:
    """A machine like the world's, under its policy, with a TPM and a disk of its own; the server runs."""
    image = world.directory / f"{OTHER}.img"
    disk.copy(disk.root_image(world.built.root, world.built.name, ROOT_UUID), image)
    machine = Machine(world.directory / OTHER, world.built.kernel, world.built.initrd, [image], world.network)
    terms = ("--name", OTHER, "--policy", NAME, "--allow-unverified-ek")
    token = json.loads(world.site.operator("token", "create", *terms, "--json"))["token"]
    with machine.tpm as tpm:
        world.site.bind(machine, tpm, OTHER, image, token)
    return machine


def known(site: Site, name: str) -> dict[str, Any]:
    """Row of a machine in the server's list."""
    devices: list[dict[str, Any]] = json.loads(site.operator("device", "list", "--json"))
    return next(device for device in devices if device["name"] == name)


def outcomes(site: Site, name: str) -> list[str]:
    """Changes of its verification, oldest first."""
    changes = json.loads(site.operator("device", "history", name, "--json"))
    return [change["outcome"] for change in reversed(changes)]


def until(condition: Callable[[], bool], *consoles: Console) -> None:
    """Wait for what the server finds out; if it does not, show what the consoles said."""
    deadline = time.monotonic() + 2 * PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "\n---\n".join(console.said[-2000:] for console in consoles)
        time.sleep(2)


def run_agent(site: Site, name: str, console: Console) -> None:
    """Start the agent on a machine that opened by itself; its lines go to the console."""
    console.wait_for(UNLOCKED)
    console.wait_for(ROOT_IS_OPEN)
    console.shell("ip link set eth0 up; ip address add 192.0.2.15/24 dev eth0; sleep 1")
    [kid] = known(site, name)["kids"]
    console.shell(rf"printf 'url=%s\nkid=%s\n' {site.url} {kid} >/tmp/agent.conf")
    console.shell("(clevis-attest-agent --config /tmp/agent.conf </dev/null &)")


def test_a_machine_that_changes_while_it_runs_is_suspended(world: World) -> None:
    """It needs its passphrase from then on, though it boots what is approved; the machine beside it does not."""
    site = world.site
    with site:
        other = another_machine(world)
        with world.boot() as console, other.boot() as changing:
            site.operator("policy", "require-rounds", NAME, "on", *WATCH)
            run_agent(site, NAME, console)
            run_agent(site, OTHER, changing)
            until(lambda: known(site, NAME)["outcome"] == "verified", console, changing)
            until(lambda: known(site, OTHER)["outcome"] == "verified", console, changing)
            changing.shell(f"tpm2 pcrextend 4:sha256={'22' * 32}")
            until(lambda: known(site, OTHER)["suspended_at"] is not None, console, changing)
            suspended = known(site, OTHER)
            since = datetime.fromisoformat(suspended["suspended_at"])
            until(lambda: datetime.fromisoformat(known(site, NAME)["verified_at"]) > since, console, changing)

        assert (suspended["outcome"], suspended["outcome_code"]) == ("refused", "pcr-mismatch")
        [record] = [record for record in site.audit(OTHER) if record["event"] == "device suspend"]
        assert (record["actor"], record["code"]) == ("server", "pcr-mismatch")
        assert "PCR 4" in record["details"]["reason"]
        assert outcomes(site, OTHER) == ["verified", "refused"]
        assert outcomes(site, NAME) == ["verified"]
        assert known(site, NAME)["suspended_at"] is None

        with world.boot() as console, other.boot() as changed:
            changed.wait_for(PROMPT)
            assert changed.wait_for(REFUSED)[1] == "device-suspended"
            open_by_passphrase(changed)
            console.wait_for(UNLOCKED)
            console.wait_for(ROOT_IS_OPEN)
