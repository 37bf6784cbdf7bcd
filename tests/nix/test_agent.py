"""services.clevis-attest-agent: the agent's file and its unit."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.nix.conftest import units_directory
from tests.nix.nix import EvaluationError, Nix

AGENT = "services.clevis-attest-agent"
KID = "k" * 43
SPKI = "sha256//" + "A" * 43 + "="
ETC = 'r.config.environment.etc."clevis-attest/agent.conf".text'


def agent(definitions: str) -> str:
    """The module of a machine with the agent."""
    return f"{{ {AGENT} = {{ enable = true; {definitions} }}; }}"


@pytest.mark.parametrize(
    ("definitions", "lines"),
    [
        ("", []),
        ('urls = [ "https://a" "http://b:1" ];', ["url=https://a", "url=http://b:1"]),
        (f'kid = "{KID}"; spki = "{SPKI}";', [f"kid={KID}", f"spki={SPKI}"]),
        (
            'clientCertificate = "/dev/null"; clientKey = "/dev/null";',
            ["client_cert=/dev/null", "client_key=/dev/null"],
        ),
    ],
    ids=["enrollment", "urls", "kid-spki", "client"],
)
def test_the_agents_file(nix: Nix, tmp_path: Path, definitions: str, lines: list[str]) -> None:
    """The settings, line by line, and nothing that the agent does not know: it ends on a line that it cannot read."""
    text = nix.evaluate(agent(definitions), ETC)
    assert text.splitlines() == lines
    package = nix.realize(agent(definitions), f"toString r.config.{AGENT}.package")
    (tmp_path / "agent.conf").write_text(text)
    ran = subprocess.run(
        [Path(package) / "bin/clevis-attest-agent", "--once", "--config", tmp_path / "agent.conf"],
        env=os.environ | {"CLEVIS_ATTEST_STATE_DIR": str(tmp_path), "CLEVIS_ATTEST_RUN_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert ran.stderr.startswith("tang-attest: this machine is not enrolled"), ran


@pytest.mark.parametrize(
    "definition", ['urls = [ "a" ];', 'kid = "k";', 'spki = "x";', 'clientKey = "k";', "interval = 5;"]
)
def test_a_wrong_option_stops_the_evaluation(nix: Nix, definition: str) -> None:
    """The server says how often it asks; there is no option for it."""
    with pytest.raises(EvaluationError, match=f"{AGENT}.{definition.split(' ', maxsplit=1)[0]}"):
        nix.evaluate(agent(definition), f"[ r.config.{AGENT}.enable ({ETC}) ]")


def test_half_a_client_certificate_is_refused(nix: Nix) -> None:
    """A certificate without its key, or a key without its certificate."""
    for half in ('clientCertificate = "/c";', 'clientKey = "/k";'):
        failed = nix.evaluate(agent(half), "r.failed")
        assert [text for text in failed if "clientCertificate and clientKey are given together" in text]


def test_systemd_accepts_the_agents_unit(nix: Nix, tmp_path: Path) -> None:
    """The unit is the one in packaging/, and starts the agent of the package."""
    packages, text = nix.realize(
        agent(""), '[ (map toString r.config.systemd.packages) r.units."clevis-attest-agent.service" ]'
    )
    (unit,) = [Path(path) for path in packages if path.endswith("-clevis-attest-agent-unit")]
    directory = units_directory(
        tmp_path,
        {
            "clevis-attest-agent.service": (
                unit / "lib/systemd/system/clevis-attest-agent.service"
            ).read_text(),
            "clevis-attest-agent.service.d/overrides.conf": text,
        },
    )
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", directory / "clevis-attest-agent.service"],
        env=os.environ | {"SYSTEMD_UNIT_PATH": f"{directory}:"},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (verified.stdout + verified.stderr, verified.returncode) == ("", 0)
    assert f"ExecStart=\nExecStart={nix.directory}" in text
