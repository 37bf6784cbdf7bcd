"""Tokens of the admin API."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Scope(StrEnum):
    """What an admin token may be good for."""

    READ = "read"  # see devices, policies, observations, the audit record
    STAGE = "stage"  # add values that no machine has shown yet
    APPROVE = "approve"  # approve what a machine showed or announced, retire and restore states


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminToken:
    """A bearer token of the admin API; the store knows only the SHA-256 of its text.

    ``policies`` are the names of those it is limited to, or ``None``: every policy.
    """

    digest: bytes
    name: str
    scopes: tuple[Scope, ...]
    policies: tuple[str, ...] | None
    created_at: datetime
    created_by: str
    expires_at: datetime
    revoked_at: datetime | None = None
