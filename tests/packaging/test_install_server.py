"""`make install-server`: what a server runs, and nothing that only builds or tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import tang_attest
from tests.boot.images import cache
from tests.boot.images.base import own_suite
from tests.packaging import machines

#: Kilobytes of everything below /, but what apt keeps and the tree that is installed from.
SIZE = "du -skx --exclude=/work --exclude=/var/lib/apt --exclude=/var/cache --exclude=/srv / | cut -f1"
TOOLS = r"^(gcc(-[0-9]+)?$|g\+\+|cpp|binutils|make|python3-dev|python3-venv|libtss2-dev|libc6-dev|qemu|nix|postgresql|gnuplot|git)"


@pytest.mark.boot
@pytest.mark.timeout(2400)
def test_a_server_gets_what_it_runs_and_stays_small(tmp_path: Path) -> None:
    """Under 120 MB beside Python; no compiler, QEMU, Nix or database server stays; the program makes keys and answers.

    A system with systemd gets the service's user and unit, and the state belongs to that user.
    """
    with machines.machine(tmp_path, own_suite()) as machine:
        before = int(
            machine.run(
                "apt-get --quiet update >/dev/null; apt-get --quiet --yes install --no-install-recommends python3 systemd "
                f">/dev/null 2>&1; {SIZE}"
            )
        )
        said = machine.run("cd /work; tools/install-server", binds={cache.ROOT: "/work"})
        assert said.splitlines()[-1].startswith(
            f"install-server: installed tang-attest, version {tang_attest.__version__}"
        )
        assert int(machine.run(SIZE)) - before < 120_000
        assert machine.run(f"dpkg-query -W -f '${{Package}}\\n' | grep -E '{TOOLS}' || true") == ""
        assert machine.run("tang-attest --version") == f"tang-attest, version {tang_attest.__version__}\n"
        unit = machine.run("cat /etc/systemd/system/tang-attest.service")
        assert "\nExecStart=/usr/local/bin/tang-attest serve --config /etc/tang-attest.toml\n" in unit
        machine.run("tang-attest init; [ -s /usr/local/share/man/man8/tang-attest.8 ]")
        assert machine.run("stat -c %U /var/lib/tang-attest/*").split() == ["tang-attest"] * 2
        answered = machine.run(
            "export TANG_ATTEST_HOST=127.0.0.1 TANG_ATTEST_PORT=0 TANG_ATTEST_PORT_FILE=/var/lib/tang-attest/port;"
            "tang-attest serve & for _ in $(seq 3000); do [ ! -s /var/lib/tang-attest/port ] || break; sleep 0.1; done;"
            "python3 -c 'import urllib.request as r;"
            ' print(r.urlopen("http://127.0.0.1:%s/adv" % open("/var/lib/tang-attest/port").read().strip()).read().decode())\';'
            "kill -TERM $!; wait $!"
        )
        assert '"payload"' in answered
