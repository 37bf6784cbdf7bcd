"""Everything of a release: the same bytes twice, a repository that apt trusts or refuses, an image that answers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

import tang_attest
from tests.boot.images import cache
from tests.packaging import machines
from tests.packaging.machines import SUITES, Machine
from tests.packaging.test_deb import SERVE

VERSION = tang_attest.__version__
SOURCES = """Types: deb
URIs: file:/srv/repository
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/tang-attest.gpg
"""


def _step(name: str, *arguments: object, **environment: str) -> str:
    """The output of a step of the release."""
    return subprocess.run(
        [f"tools/release/{name}", *map(str, arguments)],
        cwd=cache.ROOT,
        env=os.environ | environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()


def _digests(directory: Path) -> dict[str, str]:
    """SHA-256 of each file below *directory*."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "build.log"
    }


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key that signs the releases of this test run."""
    home = tmp_path_factory.mktemp("config")
    return Path(_step("key", XDG_CONFIG_HOME=str(home), RELEASE_KEY=""))


def _packages(directory: Path, shared: Path) -> Path:
    """Packages of the suites, as `make release` has them."""
    for suite in SUITES:
        (directory / suite).mkdir(parents=True)
        for path in machines.built(shared, suite).values():
            shutil.copy(path, directory / suite)
    return directory


@pytest.mark.slow
def test_wheel_and_source_are_the_same_twice(tmp_path: Path) -> None:
    """One commit, the same bytes; both have the program, and the source has its license."""
    for name in ("one", "two"):
        _step("python", tmp_path / name)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    assert set(_digests(tmp_path / "one")) == {
        f"tang_attest-{VERSION}-py3-none-any.whl",
        f"tang_attest-{VERSION}.tar.gz",
    }
    with tarfile.open(tmp_path / "one" / f"tang_attest-{VERSION}.tar.gz") as archive:
        names = set(archive.getnames())
    assert {f"tang_attest-{VERSION}/LICENSE", f"tang_attest-{VERSION}/tang_attest/cli/__init__.py"} <= names


@pytest.mark.boot
@pytest.mark.release
@pytest.mark.timeout(2400)
def test_packages_are_the_same_twice(tmp_path: Path, shared: Path) -> None:
    """Another directory and another time make no difference."""
    suite = SUITES[-1]
    first = machines.built(shared, suite)
    second = machines.built(tmp_path, suite)
    assert first.keys() == second.keys()
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name


@pytest.mark.boot
@pytest.mark.release
@pytest.mark.timeout(2400)
def test_apt_installs_and_upgrades_from_the_repository_and_refuses_a_changed_one(
    tmp_path: Path, shared: Path, key: Path
) -> None:
    """A fresh Debian with the public key takes the package; a changed list or package, or another key, is refused."""
    packages = _packages(tmp_path / "packages", shared)
    repository = tmp_path / "repository"
    _step("repository", repository, packages, key)
    _step("repository", tmp_path / "again", packages, key)
    assert _digests(repository) == _digests(tmp_path / "again")
    with machines.machine(tmp_path, "trixie") as machine:
        shutil.copytree(repository, machine.root / "srv/repository")
        shutil.copy(repository / "tang-attest.gpg", machine.root / "usr/share/keyrings/tang-attest.gpg")
        (machine.root / "etc/apt/sources.list.d/tang-attest.sources").write_text(SOURCES)
        machine.run(
            "apt-get --quiet update; apt-get --quiet --yes install --no-install-recommends curl tang-attest"
        )
        assert machine.run("dpkg-query -W -f '${Version}' tang-attest").endswith("~deb13u1")
        machine.run("tang-attest init")
        assert '"payload"' in machine.run(SERVE)
        _upgrade(machine, repository, packages, key)
        _refusals(machine)


def _upgrade(machine: Machine, repository: Path, packages: Path, key: Path) -> None:
    """A newer version in the repository is taken by `apt-get upgrade`, and the service's state stays."""
    [old] = (packages / "trixie").glob("tang-attest_*")
    tree = packages.parent / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", old, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace("0.1.0-1~deb13u1", "0.1.1-1~deb13u1"))
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-z1", "--build", tree, packages / "trixie"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    _step("repository", repository, packages, key)
    shutil.rmtree(machine.root / "srv/repository")
    shutil.copytree(repository, machine.root / "srv/repository")
    before = machine.run("sha256sum /var/lib/tang-attest/kek")
    machine.run("apt-get --quiet update; apt-get --quiet --yes upgrade")
    assert machine.run("dpkg-query -W -f '${Version}' tang-attest") == "0.1.1-1~deb13u1"
    assert machine.run("sha256sum /var/lib/tang-attest/kek") == before


