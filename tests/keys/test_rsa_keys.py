"""RSA keys that are lent to tests."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from tests.keys import rsa_keys

_BITS = 1024


def _of_a_process(monkeypatch: pytest.MonkeyPatch, directory: Path) -> list[int]:
    """The moduli of three keys that a new process draws."""
    monkeypatch.setattr(rsa_keys, "_free", defaultdict(list))
    monkeypatch.setattr(rsa_keys, "_had", defaultdict(int))
    monkeypatch.setattr(rsa_keys, "_drawn", [])
    monkeypatch.setattr(rsa_keys, "_shared", [directory])
    keys = [rsa_keys.draw(_BITS) for _ in range(3)]
    assert all(key.key_size == _BITS for key in keys)
    return [key.public_key().public_numbers().n for key in keys]


def test_processes_share_keys_and_machines_of_one_do_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The n-th key of each process is one key; the keys of one process differ."""
    first, second = (_of_a_process(monkeypatch, tmp_path) for _ in range(2))
    assert first == second
    assert len(set(first)) == 3
