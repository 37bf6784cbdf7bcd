"""The server's clock steps while machines unlock: nothing opens twice, nobody waits, and it goes on afterwards."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.bench.load.attester import Blinded
from tests.cli.serving import request, serving
from tests.faults.load import Site, begin, load, until_opened
from tests.faults.stepping import SteppingClock

HOUR, YEARS = timedelta(hours=1), timedelta(days=3650)
#: Permitted answers when the clock steps between a challenge and its answer.
MEANWHILE = {"ok", "nonce-used", "clock-backwards", "nonce-expired", "nonce-invalid"}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workers", [1, 2])
def test_steps_under_load(tmp_path: Path, workers: int) -> None:
    """Forward beyond a challenge's life, back by an hour and by years, and right again."""
    clock = SteppingClock(tmp_path / "off")
    site = Site(tmp_path).init()
    flags = ["--workers", str(workers), "--log-format", "json"]
    with serving(tmp_path, *flags, **clock.environment) as server:
        begin(site, server)
        with load(site, lambda: server.port):
            for off in (HOUR, -HOUR, -YEARS, YEARS, timedelta(0)):
                clock.step(off)
                for _ in range(3):
                    until_opened(site)
        assert server.stop() == 0
        years = {record["timestamp"][:4] for record in server.records()}
    assert set(site.check()) <= MEANWHILE
    # No limit, and nobody's patience, is measured by the clock that stepped.
    assert max(told.seconds for told in site.told) < 60
    # It did step: the server's own log says so.
    assert len(years) == 3, years


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_a_challenge_from_before_a_step(tmp_path: Path) -> None:
    """Forward: expired, and a new challenge comes with it.  Back: made in the future, and the next challenge is good."""
    clock = SteppingClock(tmp_path / "off")
    site = Site(tmp_path).init()
    with serving(tmp_path, **clock.environment) as server:
        begin(site, server)
        machine = site.machines[0]
        for off, code in ((HOUR, "nonce-expired"), (-HOUR, "nonce-invalid"), (-YEARS, "nonce-invalid")):
            clock.step(timedelta(0))
            x = Blinded.make()
            _, asked = request(server.port, "POST", machine.target, x.jwk)
            clock.step(off)
            status, told = request(
                server.port, "POST", machine.target, machine.evidence(asked["challenge"]["nonce"], x)
            )
            assert (status, told["code"]) in {(401, code), (403, code)}, told
            again = (
                told.get("challenge") or request(server.port, "POST", machine.target, x.jwk)[1]["challenge"]
            )
            body = machine.evidence(again["nonce"], x)
            status, reply = request(server.port, "POST", machine.target, body)
            assert status == 200, reply
            x.check(json.dumps(reply).encode(), machine.server)
            assert request(server.port, "POST", machine.target, body)[0] == 403
