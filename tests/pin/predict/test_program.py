"""The prediction's program in Python: what it needs, and what it says of logs that it cannot use."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predict import prediction
from predict.measured import TABLE, Loader, classify
from predict.sentences import NoPrediction

from tang_attest.errors import Malformed
from tang_attest.protocol.eventlog import parse, replay
from tests.pin.machine import PIN, Machine
from tests.pin.predict.boots import Grub, UBoot
from tests.pin.predict.program import SELECTION, Program
from tests.pin.predict.running import Running, values_of
from tests.protocol.eventlog import writer as w

ROOT = PIN.parent
#: Every Python of this machine that may be that of an enrolled one.
PYTHONS = sorted(
    path
    for directory, pattern in (("/usr/bin", "python3.*"), (Path.home(), ".pyenv/versions/3.*/bin/python3"))
    for path in Path(directory).glob(pattern)
    if (minor := re.search(r"/(?:python)?3\.(\d+)(?:\.\d+/bin/python3)?$", str(path))) and int(minor[1]) >= 11
)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that ``make install`` puts below /usr/lib."""
    directory = tmp_path_factory.mktemp("installed")
    subprocess.run(
        ["make", "-s", "-C", PIN, "install", f"DESTDIR={directory}", "PREFIX=/usr"], check=True, timeout=120
    )
    return directory / "usr/lib/clevis-attest"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    """A machine that booted with GRUB."""
    program = Program(Grub(tmp_path / "root"), tmp_path)
    program.boot()
    return program


# --- what it needs ------------------------------------------------------------------------------------------


def test_the_pythons_that_this_machine_has_are_tried() -> None:
    """Not an empty list."""
    assert PYTHONS


@pytest.mark.parametrize("python", PYTHONS, ids=str)
def test_the_standard_library_is_enough(program: Program, installed: Path, python: Path) -> None:
    """Installed, with each Python from 3.11 on, without site-packages, the user's directory and the
    environment.
    """
    program.command = [python, "-I", "-S", "-B", "-X", "importtime", installed / "predict"]
    result = program.predict()
    assert result.returncode == 0, result.stderr
    assert {p["pcr"]: p["value"] for p in json.loads(result.stdout)["pcrs"]} == values_of(program.log)
    imported = set(re.findall(r"^import time:.*\| +(\w+)", result.stderr, re.MULTILINE))
    assert {"predict", "tang_attest"} <= imported


def test_the_parser_is_the_servers(installed: Path) -> None:
    """The parser and coverage are the same files, byte for byte, and no other part of the server is there."""
    copies = [path for path in (installed / "tang_attest").rglob("*") if path.is_file()]
    assert installed / "tang_attest/protocol/eventlog/parse.py" in copies
    for copy in copies:
        assert copy.read_bytes() == (ROOT / copy.relative_to(installed)).read_bytes(), copy
    assert {str(path.parent.relative_to(installed)) for path in copies} == {
        "tang_attest",
        "tang_attest/protocol",
        "tang_attest/protocol/coverage",
        "tang_attest/protocol/eventlog",
        "tang_attest/protocol/values",
    }


def test_the_prediction_imports_the_parser_and_nothing_else_of_the_server() -> None:
    """Neither a library nor a part of the server that an enrolled machine has not."""
    ours = {
        "tang_attest.errors",
        *(f"tang_attest.protocol.eventlog.{name}" for name in ("constants", "parse", "replay", "structures")),
    }
    for path in (PIN / "predict").rglob("*.py"):
        for name in imports(path):
            top = name.partition(".")[0]
            assert name in ours or top == "predict" or top in sys.stdlib_module_names, f"{path.name}: {name}"


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            yield node.module


def test_an_older_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, before anything that it could not read."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer"):
        runpy.run_path(str(PIN / "predict/__main__.py"), run_name="__main__")


