"""Scratch files of tests are in memory only where there is room for them."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import scratch

GIB = 1 << 30


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with much memory, whose /dev/shm takes everything; tests change it."""
    machine = SimpleNamespace(available=64 * GIB, free=64 * GIB, options=0)
    monkeypatch.setattr(scratch, "_available", lambda: machine.available)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=machine.free))
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_flag=machine.options))
    monkeypatch.setattr(os, "access", lambda _path, _mode: True)
    return machine


def test_much_memory_takes_the_files_of_tests(memory: SimpleNamespace) -> None:
    assert scratch.directory() == Path("/dev/shm")


@pytest.mark.parametrize("limit", ["available", "free"])
def test_little_memory_is_left_to_programs(memory: SimpleNamespace, limit: str) -> None:
    """A file system in memory may promise more than there is: both count."""
    setattr(memory, limit, 1 * GIB)
    assert scratch.directory() == Path("/tmp")


def test_a_memory_that_runs_no_programs_is_not_used(memory: SimpleNamespace) -> None:
    memory.options = os.ST_NOEXEC
    assert scratch.directory() == Path("/tmp")
