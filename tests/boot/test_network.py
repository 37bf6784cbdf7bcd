"""The network step of initramfs-tools' initrd: what the boots do not show, or not so fast."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.boot.images.base import suites
from tests.boot.images.tree import Variant, build
from tests.boot.network.namespace import ROUTER, ROUTER_6, guest, unpack

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of the initrd of the boots."""
    return unpack(build(Variant()), tmp_path)


def test_a_network_that_has_only_ipv6_is_a_network(root: Path) -> None:
    """The kernel makes an address of the router's advertisement; the pin waits for no DHCP."""
    with guest(root, "", prefix="2001:db8::/64") as machine:
        machine.raise_network()
        machine.wait_for_network()
        assert "inet6 2001:db8::" in machine.run("ip -6 address show dev eth0 scope global")
        assert machine.fetch(f"[{ROUTER_6}]") == "hello\n"
        assert machine.console == ""


def test_a_cable_that_comes_late_costs_no_second_request(root: Path) -> None:
    """An address is asked for when the link is there: a request before that is lost, and costs ten seconds."""
    with guest(root, "", dhcp=True) as machine:
        machine.plug("down")
        machine.raise_network()
        time.sleep(3)
        assert "hardware address" not in machine.log
        machine.plug("up")
        machine.wait_for_network()
        assert "no response" not in machine.log
        assert f"nameserver {ROUTER}\n" in (root / "etc/resolv.conf").read_text()
        assert machine.fetch(ROUTER) == "hello\n"
        assert machine.console == ""


def test_a_static_address_on_the_command_line_is_used(root: Path) -> None:
    """The kernel's long form of ip=; the router, which would give another address, is not asked."""
    with guest(root, f"ip=192.0.2.77::{ROUTER}:255.255.255.0:guest:eth0:off", dhcp=True) as machine:
        machine.raise_network()
        machine.wait_for_network()
        assert "inet 192.0.2.77/24" in machine.run("ip -4 address show dev eth0")
        assert machine.fetch(ROUTER) == "hello\n"


def test_a_network_without_an_answer_is_named_and_does_not_hold_the_pin_for_ever(root: Path) -> None:
    """After 20 seconds the console names the card, and the pin may try; the step goes on asking."""
    with guest(root, "") as machine:
        machine.raise_network()
        machine.wait_for_network()
        assert "tang-attest: no network yet: no address for eth0" in machine.console
        assert "no response" in machine.log


#: The part of init that follows the open root, and the script before it; the root is as it should be.
_AFTER_THE_ROOT = """
read -r starttime _ </proc/uptime
export BOOT=local rootmnt=/root IP={ip} DEVICE= BOOTIF= starttime=${{starttime%.*}} quiet=y
. /scripts/functions
sed -n '/^local_bottom$/,/^maybe_break bottom/p' /init | sed '1d;$d' >/rest
run_scripts /scripts/local-bottom
. /rest
"""


@pytest.mark.parametrize("ip", ["dhcp", ":::::eth7:dhcp", "192.0.2.77::192.0.2.1:255.255.255.0::eth7:off"])
@pytest.mark.parametrize("suite", suites())
def test_an_open_root_does_not_wait_for_a_silent_network(tmp_path: Path, suite: str, ip: str) -> None:
    """Debian 13's init does ip= after the scripts of local-bottom, for minutes; the pin has tried it in vain by then."""
    root = unpack(build(Variant(suite=suite)), tmp_path)
    (root / "usr/lib/clevis-attest/clevis-attest-root-check").write_text("#!/bin/sh\n")
    (root / "after").write_text(_AFTER_THE_ROOT.format(ip=ip))
    with guest(root, f"ip={ip}") as machine:
        machine.raise_network()
        begun = time.monotonic()
        machine.run("timeout 110 sh /after")
        assert time.monotonic() - begun < 60


def test_ip_none_leaves_the_network_down(root: Path) -> None:
    """Somebody who says none means it; the pin does not wait."""
    with guest(root, "ip=none", dhcp=True) as machine:
        machine.raise_network()
        machine.wait_for_network()
        time.sleep(2)
        assert "DOWN" in machine.run("ip -o link show dev eth0")
        assert "hardware address" not in machine.log
