"""Each fuzz target is run for a moment with a fixed seed; and a target that fails is noticed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fuzz.run import NAMES, PREFIX, Fuzzing


def fuzz(module: str, directory: Path, *flags: str) -> tuple[int, str, list[Path]]:
    """Exit code, what libFuzzer says, and what it found."""
    fuzzing = Fuzzing(module, directory / "corpus", directory / "findings")
    process = fuzzing.start("-seed=7", *flags)
    said, _ = process.communicate(timeout=800)
    return process.returncode, said, fuzzing.found()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_a_target_finds_nothing(tmp_path: Path, name: str) -> None:
    """Its seeds and some thousand inputs made of them: parsers return, or raise what they promise."""
    code, said, found = fuzz(PREFIX + name, tmp_path, "--smoke")
    assert code == 0, said
    assert not found
    done = re.search(r"^Done (\d+) runs", said, re.MULTILINE)
    assert done, said
    assert int(done[1]) >= 200
    # Ours were instrumented before they were imported: without that the fuzzer is blind.
    covered = re.search(r"DONE\s+cov: (\d+)", said)
    assert covered, said
    assert int(covered[1]) > 50


def test_there_is_a_target_for_whatever_strangers_send() -> None:
    """One file each; a file that is no target would fail above."""
    assert {"evidence", "cap", "enrollment", "event_log", "ima", "jwk", "settings", "rules", "backup"} <= set(
        NAMES
    )


@pytest.mark.parametrize(
    ("flaw", "limit_s", "sign"),
    [
        (b"C", 600, "as a parser without a check would"),
        pytest.param(b"S", 5, "timeout after", marks=pytest.mark.slow),
        pytest.param(b"M", 600, "out-of-memory", marks=pytest.mark.slow),
    ],
    ids=["exception", "time", "memory"],
)
def test_a_finding_fails_the_run(tmp_path: Path, flaw: bytes, limit_s: int, sign: str) -> None:
    """An exception that is not ours, an input that takes long, one that takes memory; each is kept as a file."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "bad").write_bytes(b"\0" + flaw)
    code, said, found = fuzz("tests.fuzz.broken", tmp_path, "-runs=10", f"-timeout={limit_s}")
    assert code != 0
    assert sign in said
    assert [
        path.read_bytes() for path in found if path.name.split("-")[0] in {"crash", "timeout", "oom"}
    ] == [b"\0" + flaw]
