"""Entries of the audit record that are events, and those that are none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tang_attest.errors import ACTIONS
from tang_attest.ports.audit import AuditEntry
from tang_attest.ports.notices import NoticeKind
from tang_attest.service.notifications import events
from tang_attest.service.notifications.events import event_of

NOW = datetime(2026, 11, 27, 16, 0, tzinfo=UTC)


def entry(event: str, code: str = "ok", verdict: str = "done", **others: Any) -> AuditEntry:
    """An entry about ``pi-b``."""
    actor = others.pop("actor", "operator:alice")
    return AuditEntry(NOW, event, actor, verdict, code, **({"device": "pi-b"} | others))


def test_codes_exist() -> None:
    """A code that is renamed is renamed here, too."""
    assert set(ACTIONS) >= events._BOOT | events._UNLOCK


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (entry("unlock", "pcr-mismatch", "refused"), NoticeKind.BOOT),
        (entry("unlock", "statement-expired", "refused"), NoticeKind.BOOT),
        (entry("unlock", "approval-required", "refused"), NoticeKind.UNLOCK),
        (entry("unlock", "device-stale", "refused"), NoticeKind.UNLOCK),
        (entry("policy state add", details={"policy": "web", "life": "proposed"}), NoticeKind.ANNOUNCEMENT),
        (
            entry("policy rollout stop", details={"policy": "web", "rollout": "x"}, device=None),
            NoticeKind.ROLLOUT,
        ),
        (entry("device suspend"), NoticeKind.SUSPENSION),
        (entry("device silent", "device-unreachable"), NoticeKind.SILENCE),
    ],
)
def test_events(found: AuditEntry, kind: NoticeKind) -> None:
    """Each with a sentence and an action."""
    event = event_of(1, found)
    assert event is not None
    assert event.kind is kind
    assert event.sentence.endswith(".")
    assert event.action.endswith(".")


@pytest.mark.parametrize(
    "found",
    [
        entry("unlock", "ok", "permitted"),
        # Anybody who knows a kid causes these.
        *(
            entry("unlock", code, "refused")
            for code in ("signature-invalid", "nonce-expired", "evidence-malformed", "statement-malformed")
        ),
        # The machine does not wait at its prompt: its system runs, or the suspension was told.
        entry("unlock", "capped", "refused"),
        entry("unlock", "device-suspended", "refused"),
        entry("unlock", "too-many-requests", "refused", details={"left_out": 9}),
        entry("policy state add", details={"policy": "web", "life": "staged"}),
        entry("device resume"),
        entry("notify", "notify-failed", "refused"),
    ],
    ids=lambda found: f"{found.event} {found.code}",
)
def test_no_events(found: AuditEntry) -> None:
    """Nobody is waited for."""
    assert event_of(1, found) is None
