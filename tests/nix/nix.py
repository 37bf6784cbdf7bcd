"""Nix without a daemon, a network or /nix: the modules of nix/ evaluated, and what they make built and read."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.generate_nix import ROOT, private_nix


def evaluator() -> tuple[str, str]:
    """(NIXPKGS, NIXPKGS_LIB): where the user has a nixpkgs, or its lib; empty when the tests' own lib.nix is used."""
    nixpkgs = os.environ.get("NIXPKGS", "")
    return nixpkgs, "" if nixpkgs else os.environ.get("NIXPKGS_LIB", "")


def evaluator_in_words() -> str:
    """For the head of a test run."""
    nixpkgs, lib = evaluator()
    if nixpkgs:
        return f"the NixOS of {nixpkgs} (NIXPKGS); what is built and run uses this machine's programs"
    if lib:
        return f"lib.evalModules of {lib} (NIXPKGS_LIB), with the options of tests/nix/nixpkgs/nixos.nix"
    return "tests/nix/nixpkgs/lib.nix and tests/nix/nixpkgs/nixos.nix (set NIXPKGS or NIXPKGS_LIB for a real one)"


class EvaluationError(Exception):
    """Error text of Nix."""


@dataclass(frozen=True)
class Nix:
    """A store of its own below *directory*."""

    directory: Path

    def _run(self, *command: str) -> str:
        environment = os.environ | private_nix(self.directory)
        if evaluator() == ("", ""):
            # An evaluation with lib.nix ends before a search for garbage pays; one of a whole NixOS needs the memory.
            environment["GC_DONT_GC"] = "1"
        result = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
        if result.returncode != 0:
            raise EvaluationError(result.stderr)
        return result.stdout

    def parse(self, file: Path) -> None:
        """Raises EvaluationError for what is not Nix."""
        self._run("nix-instantiate", "--parse", str(file))

    def value(self, expression: str) -> Any:
        """The value of any expression."""
        return json.loads(self._run("nix-instantiate", "--eval", "--strict", "--json", "-E", expression))

    def evaluate(self, module: str, expression: str, *, scripted: bool = True) -> Any:
        """Return the value of *expression* over ``r`` (config, failed, units, initrdUnits) of a NixOS with *module*.

        Without *scripted*, in a NixOS that has lost its scripted stage 1.
        """
        nixpkgs, lib = evaluator()
        return self.value(_expression(module, expression, nixpkgs, lib, scripted))

    def realize(self, module: str, expression: str) -> Any:
        """The same, after everything that the value names was built, of this machine's programs."""
        inner = f'r.pkgs.writeText "value" (builtins.toJSON ({expression}))'
        _, lib = evaluator()
        built = self._run("nix-build", "--no-out-link", "-E", _expression(module, inner, "", lib))
        return json.loads(Path(built.strip()).read_text())


def _expression(module: str, expression: str, nixpkgs: str, lib: str, scripted: bool = True) -> str:
    arguments = f'{{ nixpkgs = "{nixpkgs}"; nixpkgsLib = "{lib}"; scripted = {str(scripted).lower()}; }}'
    return f"let e = import {ROOT}/tests/nix/nixpkgs/eval.nix {arguments}; r = e.with' [ ({module}) ]; in {expression}"
