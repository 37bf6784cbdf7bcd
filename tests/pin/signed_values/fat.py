"""FAT partitions made with mtools, and machines that have them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

#: Sizes (in sectors of 512 bytes) and sectors of a cluster, by the width of an entry of the file allocation table.
SHAPES: Final = {12: (4096, 8), 16: (65536, 4), 32: (160000, 2)}


def make(image: Path, bits: int, files: Mapping[str, bytes]) -> None:
    """Make *image*: a file system of that kind with *files* in it, each at its path."""
    sectors, cluster = SHAPES[bits]
    with image.open("wb") as file:
        file.truncate(sectors * 512)
    kind = ["-F"] if bits == 32 else []
    _mtools(image, "mformat", *kind, "-T", str(sectors), "-h", "16", "-s", "32", "-c", str(cluster), "::")
    made: set[str] = set()
    for path, contents in files.items():
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            if directory not in made:
                _mtools(image, "mmd", f"::/{directory}")
                made.add(directory)
        _mtools(image, "mcopy", "-", f"::/{path}", stdin=contents)


def remove(image: Path, path: str) -> None:
    """Remove a file."""
    _mtools(image, "mdel", f"::/{path}")


def add(image: Path, path: str, contents: bytes) -> None:
    """Add a file to a directory that is there."""
    _mtools(image, "mcopy", "-", f"::/{path}", stdin=contents)


def plug_in(root: Path, name: str, image: Path, *, initrd: bool = True) -> None:
    """Let *image* be the partition *name* of the machine below *root*, which runs its initrd."""
    entry = root / "sys/class/block" / name
    entry.mkdir(parents=True)
    (entry / "partition").write_text("1\n")
    (entry / "size").write_text(f"{image.stat().st_size // 512}\n")
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev" / name).symlink_to(image)
    if initrd:
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc/initrd-release").touch()


def _mtools(image: Path, command: str, *arguments: str, stdin: bytes | None = None) -> None:
    environment = {**os.environ, "MTOOLSRC": os.devnull, "MTOOLS_SKIP_CHECK": "1"}
    done = subprocess.run(
        [command, "-i", str(image), *arguments],
        input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
