"""The Ansible roles of contrib/: with a real ansible-core, a software TPM, a LUKS image and a server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.boot.images import cache
from tests.pin.machine import Disk, Machine, Operator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROLES = Path(__file__).parents[2] / "contrib" / "ansible" / "roles"
#: It supports the Python of the tests, 3.11 and newer.
ANSIBLE = "ansible-core>=2.19,<2.20"
PASSPHRASE = "typed by a person"


@pytest.fixture(scope="session")
def ansible() -> Path:
    """A directory with ansible-core and what it needs; it is in nobody's environment."""

    def build(path: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(path), ANSIBLE]
        subprocess.run(pip, check=True, timeout=400)

    return cache.entry("ansible", cache.key(ANSIBLE, sys.version), build)


@dataclass
class Play:
    """One role over a local connection, in a world of its own."""

    ansible: Path
    directory: Path
    environment: dict[str, str]
    role: str
    variables: dict[str, Any]

    def run(self, *options: str, **variables: Any) -> subprocess.CompletedProcess[str]:
        """Run the role; *variables* are set as well."""
        file = self.directory / "site.yml"
        chosen = self.variables | variables
        file.write_text(
            yaml.safe_dump(
                [{"hosts": "all", "gather_facts": False, "roles": [{"role": self.role, "vars": chosen}]}]
            )
        )
        inventory = f"web-1 ansible_connection=local ansible_python_interpreter={sys.executable}\n"
        (self.directory / "hosts").write_text(inventory)
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "hosts", "-v", *options, str(file)]
        environment = {
            **self.environment,
            "PYTHONPATH": str(self.ansible),
            "PYTHONWARNINGS": "ignore",
            "ANSIBLE_ROLES_PATH": str(ROLES),
            "ANSIBLE_HOME": str(self.directory / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOCALHOST_WARNING": "0",
            "LC_ALL": "C.UTF-8",
        }
        return subprocess.run(
            command,
            cwd=self.directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


def recap(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """The numbers of a run."""
    found = re.search(r"^web-1 +: (.*)$", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", found[1])}


@dataclass
class Site:
    """A server with the admin API, a policy that permits the machine's boot, and an admin token."""

    operator: Operator
    url: str
    policy: str
    admin_token: str


@pytest.fixture
def site(machine: Machine, make_machine: Any, tmp_path: Path) -> Iterator[Site]:
    """The policy is recorded by another machine, which boots the same."""
    operator = Operator(tmp_path / "server")
    with operator.serve("--admin-api") as port:
        url = f"http://127.0.0.1:{port}"
        make_machine("first").encrypt(url=url, name="web", token=operator.token("web"))
        scopes = ("--scope", "enroll", "--policy", "web")
        yield Site(operator, url, "web", operator.run("admin-token", "create", "ansible", *scopes).strip())


def play(ansible: Path, machine: Machine, site: Site, disk: Disk, **variables: Any) -> Play:
    """The role of a machine that boots from *disk*."""
    known = {
        "tang_attest_machine_packages": [],
        "tang_attest_machine_directory": str(machine.directory / "etc"),
        "tang_attest_machine_initrd_command": [],
        "tang_attest_machine_url": site.url,
        "tang_attest_machine_thp": site.operator.thp,
        "tang_attest_machine_volumes": [str(disk.path)],
        "tang_attest_machine_passphrase": PASSPHRASE,
    }
    return Play(ansible, machine.directory, machine.environment, "machine", known | variables)


def test_a_machine_enrolls_by_the_api_and_binds(ansible: Path, machine: Machine, site: Site) -> None:
    """The second run changes nothing, and creates no token; no secret is in any output; the disk opens."""
    disk = Disk(machine, "luks2")
    role = play(
        ansible,
        machine,
        site,
        disk,
        tang_attest_machine_api_token=site.admin_token,
        tang_attest_machine_policy=site.policy,
        tang_attest_machine_labels=["rack-1"],
        tang_attest_machine_allow_unverified_ek=True,
    )
    dry = role.run("--check")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert json.loads(site.operator.run("device", "list", "--json"))[0]["name"] == "web"
    first = role.run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert recap(first)["changed"] == 4, first.stdout  # directory, token, enrollment, binding
    second = role.run()
    assert second.returncode == 0, second.stdout + second.stderr
    assert (recap(second)["changed"], recap(second)["failed"]) == (0, 0), second.stdout
    assert disk.opens_with(disk.passphrase())
    assert json.loads(site.operator.run("device", "show", "web-1", "--json"))["labels"] == ["rack-1"]
    tokens = json.loads(site.operator.run("token", "list", "--json"))
    assert [token["uses"] for token in tokens if token["policy"] == site.policy] == [1]
    for secret in (PASSPHRASE, site.admin_token):
        assert all(secret not in run.stdout + run.stderr for run in (dry, first, second))
    assert machine.leftovers() == []


def test_one_token_for_many_machines_and_a_refusal(ansible: Path, machine: Machine, site: Site) -> None:
    """A refused machine fails the run with the pin's sentence; nothing is bound, and the token is not shown."""
    options = ("--machines", "2", "--policy", site.policy, "--name", "db-*", "--allow-unverified-ek")
    text = site.operator.run("token", "create", *options).strip()
    disk = Disk(machine, "luks2")
    role = play(ansible, machine, site, disk, tang_attest_machine_token=text)
    refused = role.run()
    assert refused.returncode == 2, refused.stdout
    assert "refused (token-invalid)" in refused.stdout
    assert text not in refused.stdout + refused.stderr
    assert disk.passphrase() == b""
    done = role.run(tang_attest_machine_name="db-1")
    assert done.returncode == 0, done.stdout
    assert disk.opens_with(disk.passphrase())
    wrong = Disk(machine, "luks2", "second")
    failed = role.run(
        tang_attest_machine_name="db-1",
        tang_attest_machine_volumes=[str(disk.path), str(wrong.path)],
        tang_attest_machine_passphrase="not this one",
    )
    assert failed.returncode == 2
    assert str(wrong.path) in failed.stdout
    assert "not this one" not in failed.stdout + failed.stderr


def test_a_server_is_set_up_once(ansible: Path, tmp_path: Path) -> None:
    """Settings, keys, policies and registered EKs; the second run changes nothing, a longer list one thing."""
    program = Path(sys.executable).parent / "tang-attest"
    config, state, eks = tmp_path / "tang-attest.toml", tmp_path / "state", tmp_path / "eks.csv"
    eks.write_text(f"name,ek_sha256\nweb-1,{1:064x}\n")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    role = Play(
        ansible,
        tmp_path,
        environment,
        "server",
        {
            "tang_attest_server_packages": [],
            "tang_attest_server_command": [str(program), "--config", str(config)],
            "tang_attest_server_config": str(config),
            "tang_attest_server_state": str(state),
            "tang_attest_server_settings": {"state": str(state), "admin_api": True, "challenge_ttl": 90},
            "tang_attest_server_policies": {"web": "sha256:0,7"},
            "tang_attest_server_ek_list": str(eks),
            "tang_attest_server_ek_policy": "web",
            "tang_attest_server_service": False,
        },
    )
    first = role.run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert recap(first)["changed"] == 4
    second = role.run()
    assert second.returncode == 0, second.stdout + second.stderr
    assert recap(second)["changed"] == 0, second.stdout
    eks.write_text(f"name,ek_sha256\nweb-1,{1:064x}\nweb-2,{2:064x}\n")
    third = role.run()
    assert recap(third)["changed"] == 1, third.stdout
    eks.write_text("name,ek_sha256\nweb-1,wrong\n")
    wrong = role.run()
    assert wrong.returncode == 2
    assert "line 2: the SHA-256 of an EK has 64 hex digits" in wrong.stdout
