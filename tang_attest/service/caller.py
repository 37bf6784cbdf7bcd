"""Who asks, for the audit record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """A request's network address (text, ``None`` on a Unix socket) and the id its log lines carry."""

    address: str | None
    request_id: str
