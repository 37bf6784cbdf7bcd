"""Transcripts: what is typed, what the program answers, and what machines do meanwhile.

    # A paragraph that says what is required.
    $ tang-attest token create --name pi-b --record
    <token:key>
    ! hint: it is good once, until <minute>, and is not shown again
    * pi-b enrolls with $token
    enrolled
    $ tang-attest token create
    ! tang-attest: a token either records a policy or names an existing one (setting-invalid)
    ! hint: correct the named setting or option; docs/settings.md and the command's --help explain it
    [1]

Under a command stand the lines of its stdout, those of its stderr after ``! ``, and its exit code when that is not 0.
``<kind>`` stands for text of a kind (:data:`KINDS`), ``<name:kind>`` also remembers it as ``$name``.  Columns stand two
spaces apart, however wide they are.  Files that a transcript needs follow it, each after
a line ``-- NAME --``.  A command that is not ``tang-attest`` runs in bash; ``*`` tells what a machine does.

    python -m tests.cli.transcript [FILE ...]        runs transcripts and writes the answers anew; look at the diff
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import structlog

from tang_attest.cli import main, progress
from tests.cli import forked

DIRECTORY = Path(__file__).parent / "transcripts"

#: Expressions of placeholders.
KINDS = {
    "key": r"[A-Za-z0-9_-]{43}",
    "time": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC",
    "minute": r"\d{4}-\d\d-\d\d \d\d:\d\d UTC",
    "iso": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)",
    "stamp": r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d",
    "hex": r"[0-9a-f]{32,}",
    "id": r"[0-9a-f]{16}",
    "any": r".*?",
}
#: Generalizations of a new answer; the order matters.
_GENERALIZED = ("iso", "time", "minute", "stamp", "hex", "key", "id")

_PLACEHOLDER = re.compile(r"<(?:([a-z]\w*):)?(" + "|".join(KINDS) + r")>")

#: Return the result of *line*, an act of a machine ("pi-b unlocks").
Act = Callable[[str], str]


@dataclass
class Step:
    """One command and its answer."""

    line: str
    expected: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)


@dataclass
class Transcript:
    """Steps, and the files they need."""

    steps: list[Step]
    after: list[str]
    files: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Transcript:
        """Read a transcript; a line that is nothing known raises."""
        body, *parts = re.split(r"^-- (\S+) --\n", text, flags=re.MULTILINE)
        steps: list[Step] = []
        notes: list[str] = []
        for line in body.splitlines():
            if line.startswith(("$ ", "* ")):
                steps.append(Step(line, before=notes))
                notes = []
            elif not line or line.startswith("# "):
                notes.append(line)
            elif not steps or notes:
                raise ValueError(f"an answer without a command: {line}")
            else:
                steps[-1].expected.append(line)
        return cls(steps, notes, dict(zip(parts[::2], parts[1::2], strict=True)))

    def dump(self) -> str:
        """As it is written."""
        lines = [line for step in self.steps for line in (*step.before, step.line, *step.expected)]
        files = "".join(f"-- {name} --\n{content}" for name, content in self.files.items())
        return "\n".join([*lines, *self.after]) + "\n" + files


class Player:
    """Runs transcripts in the current directory, whose ``state`` is the program's."""

    def __init__(self, act: Act) -> None:
        self._act = act
        self._names: dict[str, str] = {}

    def play(self, step: Step) -> list[str]:
        """The answer to *step*, in the form of a transcript."""
        command = self._fill(step.line[2:])
        if step.line.startswith("* "):
            return [self._act(command)]
        first, *_ = shlex.split(command)
        stdout, stderr, code = _program(command) if first == "tang-attest" else _shell(command)
        answer = [_squeeze(line) for line in stdout.splitlines()]
        answer += [_squeeze(f"! {line}") for line in stderr.splitlines()]
        return answer + ([f"[{code}]"] if code else [])

    def matches(self, expected: list[str], actual: list[str]) -> bool:
        """True when every line is as *expected*; remembers what placeholders name."""
        return len(expected) == len(actual) and all(map(self._match, expected, actual))

    def _match(self, expected: str, actual: str) -> bool:
        if expected == actual:  # a message that itself says <hex>
            return True
        pattern, position = "", 0
        for placeholder in _PLACEHOLDER.finditer(expected):
            pattern += re.escape(self._fill(expected[position : placeholder.start()]))
            name, kind = placeholder.groups()
            pattern += f"(?P<{name}>{KINDS[kind]})" if name else f"(?:{KINDS[kind]})"
            position = placeholder.end()
        pattern += re.escape(self._fill(expected[position:]))
        match = re.fullmatch(pattern, actual)
        if match is not None:
            self._names |= match.groupdict()
        return match is not None

    def _fill(self, text: str) -> str:
        return re.sub(r"\$([a-z]\w*)", lambda name: self._names.get(name[1], name[0]), text)


