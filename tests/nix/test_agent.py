"""services.clevis-attest-agent: the agent's file and its unit."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.nix.nix import Nix

AGENT = "services.clevis-attest-agent"
KID = "k" * 43


def agent(definitions: str) -> str:
    """The module of a machine with the agent."""
    return f'{{ {AGENT} = {{ enable = true; urls = [ "https://a" "https://b" ]; kid = "{KID}"; }}; {definitions} }}'


@pytest.mark.parametrize(
    ("definitions", "lines"),
    [("", []), (f"{AGENT}.interval = 60;", ["interval=60"])],
    ids=["default", "interval"],
)
def test_the_agents_file(nix: Nix, definitions: str, lines: list[str]) -> None:
    """What the agent reads, line by line."""
    text = nix.evaluate(agent(definitions), 'r.config.environment.etc."clevis-attest/agent.conf".text')
    assert text.splitlines() == ["url=https://a", "url=https://b", f"kid={KID}", *lines]


@pytest.mark.parametrize(("given", "message"), [("kid", "no address"), ("urls", "enroll this machine")])
def test_an_agent_without_a_server_is_refused(nix: Nix, given: str, message: str) -> None:
    """It would only fail in a loop."""
    definition = {"kid": f'kid = "{KID}";', "urls": 'urls = [ "https://a" ];'}[given]
    failed = nix.evaluate(f"{{ {AGENT} = {{ enable = true; {definition} }}; }}", "r.failed")
    assert [text for text in failed if AGENT in text and message in text], failed


def test_systemd_accepts_the_agents_unit(nix: Nix, tmp_path: Path) -> None:
    """The unit is well-formed; the program comes with the package that has the agent."""
    text = nix.realize(agent(""), 'r.units."clevis-attest-agent.service"')
    assert "/bin/clevis-attest-agent\n" in text
    unit = tmp_path / "clevis-attest-agent.service"
    unit.write_text(
        "\n".join("ExecStart=/bin/true" if "ExecStart=" in line else line for line in text.splitlines())
    )
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (verified.stdout + verified.stderr, verified.returncode) == ("", 0)
