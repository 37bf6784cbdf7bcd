"""The root's unit: checks what is mounted, and tells a root to come from one that was refused."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.boot.images.cache import ROOT
from tests.initrd.scene import SHELLS, Scene

pytestmark = pytest.mark.parametrize("shell", SHELLS)

MOUNTED: Final = "clevis-attest-mounted"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A machine whose root volume attestation opened."""
    scene = Scene(tmp_path / "scene")
    text = scene.moved((ROOT / f"initrd/systemd/{MOUNTED}").read_text())
    scene.program(MOUNTED, text.replace("/sysroot", str(scene.root)), "lib")
    scene.volume()
    return scene


def left(scene: Scene) -> set[str]:
    """Assertions of the target."""
    return {path.name for path in scene.run_directory.glob("root-*")}


def test_the_root_that_was_opened_is_checked(shell: str, scene: Scene) -> None:
    """As clevis-attest-root-check does it."""
    scene.mount("254:0")
    assert scene.run(shell, MOUNTED) == 0, scene.output
    assert left(scene) == {"root-checked"}


def test_a_root_that_is_not_mounted_yet_is_checked_later(shell: str, scene: Scene) -> None:
    """One of dracut's mount hooks mounts it: by the units before which it is checked."""
    scene.mount("254:0", "/usr")
    assert scene.run(shell, MOUNTED) == 0, scene.output
    assert left(scene) == {"root-later"}


def test_a_foreign_root_is_neither(shell: str, scene: Scene) -> None:
    """It is unmounted then, but not to come."""
    scene.disk("vdb", "254:32")
    scene.mount("254:32")
    assert scene.run(shell, MOUNTED) == 1
    assert "vdb is not encrypted" in scene.said
    assert left(scene) == set()
    assert scene.closed() == ["closed root"]
