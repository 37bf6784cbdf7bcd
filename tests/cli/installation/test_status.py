"""``tang-attest status``: each kind of thing that wants a person, and those that only end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tang_attest.ports.machines import Device, VerificationStatus
from tang_attest.protocol.changes.change import PolicyChange
from tang_attest.protocol.changes.rollout import Rollout, RolloutPhase
from tang_attest.protocol.policy import ReferencePolicy
from tang_attest.protocol.reference_state import Life, ReferenceState, StateLimits
from tang_attest.protocol.values.pcr import Selection
from tang_attest.protocol.verification import RoundOutcome
from tang_attest.service.machines.overview import Notice, Topic, overview
from tests.cli.installation.test_serve import self_signed
from tests.cli.serving import initialize
from tests.cli.transcript import environment, run

NOW = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)

DEVICE = Device(
    name="pi-b",
    ak_public=b"",
    ak_name=b"",
    ak_spki=b"",
    ak_scheme="ecdsa",
    ak_hash="sha256",
    ek_spki=None,
    ek_certificate=None,
    ek_verified=False,
    ek_issuer=None,
    origin="enrolled",
    enrolled_at=NOW,
    id=1,
    policy="web",
    last_seen_at=NOW,
    last_code="ok",
)
POLICY = ReferencePolicy("web", Selection.parse("sha256:7"), 15, ())
ROLLOUT = Rollout(
    policy="web",
    name="june",
    change=PolicyChange(),
    salt="",
    limit=0,
    share=1000,
    started_at=NOW,
    started_by="a",
)


async def notices(
    device: Device = DEVICE, policy: ReferencePolicy = POLICY, rollout: Rollout | None = None
) -> list[Notice]:
    """The notices of an installation with one machine and one policy."""

    def gives(value: Any) -> Any:
        async def answer(*_: object, **__: object) -> Any:
            return value

        return answer

    store: Any = SimpleNamespace(
        devices=SimpleNamespace(list_devices=gives([device])),
        policies=SimpleNamespace(
            list_policies=gives([policy]), get_rollout=gives(rollout), list_observations=gives([])
        ),
        enrollment=SimpleNamespace(list_tokens=gives([]), list_ek_roots=gives([])),
        admin_tokens=SimpleNamespace(list_admin_tokens=gives([])),
        keys=SimpleNamespace(list_keys=gives([])),
    )
    _, found = await overview(store, NOW)
    return found


async def test_a_machine_that_is_well_is_not_shown() -> None:
    """One screen has room for the others."""
    verified = VerificationStatus(outcome=RoundOutcome.VERIFIED, since=NOW)
    assert await notices(replace(DEVICE, standing=verified)) == []


@pytest.mark.parametrize(
    ("outcome", "topic"), [(RoundOutcome.REFUSED, Topic.REFUSED), (RoundOutcome.UNREACHABLE, Topic.SILENT)]
)
async def test_a_running_system_that_is_refused_or_silent(outcome: RoundOutcome, topic: Topic) -> None:
    """With the time since when, and the next step for this machine."""
    standing = VerificationStatus(outcome=outcome, code="pcr-mismatch", since=NOW - HOUR)
    [found] = await notices(replace(DEVICE, standing=standing))
    assert (found.topic, found.name, found.at, found.attention) == (topic, "pi-b", NOW - HOUR, True)
    assert found.action
    assert "DEVICE" not in found.action


async def test_a_machine_that_was_never_seen_waits() -> None:
    """It is no fault: somebody is about to bind its disk."""
    [found] = await notices(replace(DEVICE, last_seen_at=None, last_code=None))
    assert (found.topic, found.attention) == (Topic.WAITING, False)


@pytest.mark.parametrize(
    ("limits", "life", "words", "attention"),
    [
        (StateLimits(expires_at=NOW + HOUR), Life.ACTIVE, "expires", False),
        (StateLimits(expires_at=NOW - HOUR), Life.ACTIVE, "has expired", True),
        (StateLimits(uses_left=1), Life.ACTIVE, "has 1 boot left", False),
        (StateLimits(uses_left=0), Life.ACTIVE, "is used up", True),
    ],
)
async def test_approvals_with_a_limit(limits: StateLimits, life: Life, words: str, attention: bool) -> None:
    """They are shown until they are retired; afterwards not."""
    state = ReferenceState("night", {7: bytes(32)}, "observed", life, limits)
    [found] = await notices(policy=replace(POLICY, states=(state,)))
    assert (found.topic, found.sentence, found.attention) == (Topic.ENDS, f"state 'night' {words}", attention)
    assert bool(found.action) == attention
    assert await notices(policy=replace(POLICY, states=(replace(state, life=Life.RETIRED),))) == []


async def test_staged_states_wait_for_a_boot() -> None:
    """Nobody has to do anything but to boot."""
    state = ReferenceState("next", {7: bytes(32)}, "imported", Life.STAGED)
    [found] = await notices(policy=replace(POLICY, states=(state,)))
    assert (found.topic, found.attention) == (Topic.WAITING, False)


@pytest.mark.parametrize(
    ("phase", "attention"),
    [(RolloutPhase.RUNNING, False), (RolloutPhase.STOPPED, True), (RolloutPhase.FINISHED, None)],
)
async def test_rollouts(phase: RolloutPhase, attention: bool | None) -> None:
    """One that stopped by itself wants a person; one that is over is not shown."""
    rollout = replace(ROLLOUT, status=phase, why="2 machines were refused", ended_at=NOW)
    found = await notices(rollout=rollout)
    assert [n.attention for n in found if n.topic is Topic.ROLLOUT] == (
        [] if attention is None else [attention]
    )


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with an installation, whose operator is in Tokyo."""
    monkeypatch.chdir(tmp_path)
    initialize(tmp_path / "state")
    with environment(TZ="Asia/Tokyo"):
        yield tmp_path


@pytest.mark.parametrize("setting", ["tls", "console"])
def test_the_servers_certificate(home: Path, setting: str) -> None:
    """It ends tomorrow, that of the console too; and a file that is gone is said, not a traceback."""
    certificate, key = self_signed(home, "one")
    names = {f"TANG_ATTEST_{setting.upper()}_{what}" for what in ("CERTIFICATE", "KEY")}
    with environment(**dict(zip(sorted(names), (str(certificate), str(key)), strict=True))):
        stdout, _, code = run("status", "--json")
        [found] = json.loads(stdout)["ends"]
        assert (code, found["name"], found["attention"]) == (1, f"{setting}_certificate", True)
        assert found["at"].endswith("Z")
        certificate.unlink()
        stdout, stderr, code = run("status")
    assert (code, "cannot be read: No such file" in stdout) == (1, True)
    assert "hint: run 'tang-attest serve --check'" in stderr


def test_times_have_a_zone_and_tokens_end(home: Path) -> None:
    """An admin token that ends soon breaks a pipeline: it wants a person."""
    assert run("token", "create", "--record", "--for", "2d")[2] == 0
    stdout, stderr, code = run("status")
    assert (code, stdout.count(" JST")) == (0, 1)
    assert "nothing wants a person" in stderr
    assert run("admin-token", "create", "ansible", "--scope", "read", "--for", "3d")[2] == 0
    stdout, stderr, code = run("status")
    assert (code, stdout.count(" JST")) == (1, 2)
    assert "1 thing wants a person" in stderr
