"""Reference values of a running machine, and further conditions of a policy."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tang_attest.errors import Malformed, Refused
from tang_attest.protocol.challenge import announce_digest, unlock_digest, verify_digest
from tang_attest.protocol.conditions import Conditions, Watch, check_new_actions
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState, StateLimits
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.verification import (
    CAP_EVENT,
    cap_value,
    check_reach,
    running_policy,
    running_selection,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def boot_policy(*states: ReferenceState, selection: str = "sha256:0,10,11,15") -> ReferencePolicy:
    """A policy of a boot."""
    return ReferencePolicy("p", Selection.parse(selection), 15, states)


def state(**changes: Any) -> ReferenceState:
    """A state of a boot."""
    values = {0: b"\x01" * 32, 10: b"\x02" * 32, 11: b"\x03" * 32, 15: bytes(32)}
    return ReferenceState("s", values, "recorded", **changes)


def test_the_cap_is_an_extension_of_zero() -> None:
    """TPM 2.0 part 1, section 17: new = H(old || H(event)), by the bank's own hash."""
    for bank in ("sha256", "sha384", "sha512"):
        event = hashlib.new(bank, b"tang-attest/v1 cap\n").digest()
        assert cap_value(bank) == hashlib.new(bank, bytes(len(event)) + event).digest()
    assert CAP_EVENT == b"tang-attest/v1 cap\n"


def test_the_running_policy_is_capped_and_without_what_moves() -> None:
    """PCR 10 and 11 are judged not at all, the cap has to have happened."""
    running = running_policy(boot_policy(state()))
    assert str(running.selection) == "sha256:0,15"
    assert running.states[0].values == {0: b"\x01" * 32, 15: cap_value("sha256")}
    assert running.judge("d", {0: b"\x01" * 32, 15: cap_value("sha256")}, NOW).label == "s"
    with pytest.raises(Refused) as caught:
        running.judge("d", {0: b"\x01" * 32, 15: bytes(32)}, NOW)
    assert caught.value.code == "pcr-mismatch"


def test_an_approval_for_one_boot_lasts_as_long_as_the_boot() -> None:
    """Its use is spent when the machine runs; that it expired or was retired still counts."""
    values = {0: b"\x01" * 32, 15: cap_value("sha256")}
    spent = boot_policy(state(limits=StateLimits(uses_left=0)))
    assert running_policy(spent).judge("d", values, NOW).label == "s"
    for changes, code in (
        ({"life": Life.RETIRED}, "state-retired"),
        ({"limits": StateLimits(expires_at=NOW)}, "state-expired"),
    ):
        with pytest.raises(Refused) as caught:
            running_policy(boot_policy(state(**changes))).judge("d", values, NOW)
        assert caught.value.code == code


def test_an_empty_policy_stays_empty() -> None:
    """It refuses everyone, running or not."""
    with pytest.raises(Refused) as caught:
        running_policy(boot_policy()).judge("d", {0: bytes(32), 15: cap_value("sha256")}, NOW)
    assert caught.value.code == "policy-empty"


def test_a_selection_of_what_moves_is_refused() -> None:
    """An empty comparison would verify everyone."""
    with pytest.raises(Refused) as caught:
        running_selection(Selection.parse("sha256:10,11"))
    assert caught.value.code == "selection-invalid"


def test_digests_differ_by_purpose() -> None:
    """One quote is good for one purpose."""
    digests = {
        verify_digest("n", "k"),
        unlock_digest("n", "k", ""),
        announce_digest("n", "k", b"", ""),
    }
    assert len(digests) == 3
    assert verify_digest("n", "k") == hashlib.sha256(b"tang-attest/v1 verify\nn\nk\n").digest()


