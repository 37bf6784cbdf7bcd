"""A site of the command line, made once for the tests of a module and copied for each of them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.attester import Attester
from tests.cli.transcript import environment, run


@contextlib.contextmanager
def made(directory: Path) -> Iterator[None]:
    """Make a state with the policy ``web``, which has a state, and the files ``ak``,
    ``values`` and ``sums``; the block may add to it.

    *directory* is the current one until the block ends.
    """
    (directory / "ak").write_bytes(Attester().ak_public)
    (directory / "values").write_text(json.dumps({"0": "11" * 32, "7": "22" * 32}))
    (directory / "sums").write_text(f"{'55' * 32}  /usr/bin/true\n")
    with contextlib.chdir(directory), environment():
        assert run("init")[2] == 0
        assert run("policy", "create", "web", "--selection", "sha256:0,7")[2] == 0
        assert run("policy", "record", "web", "--file", "values", "--label", "first")[2] == 0
        yield


@contextlib.contextmanager
def copied(site: Path, directory: Path, **variables: str) -> Iterator[None]:
    """Copy *site* to *directory*, the current one until the block ends, with *variables* in the environment."""
    shutil.copytree(site, directory, dirs_exist_ok=True)
    with contextlib.chdir(directory), environment(**variables):
        yield
