"""The life of a session."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from tang_attest.ports.operators import StoredSession

#: The longest that a session lasts, and the longest without a request.
LIFE: Final = timedelta(hours=12)
IDLE: Final = timedelta(minutes=30)
#: The clock of another server may be ahead of ours by this much; a session of later is not believed.
SKEW: Final = timedelta(minutes=1)
#: A use is written down when the last one is so old.
NOTED: Final = timedelta(minutes=1)


def is_open(session: StoredSession, now: datetime) -> bool:
    """Return True if *session* was not ended and did not expire."""
    return session.ended_at is None and why_over(session, now) is None


def why_over(session: StoredSession, now: datetime) -> str | None:
    """Return the reason for which *session* is over, a part of a sentence; ``None`` if it is not."""
    if session.ended_at is not None:
        return "was ended"
    if now >= session.created_at + LIFE:
        return "is older than 12 hours"
    if now >= session.used_at + IDLE:
        return "was not used for 30 minutes"
    if now < session.created_at - SKEW or now < session.used_at - SKEW:
        return "was opened in the future: the server's clock was set back"
    return None
