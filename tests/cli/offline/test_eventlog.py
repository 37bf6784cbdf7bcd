"""``tang-attest eventlog``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from click.testing import CliRunner, Result

from tang_attest.cli import group
from tang_attest.errors import Malformed
from tang_attest.protocol import eventlog
from tests.cli import forked

VECTORS = Path(__file__).parents[2] / "vectors" / "eventlogs"
OVMF = VECTORS / "ovmf.bin"


def run(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(group, ["eventlog", *map(str, arguments)], input=stdin)


def program(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return forked.run(forked.command("eventlog", *arguments), text=True, timeout=120)


def rows(output: str) -> list[list[str]]:
    return [line.rstrip().split(maxsplit=3) for line in output.splitlines()]


def test_values() -> None:
    """A row for each bank and PCR, as the machine's TPM had them."""
    result = program(OVMF)
    assert (result.returncode, result.stderr) == (0, "")
    table = rows(result.stdout)
    assert table[0] == ["BANK", "PCR", "REPLAYED", "VALUE"]
    shown = {(bank, pcr): value for bank, pcr, value in table[1:]}
    recorded = json.loads((VECTORS / "pcrs/ovmf-pcrs.json").read_text())["sha256"]
    assert all(shown["sha256", pcr] == recorded[pcr] for pcr in ("0", "2", "4", "7"))
    assert {bank for bank, _ in shown} == {"sha1", "sha256", "sha384"}


def test_events() -> None:
    """--events lists every event before the values."""
    result = run(OVMF, "--events")
    events, _, values = result.stdout.partition("\n\n")
    table = rows(events)
    assert table[0] == ["EVENT", "PCR", "TYPE", "DESCRIPTION"]
    assert len(table) - 1 == len(eventlog.parse(OVMF.read_bytes()).events)
    assert table[10] == ["9", "7", "EV_SEPARATOR", "separator: 4 bytes 00000000"]
    assert values.startswith("BANK")


def test_json() -> None:
    """--json is protocol.eventlog.as_json and nothing else."""
    result = run(OVMF, "--json")
    assert json.loads(result.stdout) == eventlog.as_json(eventlog.parse(OVMF.read_bytes()))


def test_stdin() -> None:
    """- is stdin."""
    assert run("-", stdin=OVMF.read_bytes()).stdout == run(OVMF).stdout


def test_log_without_measurements() -> None:
    """A log that extends nothing still leads to PCR 0's initial value."""
    table = rows(run(VECTORS / "startup-locality-only.bin").stdout)
    assert table[1:] == [["sha256", "0", f"{3:064x}"]]


def test_damaged_log(tmp_path: Path) -> None:
    """The error names the event and the offset, and nothing is on stdout."""
    (tmp_path / "log").write_bytes(OVMF.read_bytes()[:-3])
    result = program(tmp_path / "log")
    assert (result.returncode, result.stdout) == (1, "")
    first, second = result.stderr.splitlines()
    what = "event 24 at offset 0xdb2: need 40 bytes for the event data, had 37"
    assert first == f"tang-attest: {what} (eventlog-malformed)"
    assert second == "hint: copy the log again from /sys/kernel/security/tpm0/binary_bios_measurements"


def test_missing_log(tmp_path: Path) -> None:
    """A file that is not there is named."""
    result = program(tmp_path / "log")
    assert result.returncode == 1
    assert result.stderr.startswith(
        f"tang-attest: file {tmp_path}/log cannot be read: No such file or directory"
    )


def test_large_log(tmp_path: Path) -> None:
    """A log beyond the limit is not read."""
    (tmp_path / "log").write_bytes(bytes(eventlog.MAX_LOG_SIZE + 1))
    result = run(tmp_path / "log")
    assert isinstance(result.exception, Malformed)
    assert result.exception.code == "request-too-large"


def test_empty_log(tmp_path: Path) -> None:
    """An empty file is no log."""
    (tmp_path / "log").write_bytes(b"")
    result = run(tmp_path / "log")
    assert isinstance(result.exception, Malformed)
    assert result.exception.sentence == "the log is empty"
