"""The package says what it needs, and the repository can be built from what it names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name
from packaging.version import Version

import tang_attest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DOCUMENT["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
#: Packages of an extra, which the program imports only where they are there.
OPTIONAL = [Requirement(line) for line in PROJECT["optional-dependencies"]["notify"]]
DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
BUILD = [Requirement(line) for line in DOCUMENT["dependency-groups"]["build"]]
RELEASE = [Requirement(line) for line in DOCUMENT["dependency-groups"]["release"]]

# Split, so that this file passes its own test.
REGISTRY_HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "deb.debian" + ".org",
    "snapshot.debian" + ".org",
    "security.debian" + ".org",
    "ftp.debian" + ".org",
    "registry.npmjs" + ".org",
    "proxy.golang" + ".org",
    "crates" + ".io",
]


def tracked_files() -> list[Path]:
    """Every file that git tracks and the working tree has."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    paths = (ROOT / name for name in listing.stdout.split("\0") if name)
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def locked(name: str = "requirements.lock") -> dict[NormalizedName, Version]:
    """Pins of a lock for a machine like this one."""
    lines = re.findall(r"^(\S+==.*) \\$", (ROOT / name).read_text(), re.MULTILINE)
    pins = [pin for pin in map(Requirement, lines) if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins}


def imported_packages(directory: Path) -> set[str]:
    """Top-level names of all absolute imports below a directory, late imports too."""
    found = set()
    for path in directory.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), path)):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found


def test_version_is_written_once():
    """The installed version is tang_attest.__version__."""
    assert metadata.version("tang-attest") == tang_attest.__version__


def test_every_import_is_a_declared_dependency():
    """The program imports the standard library, itself, or a declared runtime dependency, of an extra too."""
    names = {canonicalize_name(requirement.name) for requirement in RUNTIME + OPTIONAL}
    declared = {
        package
        for package, distributions in metadata.packages_distributions().items()
        if names & {canonicalize_name(distribution) for distribution in distributions}
    }
    allowed = declared | set(sys.stdlib_module_names) | {"tang_attest"}
    assert imported_packages(ROOT / "tang_attest") - allowed == set()


@pytest.mark.parametrize(
    "requirement",
    [each for each in RUNTIME + DEV + BUILD if each.marker is None or each.marker.evaluate()],
    ids=str,
)
def test_lock_satisfies_pyproject(requirement: Requirement):
    """The lock pins every declared dependency, within its bounds; `make lock` brings it up to date."""
    version = locked().get(canonicalize_name(requirement.name))
    assert version is not None
    assert version in requirement.specifier


@pytest.mark.parametrize(
    ("name", "declared", "absent"),
    [
        ("requirements-server.lock", RUNTIME, {"pytest", "uv", "mypy", "setuptools", "pip"}),
        ("requirements-build.lock", BUILD, {"pytest", "uv", "aiohttp"}),
        ("requirements-release.lock", RELEASE, {"pytest", "uv", "aiohttp"}),
    ],
)
def test_other_locks_are_parts_with_the_same_versions(
    name: str, declared: list[Requirement], absent: set[str]
) -> None:
    """A server gets the versions that are tested, and no tools; its builds get the tools that have hashes."""
    part, whole = locked(name), locked()
    assert {canonicalize_name(requirement.name) for requirement in declared} <= part.keys()
    assert not absent & part.keys()
    assert {key: whole[key] for key in part.keys() & whole.keys()} == {
        key: part[key] for key in part.keys() & whole.keys()
    }
    assert name == "requirements-release.lock" or part.keys() <= whole.keys()


@pytest.mark.parametrize("requirement", RUNTIME, ids=str)
def test_runtime_dependency_has_a_lower_bound(requirement: Requirement):
    """A runtime dependency names the oldest version that will do."""
    assert [specifier.operator for specifier in requirement.specifier] == [">="]


def test_environment_is_the_lock():
    """The tests run with the locked versions, so a pass says something about the lock."""
    pins = locked()
    installed = {canonicalize_name(dist.name): Version(dist.version) for dist in metadata.distributions()}
    assert {name: installed.get(name) for name in pins} == pins


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("requirements*.lock")))
def test_every_pin_has_hashes(name: str):
    """Nothing is installed that a hash in a lock does not vouch for."""
    text = (ROOT / name).read_text()
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) >= len(locked(name)) > 5
    assert [block.split("\n")[0] for block in blocks if "--hash=sha256:" not in block] == []


def test_no_file_names_a_registry():
    """The machine's configuration decides the source of packages, not this repository."""
    named = {
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked_files()
        for host in REGISTRY_HOSTS
        if host.encode() in path.read_bytes()
    }
    assert named == set()


def test_apt_packages_have_reasons():
    """Every Debian package is listed once, with the reason for it."""
    lines = (ROOT / "tools/apt-packages").read_text().splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    matches = [re.fullmatch(r"([a-z0-9][a-z0-9.+-]+) +# \S.*", line) for line in entries]
    assert [line for line, match in zip(entries, matches, strict=True) if match is None] == []
    names = [match[1] for match in matches if match]
    assert sorted(set(names)) == sorted(names)


def test_help_explains_every_target():
    """`make help` lists every target that is meant for people, with a text."""
    phony = set(re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    helped = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    texts = dict(re.findall(r"^  make ([a-z-]+) +(\S.*)$", helped, re.MULTILINE))
    assert set(texts) == phony


def test_ci_runs_make_test():
    """Continuous integration runs the command that a person runs, and nothing else."""
    script = (ROOT / ".ci/run").read_text()
    assert re.findall(r"\bmake \S+", script) == ["make test"]


def test_no_test_is_skipped():
    """A skip hides a missing program; `make setup` installs what tests need, so none may skip."""
    skip = re.compile(
        r"\b(?:pytest|mark|unittest)\.(?:skip|skipif|importorskip|skipIf|skipUnless|SkipTest)\b"
    )
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__).resolve()]
    found = {str(path.relative_to(ROOT)) for path in files if skip.search(path.read_text())}
    assert found == set()
