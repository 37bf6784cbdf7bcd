"""Machines of arm64 whose root opens by itself, or does not: U-Boot with a unified image, EDK II with Debian 12's GRUB."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.boot.arm64 import chain
from tests.boot.arm64.chain import CHANGES, EDK2_GRUB, UBOOT, Chain
from tests.boot.hardware.cap import cap_texts, text
from tests.boot.hardware.machine import PATIENCE
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
