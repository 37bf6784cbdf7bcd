"""The dashboard and the alert rules ask for what is exported, and show all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tang_attest.documents import load_yaml
from tang_attest.errors import ACTIONS
from tests.attester import Attester
from tests.server import Server

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
NAME = re.compile(r"\b(?:tang_attest|process)_[a-z_]+\b")


def dashboard() -> dict[str, Any]:
    """The file, parsed."""
    loaded: dict[str, Any] = json.loads((DASHBOARDS / "tang-attest.json").read_text())
    return loaded


def rules() -> list[dict[str, Any]]:
    """Every rule of the alert file."""
    document: Any = load_yaml((DASHBOARDS / "alerts.yaml").read_bytes(), "alerts.yaml")
    [group] = document["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def names(expressions: list[str]) -> set[str]:
    """The metrics in them."""
    return {name for expression in expressions for name in NAME.findall(expression)}


@pytest.fixture
async def exported(tmp_path: Path) -> str:
    """Metrics of a server after some requests."""
    async with Server(tmp_path / "state") as server:
        attester = Attester()
        kid = await server.enroll(attester)
        await server.unlock(attester, kid)
        assert server.site.metrics is not None
        return (await server.site.metrics.text()).decode()


def test_the_dashboard_has_what_is_exported(exported: str) -> None:
    """A name that changes is changed in both; nothing of ours is exported that nobody sees."""
    samples = set(re.findall(r"^([a-z_]+)[{ ]", exported, re.MULTILINE))
    asked = names([target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]])
    assert asked <= samples
    assert {name for name in samples if name.startswith("tang_attest_")} <= asked


def test_alerts_ask_for_what_is_exported(exported: str) -> None:
    """An alert over a name that is not there never fires."""
    samples = set(re.findall(r"^([a-z_]+)[{ ]", exported, re.MULTILINE))
    assert names([rule["expr"] for rule in rules()]) <= samples


def test_alerts_are_for_people() -> None:
    """A name once, a severity, one line of what, one of what to do; codes that are named exist."""
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule
        assert set(rule["annotations"]) == {"summary", "description"}, rule
        for pattern in re.findall(r'code(?:=|!=|=~|!~)"([^"]+)"', rule["expr"]):
            assert set(pattern.split("|")) <= {*ACTIONS, "ok"}, pattern


def test_panels_do_not_overlap() -> None:
    """24 columns, each place taken once; every id is one panel's."""
    panels = dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
