"""Every test gets a copy of an enrolled machine and its server; the originals are made once for a whole run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.boot.tree import Variant
from tests.boot.world import World


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], World]:
    """An enrolled and approved machine of a variant; to be copied, not used."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent  # which the workers share

    def get(variant: Variant) -> World:
        name = f"enrolled-second-{variant.second}"
        with (directory / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (directory / name / "done").exists():
                return World.at(directory / name, variant)
            world = World.new(directory / name, variant)
            world.enroll()
            (directory / name / "done").touch()
            return world

    return get


@pytest.fixture
def new_world(enrolled: Callable[[Variant], World], tmp_path: Path) -> Iterator[Callable[[Variant], World]]:
    """Copies of enrolled worlds for one test; their disks are removed after it."""
    yield lambda variant: enrolled(variant).copy(tmp_path / "world")
    for image in tmp_path.glob("world/*.img"):
        image.unlink()


@pytest.fixture
def world(new_world: Callable[[Variant], World]) -> World:
    """An enrolled machine with one disk, and its server."""
    return new_world(Variant())
