"""The five minutes of README.md really run: its own commands, over swtpm, a real clevis and a LUKS2 image."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.swtpm import Swtpm

ROOT = Path(__file__).parents[2]

#: Differences on the machine of a test: (text of the README, command to run), in this order.
CHANGES = (
    (r"make install-server .*\n", ""),
    (r"tang-attest serve &", "start_server"),
    (r"apt-get install .*\n", ""),
    (r"make -C (\S+ \S+ \S+)", r'make -sC \1 DESTDIR="$work"'),
    (r"install -m 600", r'tail -n 1 "$work/printed" | install -m 600'),
    (r"@/root/token", "@'$work'/token"),  # in the single quotes of the configuration
    (r"/root/token", "$work/token"),
    (r"THUMBPRINT", r'$(head -n 1 "$work/printed")'),
    (r"http://10\.0\.0\.1:7500", "'$url'"),
    (r"clevis luks bind", r'clevis luks bind -y -k "$work/passphrase"'),
    (r"/dev/sda3", "$work/disk.img"),
)

BEFORE = """
set -euo pipefail
export PATH="$work/usr/bin:$PWD/.venv/bin:$PATH" TANG_ATTEST_STATE="$work/state"
export CLEVIS_ATTEST_STATE_DIR="$work/enrolled" CLEVIS_ATTEST_RUN_DIR="$work/run"
trap '[ -z "${server-}" ] || kill "$server"' EXIT
start_server() {
    .venv/bin/tang-attest serve --host 127.0.0.1 --port 0 --workers 1 --port-file "$work/port" 2>"$work/log" &
    server=$!
    for _ in {1..3000}; do [ -s "$work/port" ] && break; sleep 0.1; done
    url=http://127.0.0.1:$(cat "$work/port")
}
measure() {
    for pcr in 0 2 4 7 9; do tpm2 pcrextend "$pcr:sha256=$(printf %s "$pcr$1" | sha256sum | cut -d' ' -f1)"; done
}
reboot() {
    tpm2 shutdown --clear
    swtpm_ioctl --tcp "127.0.0.1:$((${TPM2TOOLS_TCTI##*port=} + 1))" -i
    tpm2 startup --clear
    measure "$1"
}
printf passphrase >"$work/passphrase"
truncate -s 32M "$work/disk.img"
cryptsetup luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 "$work/disk.img" "$work/passphrase"
measure old
"""

UPDATE = """
reboot new
if clevis luks pass -d "$work/disk.img" -s 1 >/dev/null 2>"$work/refusal"; then echo "opened after an update" >&2; exit 1; fi
"""

AFTER = """
reboot new
clevis luks pass -d "$work/disk.img" -s 1 >/dev/null && echo opens again
"""


def _blocks() -> list[tuple[str, str]]:
    """The blocks that are marked to be run, with their marks, in the README's order."""
    readme = (ROOT / "README.md").read_text()
    return re.findall(r"^<!-- run: ([a-z ]+) -->\n```sh\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)


def _script() -> str:
    parts = [BEFORE]
    for mark, block in _blocks():
        changed = block
        for said, done in CHANGES:
            changed = re.sub(said, done, changed)
        if "tang-attest init" in changed:
            changed = f'{{\n{changed}}} >"$work/printed"\n'
        parts.append(UPDATE + changed if mark == "after an update" else changed)
    return "\n".join([*parts, AFTER])


def test_the_blocks_are_found() -> None:
    """Otherwise the next test runs nothing."""
    assert [mark for mark, _ in _blocks()] == ["server", "machine", "machine", "server", "after an update"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine; 6 s of processor time
def test_five_minutes(tmp_path: Path) -> None:
    """Bind, open, compare the names, be refused after an update, approve, open again."""
    with Swtpm(tmp_path / "tpm", banks=("sha256",)) as tpm:
        done = subprocess.run(
            ["bash", "-c", _script()],
            cwd=ROOT,
            env=tpm.environment | {"work": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it opens" in done.stdout
    assert "opens again" in done.stdout
    shown = re.search(r"^ak name +([0-9a-f]+)", done.stdout, re.MULTILINE)
    read = re.search(r"^name: ([0-9a-f]+)", done.stdout, re.MULTILINE)
    assert shown is not None
    assert read is not None
    assert shown[1] == read[1]
    assert (
        "refused (pcr-mismatch): PCR 0, PCR 2, PCR 4, PCR 7 and PCR 9 are not as approved."
        in (tmp_path / "refusal").read_text()
    )
    assert not (tmp_path / "token").exists()
