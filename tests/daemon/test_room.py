"""The number of workers that fit on a machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tang_attest.config import Settings
from tang_attest.daemon import room
from tang_attest.server.serve import count_workers

MB = 2**20


def limited(directory: Path, group: str, limits: dict[str, str]) -> int:
    """Return the usable memory in control group *group*; *limits* are contents of ``memory.max`` by group."""
    (directory / "self").mkdir()
    (directory / "self/cgroup").write_text(f"1:name=systemd:/old\n0::{group}\n")
    groups = directory / "groups"
    (groups / group.strip("/")).mkdir(parents=True)
    for name, limit in limits.items():
        (groups / name / "memory.max").write_text(f"{limit}\n")
    return room.usable_memory(directory, groups)


@pytest.mark.parametrize(
    ("group", "limits"),
    [
        ("/system.slice/tang-attest.service", {"system.slice/tang-attest.service": str(5 * MB)}),
        ("/system.slice/a.service", {"system.slice/a.service": "max", "system.slice": str(5 * MB)}),
        ("/a/b", {"a/b": str(9 * MB), "a": str(5 * MB), "": "max"}),
        ("/", {"": str(5 * MB)}),
    ],
)
def test_a_limit_of_a_control_group_counts(tmp_path: Path, group: str, limits: dict[str, str]) -> None:
    """systemd limits the service itself, a container its root; the smallest limit counts."""
    assert limited(tmp_path, group, limits) == 5 * MB


@pytest.mark.parametrize("limit", ["max", "", "many", "-1"])
def test_without_a_limit_the_machines_memory_counts(tmp_path: Path, limit: str) -> None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert limited(tmp_path, "/a", {"a": limit}) == machine
    assert room.usable_memory(tmp_path / "none", tmp_path / "none") == machine


@pytest.mark.parametrize(
    ("processors", "memory", "workers"),
    [
        (2, 8192 * MB, 2),
        (4, 1024 * MB, 2),  # the Debian unit's MemoryMax
        (8, 8192 * MB, 8),
        (4, 512 * MB, 1),
        (4, 100 * MB, 1),
        (1, 8192 * MB, 1),
        (256, 1024 * 1024 * MB, 64),
    ],
)
def test_each_processor_and_400_mb_have_a_worker(
    monkeypatch: pytest.MonkeyPatch, processors: int, memory: int, workers: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(processors)))
    monkeypatch.setattr(room, "usable_memory", lambda: memory)
    assert room.fitting_workers() == workers


@pytest.mark.parametrize(
    ("settings", "workers"),
    [
        ({}, 4),
        ({"workers": 1}, 1),
        ({"workers": 9}, 9),
        ({"server_tpm": "swtpm:port=1"}, 1),
        ({"server_tpm": "device:/dev/tpm0"}, 1),
        ({"server_tpm": "device:/dev/tpmrm0"}, 4),
        ({"metrics_listen": "127.0.0.1:9750"}, 4),
        ({"metrics_listen": "127.0.0.1:0"}, 4),
        ({"metrics_listen": "127.0.0.1:65534"}, 2),
    ],
)
def test_without_a_number_the_fitting_workers_start(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], workers: int
) -> None:
    """A TPM for one process has one worker, and each worker needs a port for its metrics."""
    monkeypatch.setattr("tang_attest.server.serve.fitting_workers", lambda: 4)
    assert count_workers(Settings(**settings)) == workers
