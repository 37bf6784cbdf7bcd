"""Unified kernel images whose PCR 11 a vendor signed with ukify: a new one opens by itself, and nobody approved it.

Secure Boot is on, and PCR 7 is in the selection: PCR 11 alone proves nothing.  PCR 4, which has the whole image, is not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from tests.boot.dracut import system
from tests.boot.dracut.world import PROMPT, approve, at
from tests.boot.hardware.platform import SECURE_PC
from tests.boot.images.signed import SigningKey, make_key, ukify
from tests.boot.world import NAME, REFUSED, ROOT_IS_OPEN, UNLOCKED, World

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2400)]

#: Firmware, option ROMs, Secure Boot, the image as the stub measures it, the cap.
SELECTION: Final = "sha256:0,2,7,11,15"
#: The phase of dracut's initrd when the pin asks.
PHASE: Final = "enter-initrd"


@dataclass
class Vendor:
    """A machine whose policy trusts the vendor's key, and a directory for images."""

    world: World
    key: SigningKey
    directory: Path

    def image(self, name: str, key: SigningKey, phases: str) -> World:
        """The machine with an image of its own command line, signed with *key* for *phases*."""
        path = self.directory / f"{name}.efi"
        built = system.build()
        ukify(path, built.kernel, built.initrd, f"{system.COMMAND_LINE} image={name}", [(key, phases)])
        return replace(self.world, machine=replace(self.world.machine, image=path))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A machine that was approved with the vendor's first image, and opened: so its log shows Secure Boot."""
    directory = tmp_path_factory.mktemp("signed")
    vendor = make_key(directory, "vendor")
    built = system.build()
    image = directory / "first.efi"
    ukify(image, built.kernel, built.initrd, system.COMMAND_LINE, [(vendor, PHASE)])
    approve(directory / "world", SELECTION, image, SECURE_PC, opened=True)
    world = at(directory / "world", image, SECURE_PC)
    world.site.operator("policy", "trust-signer", NAME, str(vendor.public), "--pcrs", "11")
    yield world
    for disk in directory.glob("world/*.img"):
        disk.unlink()


@pytest.fixture
def vendor(world: World, tmp_path: Path) -> Vendor:
    """The vendor of the machine's image."""
    keys = world.directory.parent
    return Vendor(world, SigningKey(keys / "vendor.key", keys / "vendor.pem"), tmp_path)


def test_uki_the_next_image_of_the_vendor_opens_by_itself(vendor: Vendor) -> None:
    """Another PCR 11 than the approved one; the audit record names the signer, and nobody was asked."""
    with vendor.world.site, vendor.image("second", vendor.key, PHASE).boot() as console:
        console.wait_for(UNLOCKED)
        console.wait_for(ROOT_IS_OPEN)
    [newest] = [record for record in vendor.world.site.audit(NAME) if record["event"] == "unlock"][:1]
    assert newest["verdict"] == "permitted"
    assert "vendor" in json.dumps(newest)


@pytest.mark.parametrize(
    ("signer", "phases", "code", "said"),
    [
        ("foreign", PHASE, "statement-untrusted", "not signed with a key that the policy trusts"),
        ("vendor", f"{PHASE}:leave-initrd", "statement-mismatch", "of another phase of the boot"),
    ],
)
def test_uki_an_image_with_another_signature_is_refused_and_says_why(
    vendor: Vendor, signer: str, phases: str, code: str, said: str
) -> None:
    """Somebody else's key, and the vendor's for a phase that the initrd is not in: the prompt has the reason."""
    key = vendor.key if signer == "vendor" else make_key(vendor.directory, "foreign")
    with vendor.world.site, vendor.image(signer, key, phases).boot() as console:
        console.wait_for(PROMPT)
        refused = console.wait_for(REFUSED)
        assert refused[1] == code
        assert said in refused[2]
