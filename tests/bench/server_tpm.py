"""``python -m tests.bench.server_tpm``: an exchange in a TPM beside one in the process, call by call in turn.

The TPM is a software TPM, a process of its own, so its arithmetic costs about what ours does.  A hardware TPM is a
hundred times slower; what can be compared is what lies around its arithmetic: sessions, loading keys, and commands.
With ``--tcti device:/dev/tpmrm0`` a real one is measured; it makes keys that nobody keeps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss.constants import ESYS_TR

from tang_attest.keys.server_tpm import ServerTpm, TpmExchangeKey
from tang_attest.keys.tpm import Tpm
from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.values.points import CURVES, Point
from tests.swtpm import Swtpm

_OUTPUT: Final = Path(__file__).parent.parent.parent / "build" / "bench-server-tpm.json"
_CLIENTS: Final = 16
_ROUNDS: Final = 5


def measure(tcti: str, calls: int) -> dict[str, float]:
    """Medians in ms over *calls* of each kind, in turn, for the TPM's strongest curve; and exchanges per second."""
    tpm = ServerTpm(tcti)
    try:
        keys = [TpmExchangeKey(tpm.create(), tpm) for _ in range(2)]
        curve = keys[0].curve
        software = ExchangeKey(ec.generate_private_key(curve.implementation))
        points = [_point(curve.name) for _ in range(16)]
        other = itertools.cycle(reversed(keys))
        kinds: dict[str, Callable[[Point], object]] = {
            "software_exchange_ms": software.multiply,
            "tpm_exchange_ms": keys[0].multiply,
            "tpm_exchange_loading_ms": lambda point: next(other).multiply(point),
            "tpm_exchange_password_ms": lambda point: _with_password(tpm, keys[0], point),
        }
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(calls):
            for name, exchange in kinds.items():
                keys[0 if name != "tpm_exchange_loading_ms" else number % 2].load()  # not what is measured
                begin = time.perf_counter()
                exchange(points[number % len(points)])
                times[name].append(1000 * (time.perf_counter() - begin))
        figures = {name: median(values) for name, values in times.items()}
        figures["create_ms"] = median(_ms(tpm.create) for _ in range(max(3, calls // 20)))
        figures["connect_ms"] = median(_ms(lambda: _reconnect(tpm)) for _ in range(max(3, calls // 20)))
        figures["software_per_s"] = 1000 / figures["software_exchange_ms"]
        rates = [
            (_rate(tpm, keys[:1], points, calls), _rate(tpm, keys, points, calls)) for _ in range(_ROUNDS)
        ]
        figures["tpm_per_s"], figures["tpm_many_keys_per_s"] = map(median, zip(*rates, strict=True))
        return figures
    finally:
        tpm.shutdown()


def _point(curve: str) -> Point:
    return ExchangeKey(ec.generate_private_key(CURVES[curve].implementation)).public


def _ms(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begin)


def _with_password(tpm: ServerTpm, key: TpmExchangeKey, point: Point) -> None:
    """As if the authorization value went over the bus."""

    def use(opened: Tpm) -> None:
        session, opened._session = opened._session, ESYS_TR.PASSWORD
        try:
            opened.zgen(key._wrapped, point)
        finally:
            opened._session = session

    tpm.run(use)


def _reconnect(tpm: ServerTpm) -> None:
    tpm._leave()
    tpm.check()


def _rate(tpm: ServerTpm, keys: Sequence[TpmExchangeKey], points: Sequence[Point], calls: int) -> float:
    """Exchanges per second that 16 clients get, each waiting for its answer."""

    def ask(number: int) -> None:
        key = keys[number % len(keys)]
        tpm.submit(key.multiply, points[number % len(points)]).result()

    with ThreadPoolExecutor(_CLIENTS) as clients:
        begin = time.perf_counter()
        list(clients.map(ask, range(calls)))
        return calls / (time.perf_counter() - begin)


@contextmanager
def _software_tpm() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory, Swtpm(Path(directory) / "tpm") as swtpm:
        yield swtpm.tcti


def software(calls: int) -> dict[str, float]:
    """See :func:`measure`, with a software TPM."""
    with _software_tpm() as tcti:
        return measure(tcti, calls)


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.server_tpm", description=__doc__)
    parser.add_argument("--tcti", help="a TPM to measure instead of a software TPM")
    parser.add_argument("--calls", type=int, default=300, help="how often each is called")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="where the JSON goes")
    options = parser.parse_args(arguments)
    figures = measure(options.tcti, options.calls) if options.tcti else software(options.calls)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(figures, indent=2) + "\n")
    for name, value in figures.items():
        print(f"{name:<30}{value:10.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
