"""One Nix store for all tests of a process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nix.nix import Nix
from tests.pin.conftest import machine, make_machine, name, run_machine, server

__all__ = ["machine", "make_machine", "name", "run_machine", "server"]


@pytest.fixture(scope="session")
def nix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nix]:
    """Nix with a store of its own."""
    directory = tmp_path_factory.mktemp("nix")
    yield Nix(directory)
    # Nix makes its store read-only.
    for path in [directory, *directory.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(directory)


def units_directory(directory: Path, units: dict[str, str]) -> Path:
    """Unit files below *directory*."""
    for unit, text in units.items():
        path = directory / unit
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory
