"""Output of the command line, and its end when nobody reads it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
import structlog

from tang_attest import log
from tang_attest.cli import main, output
from tang_attest.errors import Malformed, NotFound, Reason, Refused
from tests.cli import forked
from tests.cli.forked import command
from tests.cli.serving import PATIENCE_S, clean_environment
from tests.cli.transcript import environment, run


@pytest.mark.parametrize(
    ("sentence", "spoken"),
    [
        ("The key is not an EC key.", "the key is not an EC key"),
        ("A PCR is named twice.", "a PCR is named twice"),
        ("PCR 7 does not match.", "PCR 7 does not match"),
        ("EK certificate is too old.", "EK certificate is too old"),
        ("TPM2_Quote was not used.", "TPM2_Quote was not used"),
        ("X is not on the curve.", "X is not on the curve"),
        ("Ak.pub cannot be read.", "Ak.pub cannot be read"),
        ("Line 3: nonsense.", "line 3: nonsense"),
        ("/tmp/X cannot be read.", "/tmp/X cannot be read"),
        ("", ""),
    ],
)
def test_errors_in_lower_case(sentence: str, spoken: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence goes on after the program's name; names, file names too, keep their letters."""
    output.error(Malformed("key-malformed", sentence))
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"tang-attest: {spoken} (key-malformed)"
    assert second == "hint: check the key file: it must be a JWK or the format that the option names"


def test_every_reason_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """All mismatches at once, under one hint."""
    output.error(Refused.because(Reason("pcr-mismatch", "PCR 4 is wrong."), Reason("capped", "It is late.")))
    assert capsys.readouterr().err.splitlines() == [
        "tang-attest: PCR 4 is wrong (pcr-mismatch)",
        "tang-attest:   it is late",
        "hint: if you changed the machine's software, run 'tang-attest approve DEVICE' on the server; if not, find out why it differs",
    ]


def test_control_characters_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate's subject may hold an escape sequence or a line break; it is shown, not obeyed."""
    output.table(("label",), [("CN=\x1b[2J\x9b1m\r\n[red]Müller[/red]",)], empty="")
    output.say("trusted: \x1b]0;owned\x07\nline")
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].rstrip() == r"CN=\x1b[2J\x9b1m\r\n[red]Müller[/red]"
    assert captured.err == "tang-attest: trusted: \\x1b]0;owned\\x07\\nline\n"


@pytest.fixture
def berlin() -> Iterator[None]:
    """A time zone that is not UTC."""
    with environment(TZ="Europe/Berlin"):
        yield


def test_a_table_on_a_pipe_is_whole(berlin: None, capsys: pytest.CaptureFixture[str]) -> None:
    """No cell is cut or folded, however long; a time is local and names its zone."""
    long = "x" * 5000
    output.table(("one", "two"), [(long, None), (True, datetime(2026, 1, 2, tzinfo=UTC))], empty="")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ONE", "TWO"],
        [long, "-"],
        ["yes", "2026-01-02", "01:00:00", "CET"],
    ]


TTY = (
    "from tang_attest.cli import output; import sys;"
    "output.table(('kid', 'note', 'more'), [('k' * 90, 'a long sentence ' * 9, 'extra')], '', "
    "extra=('more',), prose=('note',), wide='--wide' in sys.argv)"
)


def on_a_terminal(*arguments: str, **variables: str) -> str:
    """The text of a terminal of 80 columns on which a table of three columns was drawn."""
    terminal, side = pty.openpty()
    environ = {**clean_environment(), "COLUMNS": "80", "TERM": "xterm", **variables}
    command = [sys.executable, "-c", TTY, *arguments]
    with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environ) as process:
        os.close(side)
        said = b""
        with contextlib.suppress(OSError):  # the other side is closed
            while chunk := os.read(terminal, 4096):
                said += chunk
        assert process.wait(PATIENCE_S) == 0
    os.close(terminal)
    return said.decode().replace("\r", "")


def test_a_terminal_shows_whole_values_and_few_columns() -> None:
    """A thumbprint is in one piece, so that it can be copied; a sentence is folded; --wide shows the rest."""
    narrow, wide = on_a_terminal(NO_COLOR="1"), on_a_terminal("--wide", NO_COLOR="1")
    for text in (narrow, wide):
        assert "k" * 90 in text
        assert "…" not in text
        assert len(text.splitlines()) > 3
    assert "extra" not in narrow
    assert "extra" in wide


def test_no_color() -> None:
    """NO_COLOR, when it is not empty, keeps every style off a table."""
    assert "\x1b[" not in on_a_terminal(NO_COLOR="1")
    assert "\x1b[1m" in on_a_terminal(NO_COLOR="")


@pytest.mark.parametrize(("value", "colored"), [("1", False), ("", True)])
def test_no_color_in_the_log(value: str, colored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log, too."""
    terminal, side = pty.openpty()
    monkeypatch.setenv("NO_COLOR", value)
    with os.fdopen(side, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        try:
            log.configure("console", "info")
            structlog.get_logger().warning("something happened")
            stderr.flush()
            assert (b"\x1b[" in os.read(terminal, 4096)) == colored
        finally:
            structlog.reset_defaults()
            logging.getLogger().handlers = [h for h in logging.getLogger().handlers if h.name != log.HANDLER]
    os.close(terminal)


def test_json_values(berlin: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes are hex and times RFC 3339 in UTC; what has no form is an error, not text that looks like one."""
    output.print_json({"bytes": b"\x01\xff", "at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)})
    assert json.loads(capsys.readouterr().out) == {"bytes": "01ff", "at": "2026-01-02T03:04:05Z"}
    with pytest.raises(TypeError, match="cannot print object"):
        output.print_json(object())


# --- ends --------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """An initialized state."""
    with environment():
        assert run("--state", str(tmp_path / "state"), "init")[2] == 0
    return tmp_path / "state"


@pytest.mark.parametrize("arguments", [["audit"], ["audit", "--json"], ["--help"], ["keys", "list"]])
def test_a_reader_that_left(arguments: list[str], state: Path) -> None:
    """`tang-attest audit | head -0` ends without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = forked.run(
            command("--state", state, *arguments),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            env=clean_environment(),
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_disk(state: Path) -> None:
    """A failed write is not reported as a success."""
    with Path("/dev/full").open("wb") as full:
        done = forked.run(
            command("--state", state, "audit", "--json"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE_S,
            env=clean_environment(),
        )
    assert done.returncode != 0


def test_ctrl_c(state: Path) -> None:
    """A command that waits for an answer is interrupted: exit code 130, one line, nothing changed."""
    with environment():
        arguments = ["--state", str(state)]
        assert run(*arguments, "policy", "create", "web", "--selection", "sha256:0")[2] == 0
    process = subprocess.Popen(
        command("--state", state, "policy", "record", "web", "--file", "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        # A shell that runs the tests in the background ignores the signal for all of them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - no thread runs here
    )
    wait_until_it_reads(process.pid)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stderr.strip()) == (130, "tang-attest: interrupted")


def wait_until_it_reads(pid: int) -> None:
    """Until the process sleeps in a read of its stdin."""
    deadline = time.monotonic() + PATIENCE_S
    while "pipe_read" not in Path(f"/proc/{pid}/wchan").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_interrupt_inside_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any point of a command."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(click.Group, "invoke", interrupted)
    monkeypatch.setattr(sys, "argv", ["tang-attest", "audit"])
    error = io.StringIO()
    monkeypatch.setattr(sys, "stderr", error)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert error.getvalue().strip() == "tang-attest: interrupted"


def csv_of(*rows: tuple[object, ...]) -> str:
    """Return the output of :func:`output.print_csv` under the columns ``a`` and ``b``."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        output.print_csv(("a", "b"), rows)
    return out.getvalue()


def test_csv_is_rfc_4180() -> None:
    """CR LF ends a line, quotes are doubled, and a reader gets back what was written."""
    rows = [('say "hi", twice', "two\nlines"), (None, True), (-1, {"ä": [1, None]})]
    text = csv_of(*rows)
    assert text.startswith('a,b\r\n"say ""hi"", twice","two\nlines"\r\n,true\r\n-1,')
    assert list(csv.reader(io.StringIO(text, newline="")))[3] == ["-1", '{"\\u00e4": [1, null]}']


@pytest.mark.parametrize(
    "text",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "\uff1d1",
        "-kid",
        "=cmd|' /C calc'!A0",
        "\uff201",
    ],
)
def test_no_cell_is_a_formula(text: str) -> None:
    """A name or an address comes from outside, and a spreadsheet would compute it."""
    ((cell, plain),) = list(csv.reader(io.StringIO(csv_of((text, "plain")), newline="")))[1:]
    assert (cell, plain) == (f"'{text}", "plain")


@pytest.mark.parametrize(
    "arguments",
    [
        ("device", "show", "pi\udcff"),
        ("token", "revoke", "\udc80"),
        ("audit", "list", "--who", "\udcff"),
        ("policy", "apply", "web", "--file", "\udce4.yaml"),
    ],
)
def test_an_argument_that_is_not_utf_8(arguments: tuple[str, ...]) -> None:
    """It is told before anything is opened; SQLite, a digest and a file name ended in tracebacks."""
    stdout, stderr, code = run(*arguments)
    assert (stdout, code) == ("", 2)
    assert stderr == f"tang-attest: argument {len(arguments)} is not UTF-8\nhint: run 'tang-attest --help'\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("observation", "show"),
        ("observation", "dismiss"),
        ("approve", "pi-b", "--observation"),
        ("audit", "list", "--before"),
    ],
)
@pytest.mark.parametrize("number", ["0", "-1", "9223372036854775808", "9" * 23, "pi-b"])
def test_a_number_that_no_row_has(arguments: tuple[str, ...], number: str) -> None:
    """It is an error of the command line; above 64 bits it was an OverflowError of the database."""
    _, stderr, code = run(*arguments, number)
    assert code == 2
    assert "is not in the range" in stderr or "is not a valid integer" in stderr or "no such option" in stderr


