"""The cache of the boot tests: shared by checkouts, and never in anybody's way."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.images import cache


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Give each test a cache of its own."""
    monkeypatch.setattr(cache, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(cache, "_in_use", {})
    yield tmp_path / "cache"
    forget_use()


def forget_use() -> None:
    """Release every entry, as the end of the process does."""
    for lock in cache._in_use.values():
        os.close(lock)
    cache._in_use.clear()


def test_an_entry_is_built_once() -> None:
    """A second caller gets the entry of the first one."""
    built: list[Path] = []

    def build(path: Path) -> None:
        path.write_text("a")
        built.append(path)

    for _ in range(2):
        assert cache.entry("thing", "a", build).read_text() == "a"
    assert len(built) == 1


def test_a_failed_build_leaves_no_entry() -> None:
    """Files of a failing build are no entry, and the next caller builds again."""

    def fails(path: Path) -> None:
        path.write_text("half")
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        cache.entry("thing", "a", fails)
    assert cache.entry("thing", "a", Path.touch).read_text() == ""


def test_the_entry_that_was_used_longest_ago_makes_room(empty_cache: Path) -> None:
    """The cache does not grow with every change."""
    for name in "abc":
        cache.entry("thing", name, Path.touch, keep=2)
        forget_use()
    assert {path.name for path in empty_cache.glob("thing-*")} == {"thing-b", "thing-c"}


def test_an_entry_in_use_stays(empty_cache: Path) -> None:
    """Another checkout that makes its own entries does not remove the images that this one boots."""
    cache.entry("thing", "a", Path.touch, keep=1)
    forget_use()
    with (empty_cache / ".thing-a.used").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        cache.entry("thing", "b", Path.touch, keep=1)
        assert (empty_cache / "thing-a").exists()
    forget_use()
    cache.entry("thing", "b", Path.touch, keep=1)
    assert not (empty_cache / "thing-a").exists()