@pytest.mark.parametrize(
    ("tcti", "handle"),
    [
        ("cmd:sh -c x", "0x81010002"),
        ("swtpm:port=1;x", "0x81010002"),
        ("pcap:device:/dev/tpm0", "0x81010002"),
        ("", "0x81010002"),
        ("swtpm:\n", "0x81010002"),
        ("swtpm", "0x80000000"),
        ("swtpm", "ak.ctx"),
    ],
)
def test_what_is_no_tpm(tcti: str, handle: str) -> None:
    """No commands, no files, no transient handles."""
    with pytest.raises(Malformed) as caught:
        check_reach(tcti, handle)
    assert caught.value.code == "setting-invalid"
    check_reach("swtpm:host=127.0.0.1,port=2321", "0x81010002")
    check_reach("device:/dev/tpmrm0", "0x81010002")


# --- conditions -------------------------------------------------------------------------------------------------------


def test_conditions_travel_as_json() -> None:
    """The written form is read back."""
    watch = Watch(interval_s=5, jitter=0, misses=2, on_refused=("suspend", "hook:page"), on_unreachable=())
    for conditions in (Conditions(), Conditions(watch=watch, approval=True, stale_after_s=7)):
        assert Conditions.from_json(conditions.as_json()) == conditions
    assert Conditions.from_json(None) == Conditions()
    assert Conditions.from_json(Conditions(attested_root=True).as_json()).attested_root
    before = {name: value for name, value in Conditions().as_json().items() if name != "attested_root"}
    assert Conditions.from_json(before) == Conditions()  # as an older version wrote it


@pytest.mark.parametrize(
    "changes",
    [
        {"interval_s": 0},
        {"interval_s": 10**9},
        {"jitter": 51},
        {"misses": 0},
        {"on_refused": ("reboot",)},
        {"on_refused": ("hook:../sh",)},
        {"on_refused": ("hook:",)},
        {"on_refused": ("webhook:file:///etc/passwd",)},
        {"on_unreachable": ("webhook:http://a b",)},
        {"on_unreachable": ("log",) * 9},
    ],
)
def test_a_watch_that_makes_no_sense(changes: dict[str, Any]) -> None:
    """Refused before it is stored; a hook never names a path."""
    with pytest.raises(Malformed) as caught:
        Watch(**changes)
    assert caught.value.code == "setting-invalid"


@pytest.mark.parametrize(
    "url", ["http://a:99999/x", "http://a:0/x", "http://[::1/x", "http://me:secret@a/x", "https:///x"]
)
def test_a_new_webhook_at_no_address(url: str) -> None:
    """It is refused when it is given, and not when a policy of before is read: its machines go on unlocking."""
    watch = Watch(on_refused=(f"webhook:{url}",))
    with pytest.raises(Malformed, match="URL of a webhook"):
        check_new_actions(None, watch)
    check_new_actions(watch, replace(watch, interval_s=5))
    check_new_actions(None, Watch(on_refused=("webhook:HTTPS://[::1]:8443/x?y", "log")))


def test_jitter_spreads_evenly() -> None:
    """From less than the interval to more, and silence waits for the longest."""
    watch = Watch(interval_s=100, jitter=10, misses=3)
    assert [watch.pause_s(chance) for chance in (0.0, 0.5, 1.0)] == pytest.approx([90, 100, 110])
    assert watch.silence >= timedelta(seconds=3 * 110)


def test_a_persons_word_ends() -> None:
    """At the very second that was said."""
    conditions = Conditions(approval=True)
    until = NOW + timedelta(minutes=30)
    assert conditions.obstacle("d", until, NOW, until - timedelta(seconds=1)) is None
    for allowed in (None, until):
        reason = conditions.obstacle("d", allowed, NOW, until)
        assert reason is not None
        assert reason.code == "approval-required"


def test_stale_is_longer_than_allowed() -> None:
    """The limit itself is still good."""
    conditions = Conditions(stale_after_s=86400)
    assert conditions.obstacle("d", None, NOW, NOW + timedelta(days=1)) is None
    reason = conditions.obstacle("d", None, NOW, NOW + timedelta(days=3))
    assert reason is not None
    assert (reason.code, reason.sentence) == ("device-stale", "'d' was not seen for 3 days.")
