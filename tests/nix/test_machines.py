"""nix/tests/ and flake.nix, as far as they can be looked at without a nixpkgs and without KVM."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tang_attest.errors import ACTIONS
from tests.docs.test_docs import _options
from tests.nix.nix import Nix
from tools.generate_nix import ROOT

SCENARIOS = ["boots-scripted", "boots-systemd"]
#: pkgs.testers.runNixOSTest hands its argument back; lib.mkVMOverride is what NixOS' lib has.
TESTS = f"""
  e = import {ROOT}/tests/nix/nixpkgs/eval.nix {{ }};
  lib = e.lib // {{ mkVMOverride = lib.mkOverride 10; }};
  pkgs = e.pkgs // {{ inherit lib; OVMFFull.fd = e.pkgs.bash; testers.runNixOSTest = test: test; }};
  tests = import {ROOT}/nix/tests {{ inherit pkgs; }};
  node = module: (e.with' [ module {ROOT}/tests/nix/nixpkgs/nixos-test.nix ]);
"""


def machine(name: str, scenario: str, specialisation: str = "") -> str:
    """An evaluated machine of a test, or of one of its specialisations."""
    more = f"(called.specialisation.{specialisation}.configuration)" if specialisation else "{ }"
    return f"""(let
      nodes.server.networking.primaryIPAddress = "192.168.1.2";
      function = tests.{scenario}.nodes.{name};
      called = if builtins.isFunction function then function {{ inherit lib nodes pkgs; config = plain.config; }} else function;
      plain = node called;
      in if {json.dumps(specialisation)} == "" then plain else node {{ imports = [ called {more} ]; }})"""


def value(nix: Nix, expression: str) -> Any:
    """Return the value of an expression about the tests."""
    return nix.value(f"let {TESTS} in {expression}")


def test_the_scenarios_are_a_table(nix: Nix) -> None:
    """Each row is a test of its own, by the name under which nix builds it."""
    assert value(nix, "builtins.mapAttrs (name: test: test.name == name) tests") == dict.fromkeys(
        SCENARIOS, True
    )


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", ["server", "client", "encrypted", "updated", "announced"])
def test_the_machines_evaluate(nix: Nix, scenario: str, name: str) -> None:
    """Every option that a machine sets exists, has its type, and fails no assertion."""
    specialisation = "" if name in ("server", "client") else name
    node = machine("server" if name == "server" else "client", scenario, specialisation)
    found = value(
        nix,
        f"let m = {node}; in {{ inherit (m) failed; systemd = m.config.boot.initrd.systemd.enable; "
        "attest = m.config.boot.initrd.tang-attest.enable; params = m.config.boot.kernelParams; "
        "server = m.config.services.tang-attest.enable; }",
    )
    assert found == {
        "failed": [],
        # NixOS' default since 26.05.
        "systemd": scenario == "boots-systemd" or name == "server",
        "attest": bool(specialisation),
        "params": [
            *([f"{name}=1"] if name in ("updated", "announced") else []),
            *(["nohibernate"] if specialisation else []),
        ],
        "server": name == "server",
    }


SCRIPT = (ROOT / "nix/tests/boots.py").read_text()


def rows() -> list[tuple[str, str, bool, str | None]]:
    """The table of boots, read as the driver will."""
    names: dict[str, Any] = {}
    exec(compile(SCRIPT.split("\n\n\ndef ")[0], "boots.py", "exec"), names)  # noqa: S102 - our own table
    table: list[tuple[str, str, bool, str | None]] = names["BOOTS"]
    return table


def test_the_table_has_every_story() -> None:
    """Unlock, refusal, approval, announced update, rollback, removal."""
    table = rows()
    compile(SCRIPT, "boots.py", "exec")
    opens = [name for name, words, typed, _ in table if words == "unlocked by attestation" and not typed]
    assert opens == ["encrypted", "updated", "encrypted", "announced", "encrypted"]
    refused = [re.findall(r"refused \\\((\S+)\\\)", words) for _, words, typed, _ in table if typed]
    assert refused == [["pcr-mismatch"], ["key-unknown"]]
    assert {code for (code,) in refused} <= set(ACTIONS)
    assert [then for *_, then in table if then][1] == "announce"


def test_the_operators_commands_exist() -> None:
    """Every command line of tang-attest in the script has the command and the options that the program has."""
    commands = re.findall(r'"(tang-attest [^"|]*)', SCRIPT)
    assert len(commands) >= 5
    for command in commands:
        path, known = _options(command.split()[1:])
        for flag in re.findall(r"(?<=\s)--[a-z][a-z-]*", command):
            assert flag in known, f"{path} has no {flag}"


def test_the_console_says_these_words() -> None:
    """The script waits for lines that the scripts of stage 1 and the pin print."""
    opened = (ROOT / "initrd/systemd/clevis-attest-opened").read_text()
    assert "'unlocked by attestation'" in opened
    assert '"refused ($p_code): ' in (ROOT / "clevis-pin/clevis-decrypt-attest").read_text()


@pytest.fixture
def flake(tmp_path: Path) -> str:
    """flake.nix' outputs, with this machine's programs for a nixpkgs."""
    (tmp_path / "default.nix").write_text(
        f"""{{ overlays, system }}:
        let
          e = import {ROOT}/tests/nix/nixpkgs/eval.nix {{ }};
          pkgs = e.pkgs // extra // {{
            testers.runNixOSTest = test: test;
            stdenv = e.pkgs.stdenv // {{ hostPlatform.isx86_64 = system == "x86_64-linux"; }};
            callPackage = file: overrides: e.pkgs.callPackage file overrides;
          }};
          extra = (builtins.head overlays) pkgs {{ }};
        in assert builtins.length overlays == 1; pkgs"""
    )
    return f"""(let
      nixpkgs = {{ outPath = {tmp_path}; lib = (import {ROOT}/tests/nix/nixpkgs/eval.nix {{ }}).lib; }};
      self = (import {ROOT}/flake.nix).outputs {{ inherit self nixpkgs; }};
      in self)"""


def test_the_flake_has_what_it_says(nix: Nix, flake: str) -> None:
    """Modules, library, overlay, packages and checks, for the two architectures."""
    found = nix.value(
        f"let f = {flake}; in {{ outputs = builtins.attrNames f; modules = builtins.attrNames f.nixosModules; "
        "packages = builtins.mapAttrs (_: builtins.mapAttrs (_: p: p.name)) f.packages; "
        "checks = builtins.mapAttrs (_: builtins.attrNames) f.checks; }"
    )
    assert found["outputs"] == ["checks", "lib", "nixosModules", "overlays", "packages"]
    assert found["modules"] == ["agent", "default", "initrd", "server"]
    packages = found["packages"]
    assert set(packages) == set(found["checks"]) == {"aarch64-linux", "x86_64-linux"}
    assert packages["x86_64-linux"]["clevis-pin-attest"].startswith("clevis-pin-attest-")
    assert packages["x86_64-linux"]["default"].startswith("tang-attest-")
    assert found["checks"]["x86_64-linux"] == [
        "boots-scripted",
        "boots-systemd",
        "clevis-pin-attest",
        "tang-attest",
    ]
    assert found["checks"]["aarch64-linux"] == ["clevis-pin-attest", "tang-attest"]


def test_the_flakes_modules_are_the_modules(nix: Nix, flake: str) -> None:
    """The default has all of them, and each brings the overlay."""
    options = "{ options.nixpkgs.overlays = lib.mkOption { type = lib.types.listOf lib.types.anything; default = [ ]; }; }"
    found = nix.value(
        f"""let e = import {ROOT}/tests/nix/nixpkgs/eval.nix {{ }}; inherit (e) lib;
        r = lib.evalModules {{
          modules = [ ({flake}).nixosModules.default {ROOT}/tests/nix/nixpkgs/nixos.nix {ROOT}/tests/nix/nixpkgs/scripted.nix ({options}) ];
          specialArgs.pkgs = e.pkgs;
        }}; in {{ overlays = builtins.length r.config.nixpkgs.overlays;
        enabled = [ r.config.services.tang-attest.enable r.config.boot.initrd.tang-attest.enable
          r.config.services.clevis-attest-agent.enable ]; }}"""
    )
    assert found == {"overlays": 3, "enabled": [False, False, False]}