def generalize(answer: list[str]) -> list[str]:
    """*answer* with placeholders for what differs each time."""
    lines = []
    for line in answer:
        general = line
        for kind in _GENERALIZED:
            general = re.sub(rf"(?<![\w<-]){KINDS[kind]}(?![\w-])", f"<{kind}>", general)
        lines.append(general)
    return lines


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """The same operator, state and configuration on every machine, and nothing of the real ones."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TANG_ATTEST_") and name != "CREDENTIALS_DIRECTORY"
    }
    fixed = {
        "SUDO_USER": "alice",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "TANG_ATTEST_CONFIG": os.devnull,  # not this machine's
        "TANG_ATTEST_STATE": "state",
        **variables,
    }
    with mock.patch.dict(os.environ, kept | fixed, clear=True):
        time.tzset()
        yield
    time.tzset()
    structlog.reset_defaults()  # serve configured it for a stderr that is gone


#: A busy machine may take longer than the two seconds after which a command reports its progress.
_NO_PROGRESS_S = 3600.0


def run(*arguments: str, stdin: bytes = b"") -> tuple[str, str, int]:
    """``tang-attest`` in this process, as its entry point: stdout, stderr and exit code."""
    out, err = io.StringIO(), io.StringIO()
    source = io.TextIOWrapper(io.BytesIO(stdin))
    with (
        mock.patch.object(sys, "argv", ["tang-attest", *arguments]),
        mock.patch.object(sys, "stdin", source),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(progress, "EVERY_S", _NO_PROGRESS_S),
    ):
        try:
            main()
        except SystemExit as stop:
            return out.getvalue(), err.getvalue(), int(stop.code or 0)
    return out.getvalue(), err.getvalue(), 0


def _program(command: str) -> tuple[str, str, int]:
    command, _, source = command.partition(" < ")
    words = shlex.split(command)
    if "serve" in words:  # it has worker processes, which write to the real stderr
        done = forked.run(forked.command(*words[1:]), text=True, timeout=120)
        return done.stdout, done.stderr, done.returncode
    return run(*words[1:], stdin=Path(source).read_bytes() if source else b"")


def _shell(command: str) -> tuple[str, str, int]:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    return done.stdout, done.stderr, done.returncode


def _squeeze(line: str) -> str:
    return re.sub(r"(?<=\S) {2,}(?=\S)", "  ", line).rstrip()


def _rewrite(path: Path, directory: Path) -> None:
    from tests.cli.fleet import prepare

    transcript = Transcript.parse(path.read_text())
    with contextlib.chdir(directory), environment(), prepare(Path(), transcript.files) as machines:
        player = Player(machines.act)
        for step in transcript.steps:
            answer = player.play(step)
            if not player.matches(step.expected, answer):
                step.expected = generalize(answer)
                player.matches(step.expected, answer)
    path.write_text(transcript.dump())


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(map(str, DIRECTORY.rglob("*.txt"))):
        with tempfile.TemporaryDirectory() as temporary:
            _rewrite(Path(name).absolute(), Path(temporary))
