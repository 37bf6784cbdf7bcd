"""``--owner-auth-file``: the server's TPM has a password for its owner hierarchy."""

from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest

from tests.cli import forked
from tests.pin.machine import Operator
from tests.swtpm import Swtpm

pytestmark = pytest.mark.slow


def _doctor(operator: Operator, tpm: Swtpm, *options: str) -> str:
    """The line about the TPM."""
    found = operator.try_run("--server-tpm", tpm.tcti, *options, "doctor")
    return next(line for line in found.stdout.splitlines() if "server tpm:" in line)


def test_the_password_comes_out_of_a_file(tmp_path: Path) -> None:
    """Without the file the sentence names it; a wrong one is told; the right one works, with or without a line end."""
    operator, file = Operator(tmp_path / "state"), tmp_path / "auth"
    with Swtpm(tmp_path / "tpm") as tpm:
        tpm.run("tpm2", "changeauth", "-c", "o", "secret")
        missing = _doctor(operator, tpm)
        assert "has a password" in missing
        assert "owner_auth_file" in missing
        file.write_text("wrong\n")
        assert "is not that of its owner hierarchy" in _doctor(operator, tpm, "--owner-auth-file", str(file))
        for content in ("secret", "secret\n"):
            file.write_text(content)
            assert "it answers" in _doctor(operator, tpm, "--owner-auth-file", str(file))
        absent = _doctor(operator, tpm, "--owner-auth-file", str(tmp_path / "nowhere"))
        assert "cannot be read" in absent


def test_a_person_at_a_terminal_is_asked(tmp_path: Path) -> None:
    """Unseen; nobody is asked when the output goes to a program."""
    operator = Operator(tmp_path / "state")
    with Swtpm(tmp_path / "tpm") as tpm:
        tpm.run("tpm2", "changeauth", "-c", "o", "secret")
        command = forked.command("--state", operator.state, "--server-tpm", tpm.tcti)
        said = _typed([*command, "doctor"], b"hierarchy: ", b"secret\n")
    assert "Password of the TPM's owner hierarchy" in said
    assert "it answers" in said
    assert "secret" not in said


def _typed(command: list[str], prompt: bytes, answer: bytes) -> str:
    """Return the text of a terminal on which a person answers the prompt."""
    terminal, side = pty.openpty()
    with forked.Popen(command, stdin=side, stdout=side, stderr=side, start_new_session=True) as process:
        os.close(side)
        said = b""
        while True:
            try:
                said += os.read(terminal, 4096)
            except OSError:  # the other side is closed
                break
            if prompt in said and answer:
                os.write(terminal, answer)
                answer = b""
        process.wait(120)
    os.close(terminal)
    return said.decode()
