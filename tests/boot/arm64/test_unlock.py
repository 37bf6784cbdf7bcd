"""Machines of arm64 whose root opens by itself, or does not: U-Boot with a unified image, EDK II with Debian 12's GRUB."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.boot.arm64 import chain
from tests.boot.arm64.chain import CHANGES, EDK2_GRUB, UBOOT, Chain
from tests.boot.hardware.cap import cap_texts, text
from tests.boot.hardware.machine import PATIENCE, Console
from tests.boot.images import cache
from tests.boot.images.tree import ROOT_UUID
from tests.boot.world import NAME, PROMPT, REFUSED, ROOT_IS_OPEN, UNLOCKED, World, open_by_passphrase, shared

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

#: Each chain with each part that it measures.
MEASURED = [
    pytest.param(chain_, part, id=f"{chain_.name} {part}")
    for chain_ in (UBOOT, EDK2_GRUB)
    for part in chain_.pcrs
]
each_chain = pytest.mark.parametrize("chain_", [UBOOT, EDK2_GRUB], ids=lambda chain_: chain_.name)


@pytest.fixture
def enrolled(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[Callable[[Chain], World]]:
    """Copies of enrolled and approved machines for one test; the originals are made once for a whole run."""

    def get(chain_: Chain) -> World:
        directory = shared(tmp_path_factory) / "arm64"
        directory.mkdir(exist_ok=True)
        partition = cache.once(
            directory / f"{chain_.name}-partition", lambda new: chain_.make_partition(new, chain.system())
        )
        hardware = {"platform": chain_.platform, "image": partition}

        def enroll(new: Path) -> None:
            World.new(new, chain.VARIANT, **hardware).enroll(
                chain_.selection, chain_.first_refusal, chain_.accepted
            )

        original = cache.once(directory / chain_.name, enroll)
        return World.at(original, chain.VARIANT, **hardware).copy(tmp_path / "world")

    yield get
    for image in tmp_path.glob("world/*.img"):
        image.unlink()


def changed(chain_: Chain, part: str, directory: Path) -> Path:
    """Make a partition whose system differs in one *part*."""
    partition = directory / "changed"
    chain_.make_partition(partition, CHANGES[part](chain.system(), directory))
    return partition


@each_chain
def test_an_approved_machine_of_arm64_boots_to_its_login_prompt_by_itself(
    enrolled: Callable[[Chain], World], chain_: Chain
) -> None:
    """Nobody types anything, and the audit record has the release of the key."""
    world = enrolled(chain_)
    with world.site, world.boot(systemd=True) as console:
        console.wait_for(UNLOCKED)
        console.wait_for(r"guest login:", 2 * PATIENCE)
        newest = next(record for record in world.site.audit(NAME) if record["event"] == "unlock")
    assert newest["verdict"] == "permitted"


@pytest.mark.parametrize(("chain_", "part"), MEASURED)
def test_a_changed_part_of_an_arm64_boot_is_refused_and_the_passphrase_opens(
    enrolled: Callable[[Chain], World], chain_: Chain, part: str, tmp_path: Path
) -> None:
    """The prompt is there, one line names the PCRs, and the boot by passphrase is capped as such."""
    world = enrolled(chain_)
    with world.site, world.boot(image=changed(chain_, part, tmp_path)) as console:
        console.wait_for(PROMPT)
        refused = console.wait_for(REFUSED)
        assert refused[1] == "pcr-mismatch"
        for pcr in chain_.pcrs[part]:
            assert f"PCR {pcr}:" in refused[2]
        assert f"tang-attest approve {NAME}" in refused[2]
        open_by_passphrase(console)
        assert cap_texts(console) == [text({ROOT_UUID: "passphrase"})]


@each_chain
def test_an_approval_while_a_machine_of_arm64_waits_opens_it(
    enrolled: Callable[[Chain], World], chain_: Chain, tmp_path: Path
) -> None:
    """The refused machine stays at its prompt, asks again, and needs nobody beside it."""
    world = enrolled(chain_)
    with world.site, world.boot(image=changed(chain_, "command line", tmp_path)) as console:
        console.wait_for(PROMPT)
        assert console.wait_for(REFUSED)[1] == "pcr-mismatch"
        world.site.approve(NAME, *chain_.accepted)
        console.wait_for(UNLOCKED)
        console.wait_for(ROOT_IS_OPEN)
        assert cap_texts(console) == [text({ROOT_UUID: "attested"})]
        assert "changed=yes" in console.shell("cat /proc/cmdline")


#: The network, the event log and a root that can be written to, in the system that first-init left bare.
READY_TO_ENROLL = (
    "ip link set eth0 up; ip address add 192.0.2.15/24 dev eth0; sleep 1;"
    " mount -t securityfs none /sys/kernel/security; mount -o remount,rw /"
)


def test_a_chain_that_measures_no_initrd_is_refused_at_enrollment(tmp_path: Path) -> None:
    """The machine is told the part; nothing is enrolled until the operator accepts the gap, which stays listed."""
    partition = tmp_path / "partition"
    EDK2_GRUB.make_partition(partition, chain.system())
    world = World.new(tmp_path / "world", chain.VARIANT, platform=EDK2_GRUB.platform, image=partition)

    def enroll(console: Console, *options: str) -> str:
        terms = ("--name", NAME, "--record", "--selection", EDK2_GRUB.selection, "--allow-unverified-ek")
        token = json.loads(world.site.operator("token", "create", *terms, *options, "--json"))["token"]
        console.shell(f"echo {token} >/tmp/token")
        command = f"clevis-attest-enroll -y --url {world.site.url} --name {NAME} --token-file /tmp/token"
        return console.shell(f"{command}; echo status $?")

    with world.site, world.boot() as console:
        console.wait_for(PROMPT)
        open_by_passphrase(console)
        console.shell(READY_TO_ENROLL)
        said = enroll(console)
        assert "(uncovered)" in said
        assert "the initrd" in said
        assert "status 0" not in said
        assert json.loads(world.site.operator("device", "list", "--json")) == []
        assert "status 0" in enroll(console, *EDK2_GRUB.accepted)
        [device] = json.loads(world.site.operator("device", "list", "--json"))
        assert device["uncovered"] == device["accepted_uncovered"] == ["initrd"]
    world.root_disk.unlink()
