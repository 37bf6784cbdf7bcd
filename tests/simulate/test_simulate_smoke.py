"""The simulation runs, everything in it is as expected, and it notices when something is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.simulate import __main__ as simulate
from tests.simulate.machine import Software
from tests.simulate.story import Story


@pytest.mark.timeout(900)
def test_a_small_fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every machine ends on the good image, the bad one reaches few, and the pictures are there."""
    code = simulate.main(["--devices", "30", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert code == 0, printed
    assert "NOT AS EXPECTED" not in printed
    figures = json.loads((tmp_path / "simulate.json").read_text())
    assert figures["bad_image_boots"] == figures["bad_image_refused"] == figures["bad_image_reached"] == 5
    assert figures["bad_image_audience"] > 5
    assert figures["rollout_boots"] == figures["reboot_storm_boots"] == 30
    assert figures["rollout_refused"] == figures["reboot_storm_refused"] == 0
    assert figures["rss_mb_peak"] >= figures["rss_mb_at_first"] > 10
    for name in ("rollout", "latency"):
        picture = (tmp_path / f"simulate-{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        assert len(picture) > 5_000


@pytest.mark.slow
def test_it_notices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An honest machine that is refused makes the exit code 1."""
    ordinary = Story._ordinary_boots

    def broken(story: Story) -> None:
        ordinary(story)
        unknown = Software.make("unknown", kernel="5.10", initrd="5.10")
        story._boot("first boots", story.fleet.machines[:1], unknown)

    monkeypatch.setattr(Story, "_ordinary_boots", broken)
    for chapter in ("_bad_rollout", "_good_rollout", "_storm"):
        monkeypatch.setattr(Story, chapter, lambda _: None)
    assert simulate.main(["--devices", "20", "--output", str(tmp_path)]) == 1
    assert "NOT AS EXPECTED: first boots: 1 of 1 boots do not end with ok" in capsys.readouterr().out
