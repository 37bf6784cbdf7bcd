"""Single figures: the exchange, the check of a quote, the pins, a start of the server, the disk."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Final

from tests.bench import exchange, keylime
from tests.bench.load import servers
from tests.bench.load.attester import SELECTION
from tests.bench.load.pin import Pin
from tests.ports import free_port
from tests.tang.servers import keygen

_STARTS: Final = 3


def bench(work: Path, *, decrypts: int, interpreter: Path | None) -> dict[str, float]:
    """Every figure; the pins decrypt *decrypts* times each, and *interpreter* is a Python that has Keylime."""
    return {
        "fsync_ms": _fsync_ms(work),
        **exchange.measure(),
        **_quote(work, interpreter),
        **_pins(work, decrypts),
    }


def _quote(work: Path, interpreter: Path | None) -> dict[str, float]:
    if interpreter is not None and not interpreter.exists():
        print(f"    no {interpreter}: Keylime is not measured", file=sys.stderr, flush=True)
        interpreter = None
    return keylime.measure(work, interpreter)


def _pins(work: Path, decrypts: int) -> dict[str, float]:
    state, tang_dir, log, port = work / "state", work / "tang", work / "log", free_port()
    servers.init(state)
    tang_dir.mkdir()
    keygen(tang_dir)
    (token,) = servers.create_tokens(state, [SELECTION])
    startups = []
    with Pin(work) as pin:
        # Bound without the Tang directory: with it, /adv is signed by keys that the pin then misses in /attest/adv.
        with servers.serve(state, None, log, port):
            attest = pin.bind_attest(port, token)
        for _ in range(_STARTS - 1):
            with servers.serve(state, tang_dir, log, port) as server:
                startups.append(server.startup_s)
        with servers.serve(state, tang_dir, log, port) as server:
            startups.append(server.startup_s)
            figures = pin.measure(attest, pin.bind_tang(port), decrypts)
    return {"startup_s": median(startups), **figures}


def _fsync_ms(directory: Path) -> float:
    """Least time of the disk for a durable commit."""
    times = []
    with (directory / "fsync").open("wb", buffering=0) as file:
        for _ in range(50):
            begin = time.perf_counter()
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - begin)
    return 1000 * median(times)
