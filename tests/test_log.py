"""Log lines tell an operator enough, and nobody a secret."""

from __future__ import annotations

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
    import json

    log.configure("json", "info")
    structlog.get_logger("test").info("request", status=200)
    structlog.reset_defaults()
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["status"], line["level"]) == ("request", 200, "info")
    assert line["timestamp"].endswith("Z")
