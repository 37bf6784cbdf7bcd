"""Print the part of requirements.lock that the program needs when it runs, hashes included.

The installed packages decide that part: run this with .venv's Python.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parent.parent

#: A distribution and the extra of it that is wanted ("" is none).
_Wanted = tuple[NormalizedName, str]


def _wanted(requirement: Requirement) -> set[_Wanted]:
    name = canonicalize_name(requirement.name)
    return {(name, extra) for extra in ("", *requirement.extras)}


def closure(declared: list[str]) -> set[NormalizedName]:
    """Return the distributions that *declared* requirements resolve to on this machine."""
    pending = {item for line in declared for item in _wanted(Requirement(line))}
    seen: set[_Wanted] = set()
    while pending:
        name, extra = pending.pop()
        seen.add((name, extra))
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                pending |= _wanted(requirement) - seen
    return {name for name, _ in seen}


def runtime_lock(lock: str, names: set[NormalizedName]) -> str:
    """Return the blocks of *lock* for *names*; every name has to have one."""
    blocks = re.findall(r"^([A-Za-z0-9._-]+)(==.*\n(?:[ #].*\n)*)", lock, re.MULTILINE)
    kept = {canonicalize_name(name): f"{name}{rest}" for name, rest in blocks}
    missing = names - kept.keys()
    if missing:
        raise SystemExit(
            f"runtime_lock: requirements.lock lacks {', '.join(sorted(missing))}; run: make lock"
        )
    return "".join(kept[name] for name in sorted(names))


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sys.stdout.write(runtime_lock((ROOT / "requirements.lock").read_text(), closure(project["dependencies"])))
