"""Check the protocol's model with spin, and see that each of its mutants breaks the property it is aimed at.

`make model` runs it.  model/README.md says which question each property answers.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Final

import click

MODEL: Final = Path(__file__).parent.parent / "model"
#: Seconds and mebibytes for one search.  On an idle processor the largest takes half a minute and 400 MiB.
_SEARCH_S: Final = 600
_MEMORY_MIB: Final = 2000


@dataclass(frozen=True)
class Search:
    """One exhaustive search: a file of the model, its mutant, and the only property to check (aim 0: all of them)."""

    file: str
    mutant: str = ""
    aim: int = 0

    @property
    def name(self) -> str:
        """The line's title."""
        return f"{self.file}, {f'without {self.mutant}' if self.mutant else 'as specified'}"

    @property
    def definitions(self) -> list[str]:
        """Arguments of spin."""
        mutant = [f"-DM_{self.mutant}"] if self.mutant else []
        return [*mutant, f"-DPROPERTY={self.aim}"]


@dataclass(frozen=True)
class Result:
    """States that were stored, and true when a property broke."""

    states: int
    broken: bool
    seconds: float


class ModelError(Exception):
    """spin, the compiler or the search did not end as it has to."""


#: The model itself first.  NEVER is no check: it shows that an unlock is reached at all.
SEARCHES: Final = (
    Search("safety"),
    Search("liveness"),
    Search("safety", "NEVER"),
    Search("safety", "SIGNATURE", 1),
    Search("safety", "X", 2),
    Search("safety", "X", 3),
    Search("safety", "PCRS", 4),
    Search("safety", "NO_CAP", 5),
    Search("safety", "LATE_CAP", 5),
    Search("safety", "REPLAY", 6),
    Search("safety", "RACE", 6),
    Search("safety", "PREDICTABLE", 6),
    Search("safety", "EARLIER_BOOT", 7),
    Search("safety", "REMOVAL", 8),
    Search("safety", "SUSPENSION", 9),
    Search("safety", "RETIREMENT", 10),
    Search("liveness", "STRICT_CLOCK"),
    Search("liveness", "NO_RETRY"),
)


def run(command: Sequence[str], directory: Path) -> str:
    """Return the output of *command*.  Raises :class:`ModelError` when it fails or takes too long."""
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, check=True, timeout=_SEARCH_S
        )
    except subprocess.CalledProcessError as error:
        raise ModelError(f"{command[0]} failed: {error.stdout}{error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{command[0]} took more than {_SEARCH_S} s") from error
    return done.stdout


def search(it: Search, optimization: str = "-O2") -> Result:
    """Search all states of *it*, with a search compiled with *optimization*.

    Raises :class:`ModelError` unless the search was complete or found an error.
    """
    live = it.file == "liveness"
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tang-attest-model-") as name:
        directory = Path(name)
        for file in MODEL.glob("*.pml"):
            (directory / file.name).write_bytes(file.read_bytes())
        # Statements are not merged (-o3): with a merged array index spin 6.5.2 writes beside the array on its way back.
        run(["spin", "-o3", *it.definitions, "-a", f"{it.file}.pml"], directory)
        kind = ["-DNFAIR=3"] if live else ["-DSAFETY"]
        run(["cc", optimization, "-w", *kind, f"-DMEMLIM={_MEMORY_MIB}", "-o", "pan", "pan.c"], directory)
        output = run(["./pan", *(["-a", "-f"] if live else []), "-m100000", "-w22"], directory)
    return Result(*verdict(output), time.monotonic() - started)


def verdict(output: str) -> tuple[int, bool]:
    """Return the states stored and whether a property broke.

    Raises :class:`ModelError` when the search says that it is not exhaustive, or says nothing.
    """
    errors, states = re.search(r"errors: (\d+)", output), re.search(r"(\d+) states, stored", output)
    if errors is None or states is None:
        raise ModelError(f"the search gave no result: {output}")
    broken = int(errors[1]) > 0
    if not broken and re.search("max search depth too small|Search not completed|out of memory", output):
        raise ModelError(f"the search is not exhaustive: {output}")
    return int(states[1]), broken


def report(searches: Iterable[Search], results: Iterable[Result]) -> bool:
    """Print a line for each search as it ends; true when each ended as it has to."""
    good = True
    for it, result in zip(searches, results, strict=True):
        expected = result.broken == bool(it.mutant)
        told = "breaks" if result.broken else "holds"
        aim = f" property {it.aim}" if it.aim else ""
        click.echo(
            f"{it.name:38} {told}{aim:13} {result.states:>10,} states {result.seconds:6.1f} s"
            f"{'' if expected else '   UNEXPECTED'}"
        )
        good = good and expected
    return good


def main() -> int:
    """Check everything; 0 when the model holds and each mutant breaks its property."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        try:
            good = report(SEARCHES, pool.map(search, SEARCHES))
        except (ModelError, OSError) as error:
            click.echo(f"make model: {error}", err=True)
            return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