def test_qualifying_data_longer_than_a_path(tmp_path: Path) -> None:
    """The system cannot even look for such a file."""
    (tmp_path / "file").write_bytes(b"x")
    files = [word for name in ("-u", "-m", "-s") for word in (name, str(tmp_path / "file"))]
    _, stderr, code = run("checkquote", *files, "-q", "x" * 5000)
    assert code == 2
    assert "is neither a file nor at most" in stderr


def test_a_file_of_settings_without_an_end(tmp_path: Path) -> None:
    """It is not read into memory as long as it lasts."""
    with (tmp_path / "huge.toml").open("wb") as file:
        file.truncate(1 << 34)
    _, stderr, code = run("--config", str(tmp_path / "huge.toml"), "device", "list")
    assert code == 1
    assert "has more than 1048576 bytes (setting-invalid)" in stderr


@pytest.mark.parametrize("arguments", [("operator", "add", "alice"), ("admin-token", "create", "ci")])
def test_a_missing_choice_is_one_sentence(arguments: tuple[str, ...]) -> None:
    """Choices are listed in lines by click, whose ends were printed as backslashes."""
    _, stderr, code = run(*arguments)
    assert (code, len(stderr.splitlines())) == (2, 2), stderr
    assert "\\" not in stderr


def test_spaces_of_a_wrong_value_are_shown_as_given() -> None:
    """Only the ends of lines are click's own."""
    _, stderr, _ = run("policy", "require-approval", "web", "a  b")
    assert "'a  b'" in stderr


def test_what_is_not_found_leads_to_a_command_that_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these commands exists; a sentence about another thing keeps the general hint."""
    for words, listing in output._LISTED_BY:
        hints: list[str] = []
        monkeypatch.setattr(output, "hint", hints.append)
        output.error(NotFound("not-found", f"There is{words}'x'." if words[0] == " " else f"{words}for 'x'."))
        assert hints == [f"run 'tang-attest {listing}' to see what exists, and check the name"]
        assert run(*listing.split()[:3], "--help")[2] == 0, listing
    hints = []
    monkeypatch.setattr(output, "hint", hints.append)
    output.error(NotFound("not-found", "This session is over already."))
    assert hints == ["list what exists, and check the name"]
