"""tests/vectors, as seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

VECTORS = Path(__file__).resolve().parent.parent / "vectors"


def quotes() -> Iterator[dict[str, bytes]]:
    """The files of each quote of tests/vectors/quotes, by name."""
    for path in sorted((VECTORS / "quotes").glob("*/*.json")):
        files = json.loads(path.read_text())["files"]
        yield {name: _bytes(value) for name, value in files.items()}


def _bytes(value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except ValueError:
        return value.encode()  # PEM


def event_logs() -> Iterator[bytes]:
    """Event logs of tests/vectors/eventlogs and eventlogs-arm64."""
    for folder in ("eventlogs", "eventlogs-arm64"):
        for path in sorted((VECTORS / folder).glob("*.bin")):
            yield path.read_bytes()


def certificates() -> Iterator[bytes]:
    """EK certificates and their issuers, as the PEM files have them."""
    for path in sorted((VECTORS / "ek").glob("*.pem")):
        yield path.read_bytes()
