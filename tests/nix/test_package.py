"""The packages: the server with its dependencies, and clevis with the pin in it."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.nix.nix import Nix
from tests.pin.conftest import Server
from tests.pin.machine import SECRET, Machine
from tests.pin.predict.boots import Grub
from tests.pin.predict.running import Running, values_of
from tools.generate_nix import ROOT

PIN = f"r.pkgs.callPackage {ROOT}/nix/clevis-pin-attest.nix {{ }}"
SERVER = f"r.pkgs.callPackage {ROOT}/nix/package.nix {{ }}"


@pytest.fixture(scope="session")
def pin(nix: Nix) -> Path:
    """clevis with the pin, built."""
    return Path(nix.realize("{ }", f"toString ({PIN})"))


#: Each of these is an attribute of nixpkgs' python3Packages.
IN_NIXPKGS = {
    "aiohttp",
    "alembic",
    "asn1crypto",
    "asyncpg",
    "cbor2",
    "click",
    "cryptography",
    "google-re2",
    "jinja2",
    "jwcrypto",
    "markupsafe",
    "prometheus-client",
    "pydantic",
    "pyyaml",
    "rich",
    "sqlalchemy",
    "structlog",
    "tpm2-pytss",
    "uvloop",
    "webauthn",
}


def test_the_servers_dependencies_are_those_of_pyproject(nix: Nix) -> None:
    """Each by its name in nixpkgs, extras too, without a list in nix/ that could be forgotten."""
    names = nix.value(
        f"let e = import {ROOT}/tests/nix/nixpkgs/eval.nix {{ }}; r = e.with' [ ]; "
        f"in map (package: package.name) ({SERVER}).arguments.dependencies"
    )
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    requirements = [Requirement(line) for line in declared]
    assert {requirement.name for requirement in requirements} == set(names) - {"greenlet"}
    assert {name for requirement in requirements for name in requirement.extras} == {"asyncio"}
    assert "greenlet" in names  # the requirement of SQLAlchemy's extra asyncio
    unknown = {requirement.name for requirement in requirements} - IN_NIXPKGS
    assert not unknown, (
        f"look whether nixpkgs has python3Packages by these names, and add them above: {unknown}"
    )


def test_the_servers_source_is_what_it_needs(nix: Nix) -> None:
    """Neither .venv nor another part of the repository is copied into the store."""
    source = Path(nix.realize("{ }", f"toString ({SERVER}).arguments.src"))
    assert sorted(path.name for path in source.iterdir()) == [
        "LICENSE",
        "pyproject.toml",
        "tang_attest",
        "tools",
    ]
    assert not list(source.rglob("__pycache__"))
    assert (source / "tang_attest/store/migrations").is_dir()


def test_the_server_brings_its_unit_pages_and_completions(nix: Nix) -> None:
    """module-server.nix builds on the packaged unit."""
    package = Path(nix.realize("{ }", f"toString ({SERVER})"))
    assert (package / "lib/systemd/system/tang-attest.service").exists()
    assert (package / "share/man/man8/tang-attest.8").exists()
    assert (package / "share/man/man8/tang-attest-device-verify.8").exists()
    for completion in (
        "bash-completion/completions/tang-attest",
        "zsh/site-functions/_tang-attest",
        "fish/vendor_completions.d/tang-attest.fish",
    ):
        assert "_TANG_ATTEST_COMPLETE" in (package / "share" / completion).read_text()


def test_the_pin_is_in_clevis(pin: Path) -> None:
    """Everything that the pin's Makefile installs, beside clevis' own commands."""
    makefile = (ROOT / "clevis-pin/Makefile").read_text()
    installed = re.findall(r"\bclevis-[\w-]+", " ".join(re.findall(r"^\w+ := (.*)$", makefile, re.MULTILINE)))
    assert "clevis-encrypt-attest" in installed
    present = {path.name for path in (pin / "bin").iterdir()}
    assert (pin / "lib/clevis-attest/predict/__main__.py").exists()
    assert (pin / "lib/clevis-attest/tang_attest/protocol/eventlog/parse.py").exists()
    assert set(installed) <= present
    assert {"clevis", ".clevis-wrapped", "clevis-decrypt", "clevis-luks-bind"} <= present


def test_stage_1_can_copy_the_pin(pin: Path) -> None:
    """The scripted stage 1 copies clevis-decrypt* as files, without what they link to or source."""
    decrypt = pin / "bin/clevis-decrypt-attest"
    text = decrypt.read_text()
    assert not decrypt.is_symlink()
    assert text.startswith("#!/bin/sh\n")
    assert "BASH_SOURCE" not in text
    assert "attest_tls()" in text
    assert not re.search(r"\btpm2_[a-z]", text)  # there is one program, tpm2
    subprocess.run(["bash", "-n", decrypt], check=True, timeout=120)


def test_other_scripts_have_a_shell_of_the_store(pin: Path) -> None:
    """A running NixOS has no /bin/bash."""
    scripts = [
        path for path in (pin / "bin").iterdir() if path.name.startswith(".clevis-") and "attest" in path.name
    ]
    assert len(scripts) >= 4
    assert {path.read_text().split("\n")[0].split("/bin/")[0][2:] for path in scripts} == {
        str(next(pin.parent.glob("*-bash")))
    }


@pytest.mark.slow
def test_the_pin_opens_from_any_sh(
    nix: Nix, pin: Path, machine: Machine, server: Server, name: str, tmp_path: Path
) -> None:
    """/bin/sh is busybox in the scripted stage 1, and bash as sh elsewhere; only PATH leads to bash in stage 1."""
    jwe = machine.encrypt(url=server.url, name=name, token=server.operator.token(name))
    decrypt = tmp_path / "clevis-decrypt-attest"
    # As in stage 1, where the paths of the store lead nowhere (nuke-refs).
    decrypt.write_text(
        (pin / "bin/clevis-decrypt-attest").read_text().replace(str(nix.directory), "/nowhere")
    )
    decrypt.chmod(0o755)
    for shell in (["bash"], ["busybox", "sh"], ["dash"], ["bash", "--posix"]):
        opened = machine.run(*shell, decrypt, stdin=jwe)
        assert (opened.stdout, opened.returncode) == (SECRET, 0), (shell, opened.stderr)


@pytest.mark.slow
def test_the_pin_works_with_nothing_on_path(pin: Path, machine: Machine, server: Server, name: str) -> None:
    """In a unit of a running NixOS neither curl nor jose is on PATH: the package brings them."""
    config = f'{{"url":"{server.url}","name":"{name}","token":"{server.operator.token(name)}"}}'
    machine.extra = {"PATH": "/nowhere"}
    made = machine.run(pin / "bin/clevis", "encrypt", "attest", config, "-y", stdin=SECRET)
    assert made.returncode == 0, made.stderr
    opened = machine.run(pin / "bin/clevis", "decrypt", stdin=made.stdout)
    assert (opened.stdout, opened.returncode) == (SECRET, 0), opened.stderr


@pytest.mark.slow
def test_the_pin_predicts_with_nothing_on_path(
    pin: Path, run_machine: Callable[..., Running], tmp_path: Path
) -> None:
    """The package brings Python, and the server's parser of event logs; tang-attest-announce starts it."""
    running = run_machine(Grub(tmp_path / "root"))
    running.machine.extra["PATH"] = "/nowhere"
    result = running.machine.run(
        pin / "bin/clevis-attest-predict", "--json", "--root", running.installed.root
    )
    assert result.returncode == 0, result.stderr
    predicted = {pcr["pcr"]: pcr["value"] for pcr in json.loads(result.stdout)["pcrs"]}
    assert predicted == values_of(running.installed.log())
