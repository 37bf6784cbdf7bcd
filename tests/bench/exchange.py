"""One exchange beside one raw ECDH: what telling the whole point, and not only its x, costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.values.points import CURVES, Point


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


def ecdh_ms(calls: int = 100) -> float:
    """Median of one raw P-521 ECDH, in ms."""
    private, algorithm = ec.generate_private_key(ec.SECP521R1()), ec.ECDH()
    peers = [ec.generate_private_key(ec.SECP521R1()).public_key() for _ in range(calls)]
    return 1000 * median(_time(lambda peer=peer: private.exchange(algorithm, peer)) for peer in peers)  # type: ignore[misc]


def _time(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
