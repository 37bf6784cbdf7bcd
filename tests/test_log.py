"""Log lines tell an operator enough, and nobody a secret."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import ClassVar

import pytest
import structlog

from tang_attest import log


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_traceback_shows_no_local_variables(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A defect is logged with its traceback; the values around it may be keys."""
    log.configure(log_format, "info")
    # Put together here, so that the line of source in the traceback does not hold it.
    secret = "-".join(["very", "secret", "value"])
    try:
        raise RuntimeError(f"boom {len(secret)}")  # noqa: TRY301 - the traceback is what is tested
    except RuntimeError:
        structlog.get_logger("test").exception("defect")
    finally:
        structlog.reset_defaults()
    text = capsys.readouterr().err
    assert "boom 17" in text
    assert "test_log.py" in text
    assert "very-secret-value" not in text


def test_json_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    """One object for each line, with a time and a level."""
    log.configure("json", "info")
    structlog.get_logger("test").info("request", status=200)
    structlog.reset_defaults()
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["status"], line["level"]) == ("request", 200, "info")
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    "members",
    [
        {"status": 200, "code": "ok", "target": "/rec/abc", "address": None, "words": ["a b", 1]},
        {"target": "/rec/a b", "address": "fe80::1%eth0", "code": ""},
        {"target": 'say "x"', "other": "it's", "equal": "a=b", "tab": "a\tb", "end": "a\nb\r"},
        {},
    ],
)
def test_a_line_for_eyes_is_structlogs(
    members: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines are laid out as structlog's renderer does it, which programs of operators may read."""
    log.configure("console", "info")
    structlog.get_logger("test").warning("request", **members)
    structlog.reset_defaults()
    line = capsys.readouterr().err
    laid_out = structlog.dev.ConsoleRenderer(colors=False)(
        None, "", {"timestamp": line.split(" ")[0], "level": "warning", "event": "request", **members}
    )
    assert line == f"{laid_out}\n"


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize(
    "target", ["/a\n2026-11-27T00:00:00Z [info     ] forged", "/\x1b[2J", "/a code=ok", "/\u2028x", "/\x9b2J"]
)
def test_text_of_clients_adds_no_line_and_commands_no_terminal(
    log_format: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line comes out, of visible characters, with the text inside of quotes."""
    log.configure(log_format, "info")
    structlog.get_logger("web").info("request", target=target)
    structlog.reset_defaults()
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert repr(target) in text or json.dumps(target) in text


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_line_and_its_end_are_one_write(monkeypatch: pytest.MonkeyPatch, log_format: str) -> None:
    """Nothing that other threads log comes between a line and its end."""

    class Writes(io.StringIO):
        seen: ClassVar[list[str]] = []

        def write(self, text: str) -> int:
            self.seen.append(text)
            return len(text)

    Writes.seen.clear()
    monkeypatch.setattr(sys, "stderr", Writes())
    log.configure(log_format, "info")
    structlog.get_logger("web").info("request", status=200)
    logging.getLogger("store").warning("the database is away")
    structlog.reset_defaults()
    assert len(Writes.seen) == 2
    assert all(text.endswith("\n") and text.count("\n") == 1 for text in Writes.seen)
