"""``make fuzz``: every target for some minutes, one after the other; what they learn is kept in build/fuzz."""

from __future__ import annotations

import argparse
import re
import sys

from tests.fuzz.run import NAMES, PREFIX, ROOT, Fuzzing

BUILD = ROOT / "build/fuzz"
#: A line of libFuzzer's: number of inputs, what happened, edges, features, and the rest.
_LINE = re.compile(r"#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+)")
#: Lines of progress that people see.
_SHOWN = {"INITED", "pulse", "RELOAD", "DONE"}


def main() -> int:
    """The number of targets in which something was found, at most 1."""
    arguments = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    arguments.add_argument("--seconds", type=int, default=180, help="for each target")
    arguments.add_argument("--target", choices=NAMES, action="append", help="all by default")
    chosen = arguments.parse_args()
    failed = [name for name in chosen.target or NAMES if not fuzz(name, chosen.seconds)]
    for name in failed:
        print(f"fuzz: {name} failed; see {BUILD / name}.log. To run what failed once more:", file=sys.stderr)
        for path in Fuzzing(PREFIX + name, BUILD / name, BUILD / "findings" / name).found():
            print(f"  .venv/bin/python -m tests.fuzz.one {PREFIX}{name} {path}", file=sys.stderr)
    return bool(failed)


def fuzz(name: str, seconds: int) -> bool:
    """One target for *seconds*; whether nothing was found."""
    fuzzing = Fuzzing(PREFIX + name, BUILD / name, BUILD / "findings" / name)
    print(f"fuzz: {name}, {seconds} s", flush=True)
    process = fuzzing.start(f"-max_total_time={seconds}", "-print_final_stats=1")
    assert process.stdout is not None
    with (BUILD / f"{name}.log").open("w") as log:
        for line in process.stdout:
            log.write(line)
            log.flush()
            if (match := _LINE.match(line)) and match[2] in _SHOWN:
                print(f"  {int(match[1]):>9,} inputs, {match[3]} edges, {match[4]} features", flush=True)
    return process.wait() == 0


if __name__ == "__main__":
    sys.exit(main())
