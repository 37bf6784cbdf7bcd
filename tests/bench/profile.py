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
from typing import Final, get_args

from tests.bench.load import servers
from tests.bench.load.generator import CONCURRENCY, Kind, LoadGenerator
from tests.bench.load.registry import DATABASES, ON_DISK, Copies, enrolled
from tests.bench.load.workplace import workplace
from tests.postgres import Postgres
from tests.tang.servers import keygen

_PY_SPY: Final = Path(sys.executable).parent / "py-spy"
_RATE: Final = 400

#: A stack belongs to the first part that one of its frames matches: functions as ``NAME (``, files as part of their paths.
PARTS: Final = (
    ("the log", r"structlog|tang_attest/log\.py"),
    ("checking the quote", r"verify_quote"),
    ("the exchange, but for OpenSSL", r"protocol/(exchange|multiplication)\.py"),
    ("unsealing the key", r"open_exchange"),
    ("the appraisal", r"unlock/appraisal\.py"),
    ("writing the decision, but for the database", r"store/(decisions|locks|records/(nonces|audit_log))\.py"),
    ("finding key, device and policy, but for the database", r"store/records/(keys|policies)\.py"),
    ("transactions, batches, threads", r"tang_attest/store/|concurrent/futures|threading"),
    ("reading bodies and JSON", r"web/(wire|gate/bodies)\.py"),
    ("the rest of the use cases", r"tang_attest/service/"),
    ("TLS", r"/ssl\.py|sslproto"),
    ("writing answers, with the kernel's part", r"finish_response \("),
    ("taking and ending connections", r"connection_(made|lost) \("),
    ("reading requests", r"data_received \("),
    ("this server's part of HTTP", r"tang_attest/web/"),
    ("aiohttp", r"aiohttp/"),
    ("the event loop", r"asyncio|uvloop"),
)


class UnwatchedError(Exception):
    """No process may be watched from outside here, or nothing was seen."""


def share_out(stacks: str) -> Counter[str]:
    """Samples of py-spy's ``raw`` format (frames from the outside in, ``;`` between them, and a count), by part."""
    parts: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        parts[_part(stack)] += int(count)
    return parts


def _part(stack: str) -> str:
    return next((name for name, pattern in PARTS if re.search(pattern, stack)), "other")


def profile(
    work: Path, *, seconds: int, database: str = "sqlite", workers: int = 1, kind: Kind = "unlock"
) -> tuple[Counter[str], float]:
    """The parts, and answers for each second meanwhile (py-spy stops the server for each look)."""
    tang_dir, found = work / "tang", work / "stacks"
    tang_dir.mkdir()
    keygen(tang_dir)
    with Postgres(ON_DISK) as postgres, LoadGenerator() as generator:
        state, url = Copies(enrolled(work / "state", generator, CONCURRENCY), postgres).make(database)
        with servers.serve(state, tang_dir, work / "log", workers=workers, database=url) as server:
            command = [_PY_SPY, "record", "--pid", server.pid, "--subprocesses", "--gil", "--function"]
            command += ["--duration", seconds, "--rate", _RATE, "--format", "raw", "--output", found]
            with subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL) as watching:
                run = generator.run(server.port, kind, seconds=seconds, warm_up=0.5, keep_alive=False)
            if watching.returncode != 0:
                raise UnwatchedError("py-spy failed, so nothing says where the time goes; is this root?")
    parts = share_out(found.read_text())
    if not parts:
        raise UnwatchedError("py-spy saw nothing; watch for longer")
    return parts, run.rate


def main(arguments: Sequence[str]) -> int:
    """Run, and print the shares."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.profile", description="Parts of an unlock.")
    parser.add_argument("--seconds", type=int, default=15, help="how long it is watched")
    parser.add_argument("--database", choices=DATABASES, default="sqlite", help="where the registry is")
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--kind", choices=get_args(Kind), default="unlock", help="requests that are made")
    options = parser.parse_args(arguments)
    with workplace("profile") as work:
        parts, rate = profile(work, **vars(options))
    print(f"{parts.total():,} looks at a server that gave {rate:.0f} answers per second\n")
    for name, count in parts.most_common():
        print(f"{name:54}{100 * count / parts.total():6.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
