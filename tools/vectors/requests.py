"""Vectors of whole unlock requests: one fault, two faults; and of counters around 2^32."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from tools.conformance.evidence.draft import Asked, Draft
from tools.conformance.evidence.faults import FAULTS, VARIANTS, Fault, pairs
from tools.conformance.primitives.curve import CURVES, Affine
from tools.conformance.primitives.encoding import b64u, thumbprint
from tools.conformance.tpm.machine import Machine
from tools.conformance.tpm.structures import ClockReading
from tools.vectors.activation import AKS, key
from tools.vectors.keys import octets, scalar

SELECTION: Final = "sha256:0,2,4,7,15"
_CURVE: Final = CURVES["P-256"]
_BEFORE: Final = ClockReading(100_000, 7, 3)
_NOW: Final = ClockReading(200_000, 7, 3)


def _machine(kind: str) -> Machine:
    area, name = AKS[kind]
    return Machine(
        key(name, "ak"), key("P-256", "ek L-2"), area, fixed=True, clock=_BEFORE.clock, reset_count=7
    )


def device() -> dict[str, Any]:
    """Return the record that a verifier holds of the device that sends the requests."""
    s = scalar("requests s", _CURVE)
    machine = _machine("ecc256:ecdsa-sha256")
    aks = {kind: b64u(_machine(kind).ak_public) for kind in AKS}
    return {
        "name": "pi-b",
        "s": b64u(_CURVE.octets(s)),
        "key": _CURVE.jwk(_point(scalar("requests s", _CURVE))),
        "kid": _kid(),
        "aks": aks,
        "selection": SELECTION,
        "cap_pcr": 15,
        "approved": b64u(machine.values(SELECTION)),
        "newest_clock": _clock(_BEFORE),
    }


def _clock(reading: ClockReading) -> dict[str, int]:
    return {
        "clock": reading.clock,
        "reset_count": reading.reset_count,
        "restart_count": reading.restart_count,
    }


@cache
def _kid() -> str:
    return thumbprint(_CURVE.jwk(_point(scalar("requests s", _CURVE))))


def _point(secret: int) -> Affine:
    """Return the point of a scalar, by the library: it is faster than the kit."""
    numbers = ec.derive_private_key(secret, ec.SECP256R1()).public_key().public_numbers()
    return numbers.x, numbers.y


@cache
def _scalar_of_x(name: str) -> int:
    """Return the scalar of X; for the vector of a short coordinate, the first one from there that has one."""
    secret = scalar(f"X {name}", _CURVE)
    while "short-coordinate" in name and _point(secret)[0] >> 248:
        secret += 1
    return secret


def _draft(name: str, kind: str = "ecc256:ecdsa-sha256") -> Draft:
    x = _point(_scalar_of_x(name))
    asked = Asked(_kid(), b64u(octets(f"nonce {name}", 32)), SELECTION, _CURVE, x)
    return Draft(_machine(kind), asked, _BEFORE, _NOW)


def _vector(name: str, faults: tuple[Fault, ...], kind: str = "ecc256:ecdsa-sha256") -> dict[str, Any]:
    draft = _draft(name, kind)
    # The later one first: a fault of an early step may replace what a later one changed.
    for fault in reversed(faults):
        fault.apply(draft)
    wins = faults[0] if faults else None
    good = wins is None or wins.status == 200
    return {
        "name": name,
        "reason": "; ".join(fault.reason for fault in faults) or "nothing is wrong",
        "faults": [fault.name for fault in faults],
        "steps": [int(fault.step) for fault in faults if fault.step],
        "ak": kind,
        "nonce": {"text": draft.asked.nonce, "state": draft.nonce_state},
        "x_secret": b64u(_CURVE.octets(_scalar_of_x(name))) if good else None,
        "body": draft.body().decode(),
        "status": wins.status if wins else 200,
        "code": None if good else wins and wins.code,
    }


def requests() -> Iterator[dict[str, Any]]:
    """Yield requests to ``POST /rec/{kid}`` with their answers."""
    for kind in AKS:
        yield _vector(f"good {kind}", (), kind)
    for fault in FAULTS:
        yield _vector(fault.name, (fault,))
    for one, other in pairs():
        yield _vector(f"{one.name} and {other.name}", (one, other))
    # The last one moves the device to another boot.
    for variant in VARIANTS:
        yield _vector(f"good with {variant.name}", (variant,))


def counters() -> Iterator[dict[str, Any]]:
    """Yield clocks of the newest evidence and of a quote after it; *code* is None where the quote stands (3.3, step 9)."""
    top, half = 2**32 - 1, 2**31
    cases: list[tuple[str, tuple[int, int, int], tuple[int, int, int], str | None]] = [
        ("the clock moved", (1000, 5, 5), (1001, 5, 5), None),
        ("the clock stood", (1000, 5, 5), (1000, 5, 5), "clock-backwards"),
        ("the clock fell", (1000, 5, 5), (999, 5, 5), "clock-backwards"),
        ("a reset, and the clock fell", (1000, 5, 5), (10, 6, 5), None),
        ("a reset, and restarts fell", (1000, 5, 5), (1010, 6, 0), None),
        ("a restart", (1000, 5, 5), (1010, 5, 6), None),
        ("a restart, and the clock stood", (1000, 5, 5), (1000, 5, 6), "clock-backwards"),
        ("resets fell", (1000, 5, 5), (2000, 4, 5), "reset-count-backwards"),
        ("resets fell, and restarts rose", (1000, 5, 5), (2000, 4, 9), "reset-count-backwards"),
        ("restarts fell", (1000, 5, 5), (2000, 5, 4), "reset-count-backwards"),
        ("resets pass through zero", (1000, top, 5), (1010, 0, 5), None),
        ("resets go back through zero", (1000, 0, 5), (1010, top, 5), "reset-count-backwards"),
        ("restarts pass through zero", (1000, 5, top), (1010, 5, 0), None),
        ("restarts go back through zero", (1000, 5, 0), (1010, 5, top), "reset-count-backwards"),
        ("resets rose by 2^31 - 1", (1000, 5, 5), (1010, 5 + half - 1, 5), None),
        ("resets fell by 2^31 - 1", (1000, 5 + half - 1, 5), (1010, 5, 5), "reset-count-backwards"),
        ("resets rose by 2^31 - 1 through zero", (1000, top, 5), (1010, half - 2, 5), None),
        ("the clock passes 2^32", (top, 5, 5), (top + 1, 5, 5), None),
        ("the clock passes 2^63", (2**63 - 1, 5, 5), (2**63, 5, 5), None),
    ]
    for name, before, after, code in cases:
        yield {
            "name": name,
            "reason": "counters are compared modulo 2^32, the clock as it is",
            "newest": _clock(ClockReading(*before)),
            "quote": _clock(ClockReading(*after)),
            "code": code,
        }
