"""Every test gets a copy of an enrolled machine and its server; the originals are made once for a whole run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.boot.dracut import world as dracut_world
from tests.boot.images import cache
from tests.boot.images.tree import Variant
from tests.boot.world import World, shared

#: Files that a failed test shows, the last bytes of each.
_LOGS: Final = ("console.log", "server.log", "qemu.log")
_SHOWN: Final = 8000


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Variant], World]:
    """An enrolled and approved machine of a variant; to be copied, not used."""

    def get(variant: Variant) -> World:
        path = shared(tmp_path_factory) / f"enrolled-second-{variant.second}-{variant.suite}"
        return World.at(cache.once(path, lambda new: World.new(new, variant).enroll()), variant)

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


@pytest.fixture
def dracut_machine(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Iterator[World]:
    """A copy of the enrolled machine with dracut's initrd and two disks, for one test; its disks are removed after it."""
    dracut_world.approved(tmp_path_factory).copy(tmp_path / "world")
    yield dracut_world.at(tmp_path / "world")
    for image in tmp_path.glob("world/*.img"):
        image.unlink()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A boot that fails shows what every console, server and QEMU of the test said."""
    report = yield
    arguments = getattr(item, "funcargs", {})
    world = arguments.get("world")
    # A world may be older than the test, and a test may have more machines than its world's.
    directories = [arguments["tmp_path"]] if "tmp_path" in arguments else []
    directories += [world.directory] if world else []
    if report.failed:
        logs = sorted({path for top in directories for name in _LOGS for path in top.rglob(name)})
        report.sections += [(f"the end of {path}", _end_of(path)) for path in logs]
    return report


def _end_of(path: Path) -> str:
    return path.read_bytes()[-_SHOWN:].decode(errors="replace").replace("\x1b", "")
