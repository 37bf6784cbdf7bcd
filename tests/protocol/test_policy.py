"""The policy: what permits, and how it says why not."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol import policy, reference_state
from tang_attest.protocol.enrollment import EnrolledDevice
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.quote import VerifiedQuote
from tang_attest.protocol.reference_state import Life, ReferenceState, StateLimits
from tang_attest.protocol.tpm import AttestationKey, ClockInfo
from tang_attest.protocol.values.pcr import Selection

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SELECTION = Selection("sha256", (0, 7, 15))
GOOD = {0: b"\x01" * 32, 7: b"\x02" * 32, 15: bytes(32)}


def quote(values: dict[int, bytes], selection: Selection = SELECTION) -> VerifiedQuote:
    """A verified quote with *values*."""
    device = EnrolledDevice("d", AttestationKey(b"", b"", b"", "ecdsa", "sha256", no_da=True))
    return VerifiedQuote(device, selection, values, ClockInfo(1, 1, 0, safe=True), 1, binding=b"binding")


def make(*states: dict[int, bytes]) -> ReferencePolicy:
    """A policy of *states*."""
    return ReferencePolicy(
        "p", SELECTION, 15, tuple(ReferenceState(f"s{i}", v, "recorded") for i, v in enumerate(states))
    )


def test_an_equal_state_permits_and_is_named() -> None:
    """Any of several states will do."""
    other = GOOD | {7: b"\x09" * 32}
    permit = make(other, GOOD).appraise(quote(GOOD), NOW)
    assert (permit.state.label, permit.binding) == ("s1", b"binding")


def test_an_empty_policy_refuses() -> None:
    """Empty never means anything goes."""
    with pytest.raises(Refused) as refusal:
        make().appraise(quote(GOOD), NOW)
    assert refusal.value.code == "policy-empty"


@given(st.sets(st.sampled_from([0, 7]), min_size=1))
def test_every_differing_pcr_is_named(changed: set[int]) -> None:
    """All at once, with got and expected."""
    values = GOOD | dict.fromkeys(changed, b"\xaa" * 32)
    with pytest.raises(Refused) as refusal:
        make(GOOD).appraise(quote(values), NOW)
    assert refusal.value.code == "pcr-mismatch"
    assert policy.differing_pcrs(refusal.value) == tuple(sorted(changed))
    for reason in refusal.value.reasons[1:]:
        assert dict(reason.data)["got"] == "aa" * 32


def test_states_are_not_mixed() -> None:
    """PCR 0 of one state with PCR 7 of another is neither."""
    a, b = GOOD, {0: b"\x11" * 32, 7: b"\x12" * 32, 15: bytes(32)}
    with pytest.raises(Refused):
        make(a, b).appraise(quote({0: a[0], 7: b[7], 15: bytes(32)}), NOW)


def test_only_the_cap_differs_is_called_capped() -> None:
    """The running system hears that it has to reboot, not that its software changed."""
    with pytest.raises(Refused) as refusal:
        make(GOOD).appraise(quote(GOOD | {15: b"\x05" * 32}), NOW)
    assert refusal.value.code == "capped"
    assert policy.differing_pcrs(refusal.value) == (15,)


def test_the_cap_and_more_is_a_mismatch() -> None:
    """The change counts more than its time."""
    with pytest.raises(Refused) as refusal:
        make(GOOD).appraise(quote(GOOD | {15: b"\x05" * 32, 0: b"\x06" * 32}), NOW)
    assert refusal.value.code == "pcr-mismatch"


def test_another_selection_is_a_defect() -> None:
    """The caller asked for the policy's selection, and verification held the quote to it."""
    with pytest.raises(ValueError, match="own selection"):
        make(GOOD).appraise(quote({0: GOOD[0]}, Selection("sha256", (0,))), NOW)


@pytest.mark.parametrize("pcrs", [(16,), (0, 23), (16, 23)])
def test_resettable_pcrs_make_no_policy(pcrs: tuple[int, ...]) -> None:
    """Software resets them at will."""
    with pytest.raises(Malformed) as error:
        policy.check_policy_selection(Selection("sha256", pcrs))
    assert error.value.code == "selection-invalid"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({0: b"\x01" * 32, 7: b"\x02" * 32}, "values-invalid"),
        (GOOD | {9: b"\x01" * 32}, "values-invalid"),
        (GOOD | {7: b"\x01" * 20}, "values-invalid"),
        ({}, "values-invalid"),
        (dict.fromkeys((0, 7, 15), bytes(32)), "values-all-zero"),
        ({0: bytes(32), 7: b"\xff" * 32, 15: b"\x01" * 32}, "values-all-zero"),
    ],
)
def test_values_that_make_no_state(values: dict[int, bytes], code: str) -> None:
    """Missing, extra, of the wrong size, or such as nothing measured."""
    with pytest.raises(Malformed) as error:
        reference_state.reference_state(SELECTION, "l", values, "imported", cap_pcr=15)
    assert error.value.code == code


