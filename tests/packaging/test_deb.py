"""The Debian packages, in a Debian that has nothing else: they install, work, and go without a trace but the keys."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tang_attest
from tang_attest.store.database.schema import REVISION
from tests.boot.images import cache
from tests.boot.images.base import own_suite
from tests.packaging import machines
from tests.packaging.machines import SUITES, Machine

DRACUT = "clevis-dracut-attest"
NAMES = ["clevis-initramfs-attest", "clevis-pin-attest", "tang-attest"]
#: The other Debian's packages are made and installed before a release, and not in each run.
each_suite = pytest.mark.parametrize(
    "suite",
    [pytest.param(suite, marks=[] if suite == own_suite() else [pytest.mark.release]) for suite in SUITES],
)


@pytest.fixture
def machine(tmp_path: Path, suite: str) -> Iterator[Machine]:
    """A Debian of its own."""
    with machines.machine(tmp_path, suite) as made:
        yield made


def _output(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout


def _field(package: Path, name: str) -> str:
    return _output("dpkg-deb", "--field", package, name).strip()


def test_the_changelog_has_the_version() -> None:
    """The packages' version is the program's."""
    changelog = (cache.ROOT / "packaging/debian/changelog").read_text()
    assert changelog.startswith(f"tang-attest ({tang_attest.__version__}-1) ")


def test_a_wrong_argument_of_the_build_is_named_in_one_sentence(tmp_path: Path) -> None:
    """Nothing is built for a suite or an architecture that nobody tried."""
    for arguments, sentence in (
        (["--suite", "sid"], "there are no packages for 'sid': use --suite bookworm or --suite trixie."),
        (["--suite", "trixie", "--arch", "armhf"], "there are no packages for the architecture 'armhf'"),
        (["--suite"], "--suite needs a value."),
        (["--frobnicate"], "there is no option --frobnicate"),
    ):
        done = subprocess.run(
            ["tools/build-deb", tmp_path / "deb", *arguments],
            cwd=cache.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, ""), arguments
        assert done.stderr.startswith(f"build-deb: {sentence}")
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@each_suite
@pytest.mark.boot
@pytest.mark.timeout(2400)
def test_packages_hold_what_they_should(suite: str, shared: Path) -> None:
    """Root owns every file, nothing of the build is left, and the libraries are those that run, not those that test."""
    packages = machines.built(shared, suite)
    assert sorted(packages) == sorted([DRACUT, *NAMES])
    listings = {}
    for name, package in packages.items():
        listing = _output("dpkg-deb", "--contents", package)
        assert {line.split()[1] for line in listing.splitlines()} == {"root/root"}
        assert {line[:10] for line in listing.splitlines()} <= {
            *("drwxr-xr-x", "drwx------", "-rw-r--r--", "-rwxr-xr-x", "lrwxrwxrwx")
        }
        closed = {line.split()[5] for line in listing.splitlines() if line.startswith("drwx------")}
        assert closed == ({"./etc/clevis-attest/"} if name == "clevis-pin-attest" else set())
        listings[name] = {line.split()[5] for line in listing.splitlines()}
    libraries = {
        path.split("/")[7]
        for path in listings["tang-attest"]
        if "/site-packages/" in path and path[-1] != "/"
    }
    assert {"tang_attest", "aiohttp", "tpm2_pytss"} <= libraries
    assert (
        libraries & {"pip", "setuptools", "pytest", "_pytest", "mypy", "hypothesis", "uv", "tests"} == set()
    )
    assert not [
        path for path in listings["tang-attest"] if path.endswith((".pyc", "RECORD", "direct_url.json"))
    ]
    files = [path for listing in listings.values() for path in listing if path[-1] != "/"]
    assert [path for path in set(files) if files.count(path) > 1] == []
    for name in (DRACUT, "clevis-initramfs-attest"):
        trigger = _output("dpkg-deb", "--info", packages[name], "triggers")
        assert "activate-noawait update-initramfs" in trigger
    assert "libtss2-esys" in _field(packages["tang-attest"], "Depends")
    assert {_field(packages[name], "Architecture") for name in packages if name != "tang-attest"} == {"all"}


@each_suite
@pytest.mark.boot
@pytest.mark.timeout(2400)
def test_lintian_has_nothing_to_say(suite: str, shared: Path) -> None:
    """Neither errors nor warnings of the newer suite's lintian; exceptions carry their reason."""
    packages = machines.built(shared, suite)
    directory = packages["tang-attest"].parent
    root = subprocess.run(
        ["tools/release/root", "trixie", "tools"], cwd=cache.ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    files = [f"./{path.relative_to(directory)}" for path in packages.values()]
    done = subprocess.run(
        [
            "tools/release/in-root",
            root,
            directory,
            "lintian",
            "--allow-root",
            "--fail-on",
            "error,warning",
            *files,
        ],
        cwd=cache.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


SERVE = """
cd /var/lib/tang-attest
TANG_ATTEST_HOST=127.0.0.1 TANG_ATTEST_PORT=0 TANG_ATTEST_PORT_FILE=/var/lib/tang-attest/port \
    setpriv --reuid tang-attest --regid tang-attest --clear-groups --no-new-privs --bounding-set=-all \
    $(sed -n s/^ExecStart=//p /lib/systemd/system/tang-attest.service) &
for _ in $(seq 3000); do [ ! -s port ] || break; sleep 0.1; done
curl --silent --fail --show-error "http://127.0.0.1:$(cat port)/adv"
kill -TERM $!
wait $!
rm port
"""


@each_suite
@pytest.mark.boot
@pytest.mark.timeout(2400)
def test_a_debian_machine_from_install_to_purge(suite: str, shared: Path, machine: Machine) -> None:
    """apt finds every dependency; an administrator needs no more than the commands that are shown; keys survive."""
    packages = machines.built(shared, suite)
    for name in NAMES:
        shutil.copy(packages[name], machine.root / "srv")
    assert machine.traces() == []
    machine.run("apt-get --quiet update")
    said = machine.run("apt-get --quiet --yes install --no-install-recommends /srv/*.deb")
    assert "    tang-attest init\n    systemctl start tang-attest\n" in said

    # Installed files
    assert machine.run("tang-attest --version") == f"tang-attest, version {tang_attest.__version__}\n"
    unit = "/lib/systemd/system/tang-attest.service"
    assert machine.run(f"systemd-analyze verify --man=no {unit}") == ""
    machine.run(f"systemd-analyze security --offline=true --threshold=15 --no-pager {unit}")
    assert machine.run("systemctl is-enabled tang-attest") == "enabled\n"
    assert machine.run("stat -c '%U %G %a' /var/lib/tang-attest") == "tang-attest tang-attest 700\n"
    assert machine.run("stat -c '%U %G %a' /etc/tang-attest") == "root tang-attest 750\n"
    assert machine.run("stat -c '%U %G %a' /etc/clevis-attest") == "root root 700\n"
    assert machine.run("zcat /usr/share/doc/tang-attest/NEWS.Debian.gz").startswith(
        "tang-attest (0.1.0-1~deb"
    )
    assert machine.run("clevis encrypt attest --summary").startswith("Encrypts using")
    assert machine.run("find /usr/lib/tang-attest -name '*.pyc' | wc -l") != "0\n"
    machine.run("[ -s /usr/share/man/man8/tang-attest.8.gz ]")
    machine.run("[ -s /usr/share/man/man8/tang-attest-device-verify.8.gz ]")
    machine.run("[ -s /usr/share/zsh/vendor-completions/_tang-attest ]")
    machine.run("[ -s /usr/share/fish/vendor_completions.d/tang-attest.fish ]")
    assert "observation\n" in machine.run(
        ". /usr/share/bash-completion/completions/tang-attest; COMP_WORDS=(tang-attest ob); COMP_CWORD=1;"
        " _tang_attest_completion tang-attest; printf '%s\\n' ${COMPREPLY[@]}"
    )

    # Root makes the state, and it is the service's
    assert re.search(r"^[\w-]{43}$", machine.run("tang-attest init"), re.MULTILINE)
    assert machine.run("find /var/lib/tang-attest ! -user tang-attest") == ""
    assert machine.run("stat -c %a /var/lib/tang-attest/kek") == "400\n"
    assert '"payload"' in machine.run(SERVE)

    # Root's other commands, also with a file that only root may read
    machine.run("tang-attest token create --name pi-b --record --allow-unverified-ek")
    shutil.copy(cache.ROOT / "tests/vectors/ek/infineon-ecc-root.pem", machine.root / "root/vendor.pem")
    machine.run("chmod 600 /root/vendor.pem; cd /root; tang-attest ek-root add vendor.pem")
    assert "operator:root" in machine.run("tang-attest audit")
    assert machine.run("find /var/lib/tang-attest ! -user tang-attest") == ""

    # A state directory of root's own stays root's
    machine.run("tang-attest --state /root/state init")
    assert machine.run("find /root/state ! -user root; rm -r /root/state") == ""

    # Upgrade: settings and keys stay
    machine.run("echo 'port = 7501' >>/etc/tang-attest.toml; cp /var/lib/tang-attest/kek /srv")
    said = machine.run("dpkg --install /srv/tang-attest_*.deb; grep 7501 /etc/tang-attest.toml")
    assert "tang-attest init" not in said

    # With dracut instead of initramfs-tools, apt would find everything too
    (machine.root / "srv/dracut").mkdir()
    shutil.copy(packages[DRACUT], machine.root / "srv/dracut")
    said = machine.run("apt-get --quiet --yes --simulate install --no-install-recommends /srv/dracut/*.deb")
    assert f"Inst {DRACUT} " in said
    assert "Remv clevis-initramfs-attest " in said

    # The end: initramfs-tools has nothing to forget
    machine.run("mkdir /var/lib/clevis-attest; echo enrolled >/var/lib/clevis-attest/pi-b")
    machine.run(f"apt-get --quiet --yes remove {' '.join(NAMES)}; [ -e /etc/tang-attest.toml ]")
    said = machine.run("apt-get --quiet --yes purge clevis-pin-attest tang-attest")
    assert "still in /var/lib/tang-attest" in said
    assert "still in /var/lib/clevis-attest" in said
    assert machine.traces() == ["/var/lib/clevis-attest", "/var/lib/tang-attest"]
    machine.run("cmp /var/lib/tang-attest/kek /srv/kek; [ -s /var/lib/clevis-attest/pi-b ]")


def _advertised(machine: Machine) -> str:
    """Return the payload of the advertisement, which names the server's keys; its signature differs each time."""
    found = re.search(r'"payload": ?"([^"]+)"', machine.run(SERVE))
    assert found
    return found[1]


OLD_SCHEMA = """
import asyncio, sys
from pathlib import Path
from alembic import command
from tang_attest.store.database import schema
from tang_attest.store.database.engine import connect, parse_url

async def make():
    database = connect(parse_url("sqlite:////var/lib/tang-attest/tang-attest.db"), create=True)
    await database.write(lambda connection: command.upgrade(schema.config(connection), "0009"))
    await database.close()

asyncio.run(make())
"""


@pytest.mark.parametrize("suite", [SUITES[-1]])
@pytest.mark.boot
@pytest.mark.release
@pytest.mark.timeout(2400)
def test_an_upgrade_takes_the_database_with_it(shared: Path, suite: str, machine: Machine) -> None:
    """SQLite is backed up and upgraded, and said; PostgreSQL is left to the administrator; foreign owners are named."""
    package = machines.built(shared, suite)["tang-attest"]
    shutil.copy(package, machine.root / "srv")
    machine.run("apt-get --quiet update; apt-get --quiet --yes install --no-install-recommends /srv/*.deb")
    machine.run("tang-attest init; rm /var/lib/tang-attest/tang-attest.db*")
    (machine.root / "srv/old.py").write_text(OLD_SCHEMA)
    machine.run(
        "setpriv --reuid tang-attest --regid tang-attest --clear-groups /usr/lib/tang-attest/bin/python -I /srv/old.py"
    )

    again = "dpkg --install /srv/*.deb 2>&1 | grep '^tang-attest: ' || true"
    # A busy machine takes longer than two seconds, and the command reports that.
    said = [
        line for line in machine.run(again).splitlines() if not re.match("tang-attest: upgrading: ", line)
    ]
    assert said[1:] == [f"tang-attest: upgraded from schema 0009 to {REVISION}"], said
    backup = re.fullmatch(
        r"tang-attest: the database \(schema 0009\) is backed up in (/var/backups/tang-attest/\S+)\.", said[0]
    )
    assert backup, said
    assert machine.run(f"stat -c '%U %a' {backup[1]} /var/backups/tang-attest") == "root 600\nroot 700\n"
    assert f"schema {REVISION}, this program needs {REVISION}" in machine.run("tang-attest db status")
    assert machine.run("find /var/lib/tang-attest ! -user tang-attest") == ""
    assert machine.run(again) == ""

    # The backup is the way back
    machine.run(
        "mkdir -m 700 /root/back; cp /var/lib/tang-attest/kek /root/back;"
        f" tang-attest --state /root/back restore {backup[1]}"
    )

    # A file of root's
    machine.run("touch /var/lib/tang-attest/kek.new; rm -r /root/back")
    assert machine.run(again) == (
        "tang-attest: /var/lib/tang-attest/kek.new does not belong to the service, which may not start. "
        "Run: chown -R tang-attest: /var/lib/tang-attest\n"
    )
    machine.run("rm /var/lib/tang-attest/kek.new")

    # A backup that cannot be written changes nothing
    machine.run(
        "rm -r /var/lib/tang-attest/tang-attest.db* /var/backups/tang-attest; : >/var/backups/tang-attest"
    )
    machine.run(
        "setpriv --reuid tang-attest --regid tang-attest --clear-groups /usr/lib/tang-attest/bin/python -I /srv/old.py"
    )
    assert "it could not be backed up, so it stays as it is." in machine.run(again)
    assert "schema 0009" in machine.run("tang-attest db status")


@pytest.mark.boot
@pytest.mark.release
@pytest.mark.timeout(3000)
def test_a_server_goes_through_an_upgrade_of_the_distribution(tmp_path: Path, shared: Path) -> None:
    """From Debian 12 to 13 with the newer suite's package at hand: state and settings stay, and the server answers.

    Between the two, with Python and libraries of Debian 13 and the package of 12, it answers as well.
    """
    old, new = SUITES
    with machines.machine(tmp_path, old) as machine:
        shutil.copy(machines.built(shared, old)["tang-attest"], machine.root / "srv")
        machine.run(
            "apt-get --quiet update; apt-get --quiet --yes install --no-install-recommends curl /srv/*.deb"
        )
        machine.run("tang-attest init; echo 'port = 7501' >>/etc/tang-attest.toml")
        before = _advertised(machine)
        machine.run("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*")
        for name, text in machines.sources(new).items():
            folder = "" if name.endswith(".list") else "sources.list.d/"
            (machine.root / "etc/apt" / folder / name).write_text(text)
        machine.run(
            "apt-get --quiet update; apt-get --quiet --yes -o Dpkg::Options::=--force-confold full-upgrade"
        )
        assert machine.run("cat /etc/debian_version").startswith("13")
        assert machine.run("dpkg-query -W -f '${Version}' tang-attest").endswith("~deb12u1")
        assert _advertised(machine) == before

        shutil.copy(machines.built(shared, new)["tang-attest"], machine.root / "srv")
        machine.run(
            "apt-get --quiet --yes -o Dpkg::Options::=--force-confold install --no-install-recommends /srv/*13u1*.deb"
        )
        assert machine.run("dpkg-query -W -f '${Version}' tang-attest").endswith("~deb13u1")
        assert machine.run("tang-attest --version") == f"tang-attest, version {tang_attest.__version__}\n"
        assert machine.run("grep 7501 /etc/tang-attest.toml")
        assert _advertised(machine) == before
        assert machine.run("ls /usr/lib/tang-attest/lib") == "python3.13\n"


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.boot
@pytest.mark.release
@pytest.mark.timeout(2400)
def test_the_server_for_arm64_is_the_same_program(suite: str, shared: Path, tmp_path: Path) -> None:
    """Everything compiled is for the other architecture, and the rest is the same files as in this machine's package."""
    trees = {}
    for architecture in ("amd64", "arm64"):
        package = machines.built(shared, suite, architecture)["tang-attest"]
        assert _field(package, "Architecture") == architecture
        trees[architecture] = tmp_path / architecture
        _output("dpkg-deb", "--extract", package, trees[architecture])
    files = {
        architecture: {
            str(path.relative_to(tree)).replace("x86_64", "aarch64"): path
            for path in tree.rglob("*")
            if path.is_file()
            and not path.is_symlink()
            and path.name != "WHEEL"
            and path.parent.name != "sboms"
        }
        for architecture, tree in trees.items()
    }
    compiled = [path for name, path in files["arm64"].items() if name.endswith(".so")]
    assert any(path.name.startswith("_libtpm2_pytss") for path in compiled)
    for path in compiled:
        assert path.read_bytes()[18:20] == b"\xb7\0", path  # e_machine: AArch64
    assert files["arm64"].keys() == files["amd64"].keys()
    different = {
        name
        for name, path in files["arm64"].items()
        if not name.endswith(".so") and path.read_bytes() != files["amd64"][name].read_bytes()
    }
    assert different == set()
