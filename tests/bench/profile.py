"""``python -m tests.bench.profile``: what a server's processor time goes into while machines unlock.

py-spy looks a few hundred times a second at what holds the interpreter, from outside; what it sees is shared out
among the parts of an unlock.  Work of OpenSSL and SQLite outside the interpreter is not seen, and waiting
is not counted.  Needs root, or ptrace_scope=0.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.load import servers
from tests.bench.load.attester import SELECTION
from tests.bench.load.generator import CONCURRENCY, LoadGenerator
from tests.bench.workplace import workplace

_PY_SPY: Final = Path(sys.executable).parent / "py-spy"
_RATE: Final = 400

#: A stack belongs to the first part that one of its frames matches.
_PARTS: Final = (
    ("the log", r"structlog|tang_attest/log\.py"),
    ("checking the quote", r"verify_quote"),
    ("the exchange, but for OpenSSL", r"protocol/exchange\.py"),
    ("unsealing the key", r"open_exchange"),
    ("the appraisal", r"appraise \(|_appraise"),
    ("writing the decision, but for SQLite", r"store/(decisions|nonces|locks|audit_log)\.py"),
    ("finding key, device and policy, but for SQLite", r"store/records/keys\.py"),
    ("transactions, batches, threads", r"tang_attest/store/|concurrent/futures|threading"),
    ("reading bodies and JSON", r"web/(wire|bodies)\.py"),
    ("the rest of the two use cases", r"tang_attest/service/"),
    ("our part of HTTP", r"tang_attest/web/"),
    ("aiohttp", r"aiohttp/"),
    ("the event loop", r"asyncio|uvloop"),
)


def share_out(stacks: str) -> Counter[str]:
    """Samples of py-spy's ``raw`` format (frames from the outside in, ``;`` between them, and a count), by part."""
    parts: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        parts[_part(stack)] += int(count)
    return parts


def _part(stack: str) -> str:
    return next((name for name, pattern in _PARTS if re.search(pattern, stack)), "other")


def profile(work: Path, seconds: int) -> tuple[Counter[str], float]:
    """The parts, and unlocks for each second meanwhile (py-spy stops the server for each look)."""
    state, found = work / "state", work / "stacks"
    servers.init(state)
    tokens = servers.create_tokens(state, [SELECTION] * CONCURRENCY)
    with servers.serve(state, None, work / "log") as server, LoadGenerator() as generator:
        generator.enroll(server.port, [f"machine-{number}" for number in range(CONCURRENCY)], tokens)
        command = [_PY_SPY, "record", "--pid", server.pid, "--subprocesses", "--gil", "--function"]
        command += ["--duration", seconds, "--rate", _RATE, "--format", "raw", "--output", found]
        with subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL) as watching:
            run = generator.run(server.port, "unlock", seconds=seconds, warm_up=0.5, keep_alive=False)
        if watching.returncode != 0:
            raise RuntimeError("py-spy failed; is this root?")
    return share_out(found.read_text()), run.rate


def main(arguments: Sequence[str]) -> int:
    """Run, and print the shares."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description="Parts of an unlock.")
    parser.add_argument("--seconds", type=int, default=15, help="how long it is watched")
    options = parser.parse_args(arguments)
    with workplace("profile") as work:
        parts, rate = profile(work, options.seconds)
    print(f"{parts.total():,} looks at a server that did {rate:.0f} attested unlocks per second\n")
    for name, count in parts.most_common():
        print(f"{name:48}{100 * count / parts.total():6.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
