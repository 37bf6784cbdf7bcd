"""The transcripts in ``transcripts/`` hold; see ``transcript.py`` for their form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.fleet import prepare
from tests.cli.transcript import DIRECTORY, Player, Transcript, environment

TRANSCRIPTS = sorted(DIRECTORY.rglob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=[path.stem for path in TRANSCRIPTS])
def test_transcript(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command of the transcript answers as it is written there."""
    transcript = Transcript.parse(path.read_text())
    monkeypatch.chdir(tmp_path)
    with environment(), prepare(tmp_path, transcript.files) as machines:
        player = Player(machines.act)
        for step in transcript.steps:
            answer = player.play(step)
            assert player.matches(step.expected, answer), "\n".join(
                [step.line, "--- expected", *step.expected, "--- answered", *answer]
            )


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=[path.stem for path in TRANSCRIPTS])
def test_errors_keep_the_rules(path: Path) -> None:
    """Program prefix, lower case, no full stop; what to do is on a line of its own; exit codes are 1, 2 or 130."""
    for step in Transcript.parse(path.read_text()).steps:
        if not step.line.startswith("$ tang-attest") or not re.fullmatch(
            r"\[\d+\]", "".join(step.expected[-1:])
        ):
            continue
        errors = [line.removeprefix("! ") for line in step.expected if line.startswith("! ")]
        assert step.expected[-1] in ("[1]", "[2]", "[130]")
        assert all(
            line.startswith(("tang-attest: ", "hint: ", "Destroy ", "Remove ", "Approve ")) for line in errors
        ), errors
        assert not any(line.endswith(".") for line in errors), errors


def test_an_answer_without_a_command() -> None:
    """A transcript that says nothing is not taken for one that holds."""
    with pytest.raises(ValueError, match="an answer without a command: enrolled"):
        Transcript.parse("enrolled\n")


def test_a_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference in a word, a line or an exit code does not match."""
    monkeypatch.chdir(tmp_path)
    transcript = Transcript.parse("$ echo one\none\n[2]\n")
    player = Player(str)
    answer = player.play(transcript.steps[0])
    assert answer == ["one"]
    assert player.matches(["one"], answer)
    for wrong in (["two"], ["one", "[2]"], ["one", ""], [], ["<key>"], ["one."], ["! one"]):
        assert not player.matches(wrong, answer)