@pytest.mark.slow
def test_without_python_there_is_one_sentence(machine: Machine, tmp_path: Path) -> None:
    """The pin itself works without; only the prediction asks for it."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for directory in ("/usr/sbin", "/usr/bin", "/bin"):
        for tool in Path(directory).iterdir():
            if not tool.name.startswith("python") and not (tools / tool.name).is_symlink():
                (tools / tool.name).symlink_to(tool)
    machine.extra |= {"PATH": f"{PIN}:{tools}", "CLEVIS_ATTEST_EVENT_LOG": str(tmp_path / "log")}
    result = machine.run("clevis-attest-predict", "--print")
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"tang-attest: predicting the next boot needs python3, 3.11 or newer\n"


def test_a_checkout_is_not_written_to(program: Program) -> None:
    """Root runs it; compiled files in /usr/lib would belong to no package."""
    before = set(PIN.rglob("*.pyc"))
    program.predict()
    assert set(PIN.rglob("*.pyc")) == before
    assert "python3 -I -S -B" in (PIN / "clevis-attest-predict").read_text()


# --- what it prints -----------------------------------------------------------------------------------------


def test_an_announcement_has_four_lines(program: Program) -> None:
    """Label, values, their digest, and the changes; the shell reads them."""
    grub = program.installed
    assert isinstance(grub, Grub)
    grub.initrds["6.1.0-28"] = b"rebuilt"
    grub.install()
    lines = program.predict("--label", "r\u00e9", form="announce").stdout.split("\n")
    assert lines[0] == "r??"
    assert len(lines) == 5
    assert json.loads(f"[{lines[3]}]") == ["PCR 9: /boot/initrd.img-6.1.0-28"]


def test_without_values_of_a_tpm_the_log_is_read_all_the_same(program: Program) -> None:
    """Exit code 5 and no word: the caller knows why; a log that is missing is said first."""
    command = [*program.command, "json", "--selection", SELECTION, "--cap", "15"]
    log = program.directory / "log"
    for content, code, said in ((program.log, 5, ""), (b"", 1, "cannot read the event log")):
        log.write_bytes(content)
        result = subprocess.run(
            command,
            env={"CLEVIS_ATTEST_EVENT_LOG": str(log)},
            input="",
            capture_output=True,
            text=True,
            check=False,
        )
        assert (result.returncode, result.stdout) == (code, "")
        assert said in result.stderr
        assert bool(said) == bool(result.stderr)


# --- logs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", ["sha256", "sha384"])
@pytest.mark.parametrize("log", sorted(w.VECTORS.glob("*.bin")), ids=lambda path: path.name)
def test_a_log_of_a_real_machine_is_read(log: Path, bank: str) -> None:
    """Exactly those that have the bank."""
    try:
        replay(parse(log.read_bytes()), bank)
    except Malformed:
        with pytest.raises(NoPrediction, match=f"no {bank} digest|SHA-1 format"):
            prediction.read_log(log, bank)
    else:
        assert prediction.read_log(log, bank) == parse(log.read_bytes())


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (b"", "cannot read the event log"),
        (w.sha1_only(w.FIRMWARE), "old SHA-1 format"),
        (w.agile((w.SHA256,), [w.Measurement(24, w.EV_SEPARATOR, b"")]), "PCR index 24"),
        (w.agile((w.SHA256,), [w.Measurement(0, w.EV_SEPARATOR, b"x" * 140_000)]), "over 131072 bytes"),
        (w.agile((w.SHA384,), w.FIRMWARE), "no sha256 digest"),
    ],
    ids=["empty", "sha1", "pcr", "size", "bank"],
)
def test_a_bad_log_is_refused(program: Program, log: bytes, said: str) -> None:
    """One sentence says what is wrong with it."""
    program.log = log
    result = program.predict()
    assert (result.returncode, result.stdout) == (1, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@given(st.integers(0, 700), st.integers(0, 255))
@settings(deadline=None, max_examples=60)
def test_a_log_is_refused_when_the_server_refuses_it(
    tmp_path_factory: pytest.TempPathFactory, size: int, byte: int
) -> None:
    """Wherever it is cut, and whatever byte is behind that."""
    log = w.agile((w.SHA256,), w.FIRMWARE[:3])[:size] + bytes([byte])
    file = tmp_path_factory.getbasetemp() / f"log-{os.getpid()}"
    file.write_bytes(log)
    try:
        expected = parse(log)
    except Malformed:
        expected = None
    try:
        read = prediction.read_log(file, "sha256")
    except NoPrediction:
        read = None
    if expected is None or expected.format == "sha1":
        assert read is None
    else:
        assert read == expected


# --- other words and other firmware -------------------------------------------------------------------------


def predicted(program: Program, *options: str | Path) -> tuple[dict[int, str], dict[int, str]]:
    """The values, and the sentences of PCRs that have none."""
    pcrs = json.loads(program.predict(*options).stdout)["pcrs"]
    return (
        {p["pcr"]: p["value"] for p in pcrs if p["state"] != "unpredictable"},
        {p["pcr"]: p["because"] for p in pcrs if p["state"] == "unpredictable"},
    )


@pytest.mark.parametrize("pcrs", [(0, 4, 7, 9), (8,), (10,)])
def test_the_separator_of_newer_systemd_is_known(program: Program, pcrs: tuple[int, ...]) -> None:
    """systemd 261 extends it early in the initrd, so the next boot has it too; PCR 8 is none of its PCRs."""
    word = hashlib.sha256(b"os-separator").digest()

    def separated(values: dict[int, str]) -> dict[int, str]:
        """With the word in *pcrs*."""
        more = {
            pcr: hashlib.sha256(bytes.fromhex(values.get(pcr, "00" * 32)) + word).hexdigest() for pcr in pcrs
        }
        return values | more

    program.values = separated(values_of(program.log))
    grub = program.installed
    assert isinstance(grub, Grub)
    grub.initrds["6.1.0-28"] = b"rebuilt"
    grub.install()
    values, without = predicted(program)
    if pcrs == (8,):
        assert "something extended it after the boot" in without.pop(8)
        return
    assert values == {pcr: v for pcr, v in separated(values_of(grub.log())).items() if pcr in values}
    assert without == {}


@pytest.mark.parametrize("sized", [True, False])
def test_u_boot_needs_the_files_that_come_next(tmp_path: Path, sized: bool) -> None:
    """Its scripts are not read; where ``booti`` measured the word linux, no file is needed."""
    boot = UBoot(tmp_path / "root", sized=sized)
    program = Program(boot, tmp_path)
    program.boot()
    _, without = predicted(program)
    assert set(without) == ({1, 8, 9} if sized else {1, 9})
    assert "give --initrd" in without[9]
    boot.kernel, boot.initrd, boot.options = b"linux 29", b"initrd 29", "root=/dev/mapper/root loud"
    boot.install()
    given = (
        "--kernel",
        boot.root / "boot/Image",
        "--initrd",
        boot.root / "boot/initrd.img",
        "--cmdline",
        boot.options,
    )
    values, without = predicted(program, *given)
    assert without == {}
    assert values == values_of(boot.log())


def test_u_boot_of_a_real_machine(tmp_path: Path) -> None:
    """A recorded log: PCR 8 has no kernel, and the command line is that of the log."""
    log = (ROOT / "tests/vectors/eventlogs-arm64/uboot-booti.bin").read_bytes()
    program = Program(UBoot(tmp_path / "root"), tmp_path, log)
    program.installed.install()
    options = "console=ttyAMA0 quiet loglevel=3 mitigations=off cryptomgr.notests panic=-1"
    values, without = predicted(program, "--cmdline", options)
    assert set(without) == {9}
    assert values == {pcr: value for pcr, value in values_of(log).items() if pcr != 9}


def test_another_image_of_u_boot_changes_nothing_else(tmp_path: Path) -> None:
    """A U-Boot with EFI starts systemd-boot or an image, which are understood."""
    for name, loader in (("uboot-efi-systemd-boot", Loader.SYSTEMD_BOOT), ("uboot-efi-uki", Loader.UNIFIED)):
        log = parse((ROOT / f"tests/vectors/eventlogs-arm64/{name}.bin").read_bytes())
        found = classify(log, lambda data: hashlib.sha256(data).digest(), "sha256")
        assert (found.loader, found.unknown) == (loader, ())


# --- the table ----------------------------------------------------------------------------------------------


def test_the_documentation_has_the_table() -> None:
    """Every row of predict/measured.py, in its order."""
    text = (ROOT / "docs/how-to/updates/predict.md").read_text()
    rows = [f"| {row.loader.value} | {row.pcr} | {row.kind.value} | {row.source} |" for row in TABLE]
    assert "\n".join(rows) in text


@pytest.mark.slow
def test_a_machine_predicts_with_what_is_installed(
    run_machine: object, installed: Path, machine: Machine, tmp_path: Path
) -> None:
    """The scripts find their functions and the prediction below /usr, wherever that is."""
    running = Running(machine, Grub(tmp_path / "root"))
    running.installed.install()
    running.boot()
    machine.extra["PATH"] = f"{installed.parent.parent / 'bin'}:{os.environ['PATH']}"
    assert running.predicted().values == values_of(running.installed.log())
