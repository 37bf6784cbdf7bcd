"""Dry runs: who would be refused, and why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from tang_attest.protocol.changes.change import AddedState, PolicyChange
from tang_attest.protocol.changes.dry_run import Trial, dry_run
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import ReferenceState, StateLimits
from tang_attest.protocol.values.pcr import Selection

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SELECTION = Selection("sha256", (0, 4, 15))


def values(zero: int, four: int) -> dict[int, bytes]:
    """Values of PCR 0 and 4."""
    return {0: bytes([zero]) * 32, 4: bytes([four]) * 32, 15: bytes(32)}


def policy(*states: ReferenceState) -> ReferencePolicy:
    """A policy of *states*."""
    return ReferencePolicy("web", SELECTION, 15, states)


OLD = ReferenceState("old", values(1, 1), "recorded")
BEFORE = policy(OLD)
CHANGE = PolicyChange((AddedState("new", values(1, 2)),), ("old",))


def trial(device: str, zero: int, four: int, then: ReferencePolicy | None = None) -> Trial:
    """*device* with these values, before and after the change."""
    return Trial(device, SELECTION, values(zero, four), b"", BEFORE, then=then or CHANGE.apply(BEFORE))


def test_every_kind() -> None:
    """Refused then, refused anyway, permitted again, the same as before, and unknown."""
    trials = [
        trial("keeps-old-b", 1, 1),
        trial("keeps-old-a", 1, 1),
        trial("early", 1, 2),
        trial("broken", 9, 9),
        Trial("silent", None, {}, b"", BEFORE, then=CHANGE.apply(BEFORE)),
        Trial(
            "reselected", Selection("sha256", (0,)), {0: bytes(32)}, b"", BEFORE, then=CHANGE.apply(BEFORE)
        ),
    ]
    result = dry_run(trials, NOW)
    assert result.devices == 6
    (group,) = result.refused
    assert (group.reason.code, group.reason.sentence) == ("state-retired", "State 'old' is retired.")
    assert group.devices == ("keeps-old-a", "keeps-old-b")
    assert result.refused_devices == ["keeps-old-a", "keeps-old-b"]
    (group,) = result.already
    assert group.reason.sentence == "PCR 0 and PCR 4 are not as approved."
    assert group.devices == ("broken",)
    assert (result.helped, result.unknown) == (("early",), ("silent", "reselected"))


def test_groups_say_which_pcrs_differ() -> None:
    """Devices with the same differing PCRs are one group whatever the values are; the largest comes first."""
    other = policy(ReferenceState("new", values(1, 2), "imported"))
    before = policy(*(ReferenceState(f"s{n}", values(1, n), "recorded") for n in range(3, 9)), OLD)
    same = [Trial(f"d{n}", SELECTION, values(1, n), b"", before, then=other) for n in range(3, 9)]
    odd = policy(ReferenceState("odd", values(7, 7), "recorded"))
    result = dry_run([Trial("odd", SELECTION, values(7, 7), b"", odd, then=other), *same], NOW)
    assert [(group.reason.sentence, len(group.devices)) for group in result.refused] == [
        ("PCR 4 is not as approved.", 6),
        ("PCR 0 and PCR 4 are not as approved.", 1),
    ]


def test_limits_are_judged() -> None:
    """A state for another device, or one that expired, helps nobody here either."""
    mine = ReferenceState("mine", values(3, 3), "observed", limits=StateLimits(device="a"))
    old = ReferenceState("old", values(1, 1), "observed", limits=StateLimits(expires_at=NOW - timedelta(1)))
    judged = policy(mine, old)
    result = dry_run(
        [
            Trial("a", SELECTION, values(3, 3), b"", judged, then=judged),
            Trial("b", SELECTION, values(3, 3), b"", judged, then=judged),
            Trial("c", SELECTION, values(1, 1), b"", judged, then=judged),
        ],
        NOW,
    )
    assert result.refused == ()
    assert [(group.reason.code, group.devices) for group in result.already] == [
        ("policy-empty", ("b",)),
        ("state-expired", ("c",)),
    ]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_every_device_is_counted_once(booted: list[tuple[int, int]]) -> None:
    """And adding states alone refuses nobody."""
    trials = [trial(f"d{number}", *pair) for number, pair in enumerate(booted)]
    result = dry_run(trials, NOW)
    grouped = [name for group in (*result.refused, *result.already) for name in group.devices]
    permitted = sum(pair == (1, 2) for pair in booted)
    assert len(grouped) == len(set(grouped)) == len(booted) - permitted
    added = PolicyChange(CHANGE.add).apply(BEFORE)
    assert dry_run([trial(f"d{n}", *pair, then=added) for n, pair in enumerate(booted)], NOW).refused == ()
