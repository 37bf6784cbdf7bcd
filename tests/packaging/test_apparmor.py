"""The AppArmor profile of the service: the parser reads it, and it permits the files that a running server has mapped.

No test enforces it: that needs a kernel with AppArmor, and the package loads it in complain mode.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.installation.test_serve import self_signed
from tests.cli.serving import PATIENCE_S, initialize, serving

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "packaging" / "apparmor" / "tang-attest"
DROP_IN = ROOT / "packaging" / "systemd" / "50-apparmor.conf"
#: Directories of this checkout, and those of the package that stand for them.
INSTALLED = {
    f"{ROOT}/tang_attest/": "/usr/lib/tang-attest/lib/python3.11/site-packages/tang_attest/",
    f"{sys.prefix}/": "/usr/lib/tang-attest/",
}


def parser(*options: str) -> str:
    """Return the output of apparmor_parser, which needs no AppArmor in this kernel."""
    command = ["apparmor_parser", "--skip-kernel-load", "--skip-cache", *options, str(PROFILE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def expression(glob: str) -> str:
    """Return the regular expression of an AppArmor path (apparmor.d(5), Globbing)."""
    out, depth, at = "", 0, 0
    while at < len(glob):
        letter = glob[at]
        if glob.startswith("**", at):
            out, at = out + ".*", at + 1
        elif letter == "*":
            out += "[^/]*"
        elif letter == "{":
            out, depth = out + "(?:", depth + 1
        elif letter == "}":
            out, depth = out + ")", depth - 1
        elif letter == "," and depth:
            out += "|"
        else:
            out += letter if letter in "[]-" else re.escape(letter)
        at += 1
    return out


class Rules:
    """The file rules of the profile, with everything that it includes."""

    def __init__(self) -> None:
        text = re.sub(r"^\s*#.*$", "", parser("--preprocess"), flags=re.MULTILINE)
        self.variables = dict[str, list[str]]()
        for name, more, values in re.findall(r"^@\{(\w+)\}\s*(\+?)=(.*)$", text, re.MULTILINE):
            kept = self.variables.get(name, []) if more else []
            self.variables[name] = [*kept, *values.split()]
        self.rules = [
            (re.compile(expression(self._expanded(path))), set(modes))
            for path, modes in re.findall(r"^\s*(?:owner\s+)?([/@]\S*)\s+([a-zA-Z]+),", text, re.MULTILINE)
        ]

    def _expanded(self, path: str) -> str:
        while found := re.search(r"@\{(\w+)\}", path):
            values = ",".join(value.strip('"').rstrip("/") for value in self.variables[found[1]])
            path = f"{path[: found.start()]}{{{values}}}{path[found.end() :]}"
        return path

    def permit(self, path: str, mode: str) -> bool:
        """Tell that rules give each letter of *mode* for *path*."""
        given = set[str]().union(*(modes for pattern, modes in self.rules if pattern.fullmatch(path)))
        return set(mode) <= given


@pytest.fixture(scope="module")
def rules() -> Rules:
    """The rules, read once."""
    return Rules()


def test_the_profile_is_read_and_complains_only(rules: Rules) -> None:
    """The parser compiles it.  Nobody has enforced it yet, so it refuses nothing, and other commands are not confined."""
    assert parser("--names").split() == ["tang-attest"]
    assert len(rules.rules) > 100
    text = PROFILE.read_text()
    assert "flags=(attach_disconnected, complain)" in text
    assert "include if exists <local/tang-attest>" in text
    # The hyphen: a kernel without AppArmor starts the service as before.
    assert "\nAppArmorProfile=-tang-attest\n" in DROP_IN.read_text()


def test_secrets_of_others_are_not_in_reach(rules: Rules) -> None:
    """Enforced, the service reads its own state and settings."""
    for path in ("/root/.ssh/id_ed25519", "/etc/shadow", "/var/lib/postgresql/15/main/base", "/home/a/x"):
        assert not rules.permit(path, "r"), path
    for path in ("/etc/tang-attest.toml", "/etc/tang-attest/tls.key", "/usr/bin/tang-attest", "/etc/passwd"):
        assert rules.permit(path, "r"), path
        assert not rules.permit(path, "w"), path
    assert rules.permit("/usr/bin/dash", "mrix")
    assert rules.permit("/usr/bin/python3.13", "mrix")
    assert rules.permit("/usr/lib/tang-attest/bin/python", "mrix")


def _mapped(supervisor: int, shared: str) -> set[str]:
    """Return the files that the supervisor and two workers at least have mapped, once a worker has *shared*."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        texts = [Path(f"/proc/{pid}/maps").read_text() for pid in (str(supervisor), *children)]
        mapped = set(re.findall(r" (/\S+)$", "".join(texts), re.MULTILINE))
        if len(children) >= 2 and shared in mapped:
            return mapped
        assert time.monotonic() < deadline, (children, sorted(mapped))
        time.sleep(0.05)


@pytest.mark.slow
def test_what_a_running_server_has_mapped_is_permitted(rules: Rules, tmp_path: Path) -> None:
    """Libraries and database of the supervisor and of each worker, as the kernel shows them."""
    initialize(tmp_path / "state")
    certificate, key = self_signed(tmp_path, "one")
    options = ("--tls-certificate", certificate, "--tls-key", key, "--log-format", "json", "--workers", "2")
    with serving(tmp_path, *options) as server:
        mapped = _mapped(server.process.pid, f"{tmp_path}/state/tang-attest.db-shm")
    for path in mapped:
        inside = path.removesuffix(" (deleted)")
        for here, there in INSTALLED.items():
            inside = inside.replace(here, there)
        if inside.startswith(f"{tmp_path}/state/"):
            inside = inside.replace(f"{tmp_path}/state", "/var/lib/tang-attest")
        assert rules.permit(inside, "r" if inside.endswith("-shm") else "mr"), path
    for name in ("tang-attest.db", "tang-attest.db-wal", "tang-attest.db-shm", "tang-attest.db-journal"):
        assert rules.permit(f"/var/lib/tang-attest/{name}", "rwk")
