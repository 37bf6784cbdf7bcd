"""The network step of initramfs-tools' initrd: what the boots do not show, or not so fast."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

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


def test_ip_none_leaves_the_network_down(root: Path) -> None:
    """Somebody who says none means it; the pin does not wait."""
    with guest(root, "ip=none", dhcp=True) as machine:
        machine.raise_network()
        machine.wait_for_network()
        time.sleep(2)
        assert "DOWN" in machine.run("ip -o link show dev eth0")
        assert "hardware address" not in machine.log
