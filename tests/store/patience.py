"""Time limits of the product's databases that a busy machine breaks, made long for tests.

The five seconds of the product are a promise to machines that wait; breaking it on a busy disk is no defect.
Tests of the limits set their own, or start the program with ``serving_started`` of :mod:`tests.cli.serving`.
"""

from __future__ import annotations

from typing import Any, Final

from tang_attest.store.database import engine, postgresql

#: Seconds that a database may take.
_DATABASE_S: Final = 60


def limits() -> list[tuple[Any, str, Any]]:
    """Return the modules, names and values to set."""
    pragmas = [pragma for pragma in engine._PRAGMAS if not pragma.startswith("busy_timeout")]
    return [
        (postgresql, "CONNECT_S", float(_DATABASE_S)),
        (postgresql, "TRANSACTION_S", float(_DATABASE_S)),
        (engine, "_PRAGMAS", (*pragmas, f"busy_timeout={_DATABASE_S * 1000}")),
    ]
