"""A disk that somebody plugs in beside the machine's own: a file system of theirs under the name of the root's."""

from __future__ import annotations

import itertools
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.boot.hardware.qmp import Qmp
from tests.boot.test_attacks import file_system

#: Line that its init prints.
FOREIGN: Final = "foreign-init: "
_INIT: Final = f"""#!/bin/sh
exec >/dev/console
cd /dev/mapper && echo "{FOREIGN}" *
while :; do read -r _; done </dev/console
"""


def foreign_disk(directory: Path, uuid: str) -> Path:
    """An unencrypted ext4 file system with *uuid*, and in it an init that says which volumes it sees."""
    files = {"etc/os-release": "ID=foreign\n", "usr/local/sbin/first-init": _INIT, "sbin/init": _INIT}
    image = file_system(directory, "foreign", files, {}, runnable=True)
    subprocess.run(["tune2fs", "-U", uuid, str(image)], check=True, capture_output=True)
    return image


class ChangeEvents:
    """QEMU changes the size of a disk again and again, so that udev looks at it each time; a context manager."""

    def __init__(self, path: Path, drive: str, image: Path) -> None:
        self._path, self._drive, self._size = path, drive, image.stat().st_size
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def options(self) -> tuple[str, ...]:
        """For QEMU."""
        return ("-qmp", f"unix:{self._path},server=on,wait=off")

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        """When QEMU runs."""
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        with suppress(OSError), Qmp(self._path) as qmp:
            for more in itertools.cycle((1, 0)):
                if self._ended.wait(0.1):
                    return
                qmp.execute("block_resize", device=self._drive, size=self._size + more * 65536)
