"""One raw P-521 ECDH, the unit of the bench's processor times, and one exchange beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.values.points import CURVES, Point

#: Seconds between two looks at the price.
_EVERY_S: Final = 0.05


class Price:
    """Processor time of one raw P-521 ECDH, looked at now and then while a server works on the other processor.

    The speed of a processor depends on its neighbors and wanders, so the unit of the figures is measured beside them.
    """

    def __init__(self) -> None:
        self._private = ec.generate_private_key(ec.SECP521R1())
        self._peer = ec.generate_private_key(ec.SECP521R1()).public_key()
        self._next, self._seconds = 0.0, list[float]()

    def look(self, now: float) -> None:
        """Time the second of two, whose tables are in the processor's caches, if it is time again."""
        if now >= self._next:
            self._private.exchange(ec.ECDH(), self._peer)
            begin = time.thread_time()
            self._private.exchange(ec.ECDH(), self._peer)
            self._seconds.append(time.thread_time() - begin)
            self._next = now + _EVERY_S

    def ms(self) -> float:
        """The median of all looks, in ms."""
        return 1000 * median(self._seconds)


def measure(points: int = 50, rounds: int = 8) -> dict[str, float]:
    """Medians over ``points * rounds`` calls of each, in turn, in one thread."""
    private = ec.generate_private_key(ec.SECP521R1())
    key = ExchangeKey(private)
    algorithm = ec.ECDH()
    exchange_s: list[float] = []
    ecdh_s: list[float] = []
    peers = [ec.generate_private_key(ec.SECP521R1()).public_key() for _ in range(points)]
    for peer in peers * rounds:
        # Read anew in each round: OpenSSL keeps what it computes about a point with the point.
        numbers = peer.public_numbers()
        fresh = numbers.public_key()
        point = Point(CURVES["P-521"], numbers.x, numbers.y)
        ecdh_s.append(_time(lambda fresh=fresh: private.exchange(algorithm, fresh)))  # type: ignore[misc]
        exchange_s.append(_time(lambda point=point: key.multiply(point)))  # type: ignore[misc]
    return {
        "exchange_ms": 1000 * median(exchange_s),
        "ecdh_ms": 1000 * median(ecdh_s),
        "exchange_ratio_ecdh": median(exchange_s) / median(ecdh_s),
    }


def _time(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