def test_force_accepts_an_unmeasured_boot() -> None:
    """A board without measured boot is the operator's choice."""
    values = dict.fromkeys((0, 7, 15), bytes(32))
    assert (
        reference_state.reference_state(SELECTION, "l", values, "imported", cap_pcr=15, force=True).values
        == values
    )


def test_recording_takes_the_cap_as_zero() -> None:
    """Values read in the running system are not those of the initrd."""
    assert reference_state.uncapped(GOOD | {15: b"\x07" * 32}, 15) == GOOD


def test_what_moves_is_learned_and_nothing_else() -> None:
    """PCR 11 may differ from enrollment, PCR 0 may not."""
    selection = Selection("sha256", (0, 11, 15))
    assert reference_state.moving_pcrs(selection) == (11,)
    stable = {0: b"\x01" * 32, 15: bytes(32)}
    assert reference_state.learnable(stable, {0: b"\x01" * 32, 11: b"\x09" * 32, 15: bytes(32)})
    assert not reference_state.learnable(stable, {0: b"\x02" * 32, 11: b"\x09" * 32, 15: bytes(32)})
    assert not reference_state.learnable(stable, {0: b"\x01" * 32, 11: b"\x09" * 32, 15: b"\x01" * 32})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "sha1:0",
        "sha256:24",
        "sha256:0,0",
        "sha256:0+sha384:0",
        "SHA256:0",
        "sha256:0,",
        "md5:1",
        "sha256:-1",
    ],
)
def test_selections_that_are_none(text: str) -> None:
    """One bank, distinct PCRs 0 to 23, not empty, no SHA-1."""
    with pytest.raises(Malformed) as error:
        Selection.parse(text)
    assert error.value.code == "selection-invalid"


@given(st.sampled_from(["sha256", "sha384", "sha512"]), st.sets(st.integers(0, 23), min_size=1))
def test_selections_round_trip(bank: str, pcrs: set[int]) -> None:
    """The written form can be read."""
    selection = Selection(bank, tuple(sorted(pcrs)))
    assert Selection.parse(str(selection)) == selection


# --- a state's life ---------------------------------------------------------------------------------------------------


def alone(**fields: Any) -> ReferencePolicy:
    """A policy with one state, which is as *fields* say."""
    return ReferencePolicy("p", SELECTION, 15, (replace(ReferenceState("s", GOOD, "recorded"), **fields),))


@pytest.mark.parametrize(
    "fields",
    [
        {"life": Life.STAGED},
        {"limits": StateLimits(device="d")},
        {"limits": StateLimits(uses_left=1)},
        {"limits": StateLimits(expires_at=NOW + timedelta(microseconds=1))},
    ],
)
def test_states_that_count(fields: dict[str, object]) -> None:
    """Staged before anybody booted it, for this device, for one boot, until a moment from now."""
    assert alone(**fields).appraise(quote(GOOD), NOW).state.label == "s"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"life": Life.PROPOSED}, "state-proposed"),
        ({"life": Life.RETIRED}, "state-retired"),
        ({"limits": StateLimits(expires_at=NOW)}, "state-expired"),
        ({"limits": StateLimits(uses_left=0)}, "state-used-up"),
        ({"limits": StateLimits(device="another")}, "policy-empty"),
    ],
)
def test_states_that_do_not_count(fields: dict[str, object], code: str) -> None:
    """Equal values are not enough; the person is told what became of them."""
    with pytest.raises(Refused) as refusal:
        alone(**fields).appraise(quote(GOOD), NOW)
    assert refusal.value.code == code


@pytest.mark.parametrize("life", [Life.PROPOSED, Life.RETIRED])
def test_what_does_not_count_is_not_expected(life: Life) -> None:
    """A refusal compares with what is approved, not with what was or may be."""
    newer = {0: b"\x01" * 32, 7: b"\x03" * 32, 15: bytes(32)}
    states = (ReferenceState("old", newer, "recorded", life), ReferenceState("now", GOOD, "recorded"))
    with pytest.raises(Refused) as refusal:
        ReferencePolicy("p", SELECTION, 15, states).appraise(quote(GOOD | {7: b"\x04" * 32}), NOW)
    assert dict(refusal.value.reasons[1].data)["expected"] == [GOOD[7].hex()]


def test_a_use_is_spent_only_where_nothing_else_would_do() -> None:
    """The same values, once and for good: the boot counts as the one for good."""
    once = ReferenceState("once", GOOD, "observed", limits=StateLimits(uses_left=1))
    good = ReferenceState("good", GOOD, "recorded")
    assert ReferencePolicy("p", SELECTION, 15, (once, good)).appraise(quote(GOOD), NOW).state.label == "good"


@pytest.mark.parametrize("label", ["", " x", "x ", "a\nb", "\x1b[31m", "x" * 65])
def test_labels_that_are_none(label: str) -> None:
    """A label is shown on consoles and in tables."""
    with pytest.raises(Malformed) as error:
        reference_state.check_label(label)
    assert error.value.code == "request-malformed"