def _refusals(machine: Machine) -> None:
    """apt says no to each way of changing the repository."""
    copy = "rm -rf /srv/good; cp -a /srv/repository /srv/good"
    back = "rm -rf /srv/repository /var/lib/apt/lists/_srv*; cp -a /srv/good /srv/repository"
    install = "apt-get --quiet --yes install --reinstall --no-install-recommends tang-attest"
    machine.run(copy)
    changes = {
        "the signed list": "sed -i s/0.1.1/0.1.2/ /srv/repository/dists/trixie/main/binary-*/Packages; rm /srv/repository/dists/trixie/main/binary-*/Packages.gz",
        "the signature": "sed -i 's/^Label: .*/Label: another/' /srv/repository/dists/trixie/{InRelease,Release}",
        "a package": "for file in /srv/repository/pool/trixie/tang-attest_0.1.1*; do printf x >>$file; done",
    }
    for what, change in changes.items():
        machine.run(f"{back}; {change}; rm -rf /var/cache/apt/archives/*.deb")
        said = machine.run(
            f"apt-get --quiet --error-on=any update && {install} && echo TAKEN || echo REFUSED"
        )
        assert said.splitlines()[-1] == "REFUSED", f"{what}\n{said}"
    machine.run(f"{back}; rm -rf /var/cache/apt/archives/*.deb")
    said = machine.run(f"apt-get --quiet --error-on=any update && {install} && echo TAKEN || echo REFUSED")
    assert said.splitlines()[-1] == "TAKEN", said


@pytest.mark.boot
@pytest.mark.release
@pytest.mark.timeout(2400)
def test_the_image_is_the_same_twice_and_answers(tmp_path: Path, shared: Path) -> None:
    """Unpacked by the same tool as any runtime's, it shows its version, makes keys and answers /adv."""
    package = machines.built(shared, "trixie")["tang-attest"]
    for name in ("one", "two"):
        _step("image", tmp_path / name, package)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    work = tmp_path / "work"
    layout = work / "layout"
    layout.mkdir(parents=True)
    archive = tmp_path / "one" / f"tang-attest-{VERSION}.oci.tar"
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", layout], check=True)
    _step(
        "in-root",
        _step("root", "trixie", "tools"),
        work,
        "umoci",
        "unpack",
        "--image",
        f"layout:{VERSION}",
        "bundle",
    )
    config: Any = json.loads((work / "bundle/config.json").read_text())
    assert config["process"]["args"] == ["/usr/bin/tang-attest", "serve"]
    assert config["process"]["user"]["uid"] != 0
    machine = Machine(work / "bundle/rootfs")
    assert machine.run("tang-attest --version") == f"tang-attest, version {VERSION}\n"
    machine.run("tang-attest init")
    answered = machine.run(
        "export TANG_ATTEST_HOST=127.0.0.1 TANG_ATTEST_PORT=0 TANG_ATTEST_PORT_FILE=/var/lib/tang-attest/port;"
        "tang-attest serve & for _ in $(seq 3000); do [ ! -s /var/lib/tang-attest/port ] || break; sleep 0.1; done;"
        "/usr/lib/tang-attest/bin/python -c 'import sys, urllib.request as r;"
        ' print(r.urlopen("http://127.0.0.1:%s/adv" % open("/var/lib/tang-attest/port").read().strip()).read().decode())\';'
        "kill -TERM $!; wait $!"
    )
    assert '"payload"' in answered


@pytest.mark.boot
@pytest.mark.release
@pytest.mark.timeout(2400)
def test_the_bill_of_materials_has_what_is_installed(tmp_path: Path, shared: Path) -> None:
    """The same twice; each library of the server's lock with its version and a license, and no tool."""
    for name in ("one", "two"):
        _step("sbom", tmp_path / name)
    assert _digests(tmp_path / "one") == _digests(tmp_path / "two")
    document: Any = json.loads((tmp_path / "one" / f"tang-attest-{VERSION}.cdx.json").read_text())
    assert document["bomFormat"] == "CycloneDX"
    found = {component["name"].lower().replace("_", "-"): component for component in document["components"]}
    locked = {
        line.split("==")[0]: line.split("==")[1].split()[0]
        for line in (cache.ROOT / "requirements-server.lock").read_text().splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    }
    assert {name: component["version"] for name, component in found.items()} == locked
    assert document["metadata"]["component"]["name"] == "tang-attest"
