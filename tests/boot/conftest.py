"""Every test gets a copy of an enrolled machine and its server; both are made once for all tests of a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.boot.tree import Variant
from tests.boot.world import World


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], World]:
    """An enrolled and approved machine of a variant; to be copied, not used."""
    worlds: dict[Variant, World] = {}

    def get(variant: Variant) -> World:
        if variant not in worlds:
            world = World.new(tmp_path_factory.mktemp("enrolled") / "world", variant)
            world.enroll()
            worlds[variant] = world
        return worlds[variant]

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
