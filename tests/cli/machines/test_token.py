"""``tang-attest token``, beyond its transcript."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from pathlib import Path

from tests.cli.serving import serving
from tests.cli.transcript import environment, run


def test_the_token_is_nowhere_on_the_disk(tmp_path: Path) -> None:
    """A reader of the database, its write-ahead log or a backup cannot enroll with its contents."""
    state = tmp_path / "state"
    with environment():
        arguments = ["--state", str(state)]
        assert run(*arguments, "init")[2] == 0
        # While a server has the database open, the log is not merged into it.
        with serving(tmp_path):
            plain = run(*arguments, "token", "create", "--record", "--name", "pi-b")[0].strip()
            as_json = json.loads(run(*arguments, "token", "create", "--record", "--json")[0])["token"]
            listings = run(*arguments, "token", "list", "--json")[0] + run(*arguments, "audit", "--json")[0]
            files = {path: path.read_bytes() for path in state.iterdir()}
    assert any(path.name.endswith("-wal") and content for path, content in files.items())
    assert any(b"pi-b" in content for content in files.values())
    for token in (plain, as_json):
        assert len(token) == 43
        assert token not in listings
        for path, content in files.items():
            assert token.encode() not in content, path
            assert urlsafe_b64decode(token + "=") not in content, path


def test_tokens_differ(tmp_path: Path) -> None:
    """Each is 256 fresh random bits."""
    with environment():
        arguments = ["--state", str(tmp_path / "state")]
        assert run(*arguments, "init")[2] == 0
        tokens = {run(*arguments, "token", "create", "--record")[0] for _ in range(5)}
    assert len(tokens) == 5
