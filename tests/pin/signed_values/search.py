"""The pin's search for signed values, below a directory that stands for the machine's root."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.pin.machine import PIN

#: Five seconds in an initrd; on a busy machine a search may take more, and finds less then.
_SCRIPT: Final = """
. "$0/clevis-attest-functions"
signed=$(</dev/stdin)
. <(printf '%s\\n' "${signed/SIGNED_SECONDS=5/SIGNED_SECONDS=100}")
[[ $SIGNED_SECONDS = 100 ]] || exit 2
attest_signed_begin
selection=sha256:7,11
attest_signed_end
printf %s "$signed_values"
"""


@dataclass(frozen=True)
class Found:
    """A member ``signed_values``, and what the log says."""

    members: dict[str, Any]
    notes: list[str]

    @property
    def statements(self) -> list[str]:
        """The statements, in the order in which they are sent."""
        return list(self.members.get("statements", []))


def search(root: Path, path: str = "/usr/sbin:/usr/bin:/sbin:/bin") -> Found:
    """Search below *root* with the programs of *path*; a search that does not end in time, or fails, fails the test."""
    done = subprocess.run(
        ["/bin/bash", "-uc", _SCRIPT, str(PIN / "lib")],
        env={"PATH": path, "CLEVIS_ATTEST_ROOT": str(root)},
        input=(PIN / "lib/clevis-attest-signed-functions").read_text(),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    notes = [line.removeprefix("tang-attest: ") for line in done.stderr.splitlines()]
    if not done.stdout:
        return Found({}, notes)
    request = json.loads('{"attest":{"nonce":"n"' + done.stdout + "}}")
    members = request["attest"]["signed_values"]
    assert members
    assert members.keys() <= {"pcrsig", "statements"}
    return Found(members, notes)


def jws(text: str, size: int = 0) -> str:
    """Return something of a compact JWS's form with *text* in it, of *size* characters or a few."""
    return f"eyJhbGciOiJFUzI1NiJ9.{text.encode().hex()}.".ljust(size - 1, "A") + "A"


def write(root: Path, name: str, contents: str | bytes) -> Path:
    """Write a file below *root*; a statement gets its end of line."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents if isinstance(contents, bytes) else f"{contents}\n".encode())
    return path
