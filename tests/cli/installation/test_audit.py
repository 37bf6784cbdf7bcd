"""``tang-attest audit verify``: a server seals, somebody changes the database, and the command says what."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tang_attest.protocol.audit_chain import Seal
from tang_attest.server.sealing import HeadLog
from tests.attester import Attester
from tests.cli.installation.test_db import at
from tests.cli.serving import PATIENCE_S, Serving, program, serving
from tests.cli.transcript import environment
from tests.postgres import Postgres
from tests.store.samples import NOW


@pytest.fixture(autouse=True)
def _operator() -> Iterator[None]:
    with environment():
        yield


def sql(state: Path, *statements: str) -> None:
    """Change of an attacker who reaches the file."""
    with closing(sqlite3.connect(state / "tang-attest.db")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def report(state: Path, database: str | None = None) -> dict[str, Any]:
    """Output for programs."""
    stdout, _, _ = at(state, "audit", "verify", "--json", database=database)
    found: dict[str, Any] = json.loads(stdout)
    return found


def wait_until_sealed(state: Path, database: str | None = None) -> dict[str, Any]:
    """The report, once the server that runs has sealed everything."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := report(state, database))["unsealed"] or not found["seals"]:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def add_rows(state: Path, name: str, database: str | None = None) -> None:
    """Two rows."""
    assert at(state, "policy", "create", name, "--selection", "sha256:7", database=database)[2] == 0
    assert at(state, "policy", "create", f"{name}-2", "--selection", "sha256:7", database=database)[2] == 0


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rows under four seals, each made by a server of its own; nothing runs any more."""
    directory = tmp_path_factory.mktemp("sealed")
    state = directory / "state"
    with environment():
        assert at(state, "init")[2] == 0
        for number in range(4):
            if number:
                add_rows(state, f"p{number}")
            with serving(directory) as server:
                wait_until_sealed(state)
                assert server.stop() == 0
    return state


@pytest.fixture
def state(original: Path, tmp_path: Path) -> Path:
    """A copy."""
    return shutil.copytree(original, tmp_path / "state")


def heads(server: Serving) -> list[str]:
    """Those in the server's log."""
    return [record["head"] for record in server.records() if record["event"] == "audit-head"]


def test_all_is_well(state: Path) -> None:
    """The head is for a file, the sentence for a person; a head of before is in the chain."""
    stdout, stderr, code = at(state, "audit", "verify")
    assert code == 0
    assert re.fullmatch(
        r"tang-attest: 7 rows under 4 seals are as they were, the first sealed on [\d-]{10} [\d:]{8} UTC;"
        r" 0 newer rows are not sealed yet\n",
        stderr,
    )
    head = stdout.strip()
    add_rows(state, "later")
    stdout, stderr, code = at(state, "audit", "verify", "--expect", head)
    assert (stdout.strip(), code) == (head, 0)
    assert stderr.endswith("2 newer rows are not sealed yet\n")
    found = report(state)
    assert (found["rows"], found["seals"], found["unsealed"], found["findings"]) == (7, 4, 2, 0)
    assert head == f"{found['head']['seq']}:{found['head']['hash']}"


_INTRUDER = """INSERT INTO audit (id, at, event, actor, verdict, code, details)
    VALUES (-1, 1, 'unlock', 'device:pi-b', 'refused', 'pcr-mismatch', '{}')"""


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "UPDATE audit SET actor = 'operator:eve' WHERE id = 3",
            "rows 2 to 3 are not what seal 2 was made over,",
        ),
        ("DELETE FROM audit WHERE id = 1", "rows 1 to 1 are not what seal 1 was made over,"),
        ("DELETE FROM audit WHERE id = 4", ": 2 were sealed, 1 are there (audit-changed)"),
        ("DELETE FROM audit WHERE id = 7", "rows 6 to 7 are not what seal 4 was made over,"),
        (
            _INTRUDER,
            ": 1 were sealed, 2 are there (audit-changed)",
        ),
        ("DELETE FROM audit_seal WHERE seq = 1", "seal 1 is missing, made before "),
        ("DELETE FROM audit_seal WHERE seq IN (2, 3)", "seals 2 to 3 are missing, made before "),
        (
            "UPDATE audit_seal SET hash = zeroblob(32) WHERE seq = 4",
            "one was changed, or the seal (audit-changed)",
        ),
    ],
)
def test_a_change_of_the_file(state: Path, statement: str, said: str) -> None:
    """Each is named; nothing is printed that a script could take for a good head."""
    sql(state, statement)
    stdout, stderr, code = at(state, "audit", "verify")
    assert (stdout, code) == ("", 1)
    assert said in stderr
    assert stderr.splitlines()[-1].startswith("hint: compare the named rows with a backup")
    stdout, _, code = at(state, "audit", "verify", "--json")
    named = json.loads(stdout)["named"]
    assert (code, [found["code"] for found in named]) == (1, ["audit-changed"])
    assert {"seal", "first", "last", "sealed_at"} <= set(named[0])


def test_many_findings(state: Path) -> None:
    """One sentence for each seal."""
    sql(state, "UPDATE audit SET code = 'x'")
    _, stderr, code = at(state, "audit", "verify")
    assert code == 1
    assert [f"seal {seal} was made over" in stderr for seal in (1, 2, 3, 4, 5)] == [True] * 4 + [False]


def test_a_record_that_was_cut(state: Path) -> None:
    """A head that was noted tells; a head that cannot be one is a wrong command line."""
    head = at(state, "audit", "verify")[0].strip()
    sql(state, "DELETE FROM audit WHERE id > 5", "DELETE FROM audit_seal WHERE seq > 3")
    assert at(state, "audit", "verify")[2] == 0
    _, stderr, code = at(state, "audit", "verify", "--expect", head)
    assert code == 1
    assert "seal 4 was noted and is not there: the chain ends at seal 3, made at " in stderr
    assert "(audit-cut)" in stderr
    _, stderr, code = at(state, "audit", "verify", "--expect", "4")
    assert (code, "'4' is not a head" in stderr) == (2, True)
    _, stderr, code = at(state, "audit", "--json", "verify")
    assert (code, "options of 'audit verify' come after it" in stderr) == (2, True)


def test_a_record_without_seals(state: Path, tmp_path: Path) -> None:
    """Old rows that are not sealed are an error; a record that has just begun is not."""
    assert at(tmp_path / "new", "init")[2] == 0
    assert at(tmp_path / "new", "audit", "verify") == (
        "",
        "tang-attest: nothing is sealed; 1 newer rows are not sealed yet\n",
        0,
    )
    sql(state, "DELETE FROM audit_seal", "UPDATE audit SET at = at - 3600000000")
    _, stderr, code = at(state, "audit", "verify")
    assert (code, "the newest 7 rows are not sealed, the oldest of them since " in stderr) == (1, True)
    assert "(audit-unsealed)" in stderr


def test_the_head_is_in_the_log(tmp_path: Path) -> None:
    """The first at once, the last at the end: the row that was sealed by the stop."""
    state = tmp_path / "state"
    assert at(state, "init")[2] == 0
    with serving(tmp_path, "--log-format", "json", "--workers", "2") as server:
        first = wait_until_sealed(state)
        add_rows(state, "late")
        assert server.stop() == 0
        found = report(state)
        logged = heads(server)
    assert (found["rows"], found["unsealed"]) == (3, 0)
    assert logged[0] == f"1:{first['head']['hash']}"
    assert logged[-1] == f"{found['head']['seq']}:{found['head']['hash']}"
    assert len(logged) <= 4
    for head in logged:
        assert at(state, "audit", "verify", "--expect", head)[2] == 0


def test_at_most_one_head_a_minute_is_logged() -> None:
    """The newest one of the minute, and the last one at the end."""
    log = HeadLog()

    def seal(seq: int) -> Seal:
        return Seal(seq, seq, seq, 1, bytes([seq]) * 32, sealed_at=NOW)

    with capture_logs() as logged:
        for second in range(1, 131):
            log.note(seal(second) if second % 2 and second < 128 else None, second)
        log.flush(131)
        log.flush(132)
    assert [int(line["head"].partition(":")[0]) for line in logged] == [1, 61, 121, 127]


def test_a_server_does_not_seal_a_changed_record_again(tmp_path: Path) -> None:
    """While it runs, taking the seals away lets it stop sealing, and say so."""
    state = tmp_path / "state"
    assert at(state, "init")[2] == 0
    with serving(tmp_path, "--log-format", "json") as server:
        wait_until_sealed(state)
        sql(state, "DELETE FROM audit_seal", "UPDATE audit SET actor = 'operator:eve'")
        deadline = time.monotonic() + PATIENCE_S
        while not (told := [line for line in server.records() if line.get("code") == "audit-cut"]):
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.1)
        assert server.stop() == 0
    assert (told[0]["event"], told[0]["level"]) == ("audit-chain", "warning")
    assert report(state)["seals"] == 0


def test_backups_and_copies_keep_the_chain(
    state: Path, tmp_path: Path, postgres: Postgres, empty_postgres_url: str
) -> None:
    """To PostgreSQL, where it goes on, and back; through a backup; and never under another secret."""
    head = at(state, "audit", "verify")[0].strip()
    assert at(state, "db", "copy", "--to", empty_postgres_url)[2] == 0
    assert at(state, "audit", "verify", database=empty_postgres_url)[0].strip() == head
    with serving(tmp_path, "--database", empty_postgres_url) as server:
        add_rows(state, "more", empty_postgres_url)
        assert wait_until_sealed(state, empty_postgres_url)["rows"] == 9
        assert server.stop() == 0
    assert at(state, "backup", str(tmp_path / "backup"), database=empty_postgres_url)[2] == 0
    restored = tmp_path / "restored"
    restored.mkdir(mode=0o700)
    (restored / "kek").write_bytes((state / "kek").read_bytes())
    (restored / "kek").chmod(0o400)
    assert at(restored, "restore", str(tmp_path / "backup"))[2] == 0
    stdout, stderr, code = at(restored, "audit", "verify", "--expect", head)
    assert (stdout, code) == (at(state, "audit", "verify", database=empty_postgres_url)[0], 0)
    assert "9 rows under " in stderr
    # The database that was copied is an older backup, once it is taken back; the newer head notices it.
    assert at(state, "db", "reclaim")[2] == 0
    _, stderr, code = at(state, "audit", "verify", "--expect", stdout.strip())
    assert (code, "(audit-cut)" in stderr) == (1, True)
    other = tmp_path / "other"
    assert at(other, "init")[2] == 0
    (other / "tang-attest.db").unlink()
    _, stderr, code = at(other, "restore", str(tmp_path / "backup"))
    assert (code, "(backup-foreign)" in stderr) == (1, True)


def test_a_reader_that_is_not_there(tmp_path: Path) -> None:
    """Without the secret nothing can be checked."""
    done = program("--state", tmp_path, "audit", "verify")
    assert (done.returncode, "(state-missing)" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (
            ["UPDATE policy SET cap_pcr = 3 WHERE name = 'p1'"],
            "row 'p1' of table policy is not what this server wrote",
        ),
        (
            ["INSERT INTO policy (id, name, selection, cap_pcr) VALUES (9, 'x', 'sha256:7', 3)"],
            "row 'x' of table",
        ),
        (
            ["DELETE FROM policy WHERE name = 'p2'"],
            "row 'p2' of table policy is missing, and nobody removed it",
        ),
    ],
)
def test_rows_that_decide_something_are_checked_too(state: Path, statements: list[str], said: str) -> None:
    """A row that somebody changed, made or took away is named, by audit verify and by doctor; so for a program."""
    sql(state, *statements)
    _, stderr, code = at(state, "audit", "verify")
    assert (code, said in stderr) == (1, True), stderr
    assert "registry-tampered" in stderr
    assert stderr.splitlines()[-1].startswith("hint: find out who wrote to the database")
    assert [found["code"] for found in report(state)["named"]] == ["registry-tampered"]
    stdout, _, code = at(state, "doctor")
    assert (code, said in stdout) == (1, True), stdout


def test_an_older_row_of_ours_is_found(state: Path) -> None:
    """The record says how new a row has to be: one of before, put back with its seal, is named with both versions."""
    sql(state, "CREATE TABLE kept AS SELECT * FROM policy")
    assert at(state, "policy", "trust-predictions", "p1", "on")[2] == 0
    assert at(state, "audit", "verify")[2] == 0
    sql(state, "DELETE FROM policy", "INSERT INTO policy SELECT * FROM kept", "DROP TABLE kept")
    _, stderr, code = at(state, "audit", "verify")
    assert code == 1
    assert "row 'p1' of table policy is older than the audit record says: version 1, not 2" in stderr


def test_an_archive(state: Path, tmp_path: Path) -> None:
    """Made, checked with the record and alone, taken up again after an interruption, and refused where it does not fit."""
    file, other = tmp_path / "a.gz", tmp_path / "b.gz"
    old = at(state, "audit", "verify")[0].strip()
    stdout, stderr, code = at(state, "audit", "archive", "--before", "1s", str(file), "--json")
    assert code == 0, stderr
    made = json.loads(stdout)
    assert (made["resumed"], made["archive"]["rows"], made["archive"]["first"]) == (False, 5, 1), made
    # The record goes on; its newest seal is the one of before.
    assert at(state, "audit", "verify", "--archive", str(file), "--expect", old)[::2] == (f"{old}\n", 0)
    archived = at(state, "audit", "verify", "--archive", str(file), "--offline")[0].strip()
    assert archived == made["archive"]["head"]
    for expect, known in ((archived, True), (f"1:{'00' * 32}", False)):
        for words in (["--archive", str(file)], ["--archive", str(file), "--offline"]):
            _, stderr, code = at(state, "audit", "verify", *words, "--expect", expect)
            assert (code == 0) is known, stderr
    # An interruption after the last step: the same command says the same again.
    stdout, _, code = at(state, "audit", "archive", "--before", "1s", str(file), "--json")
    assert (code, json.loads(stdout)["resumed"]) == (0, True)
    assert json.loads(stdout)["archive"]["head"] == archived
    # Nothing is old enough; a file that is something else stays.
    assert at(state, "audit", "archive", "--before", "1s", str(other))[2] == 0
    assert not other.exists()
    other.write_text("mine")
    _, stderr, code = at(state, "audit", "archive", "--before", "1s", str(other))
    assert (code, "(file-exists)" in stderr, other.read_text()) == (1, True, "mine")
    # The actor is recorded, and a listing says where older entries are.
    stdout, stderr, _ = at(state, "audit", "list", "--json")
    newest = json.loads(stdout)[0]
    assert (newest["event"], newest["actor"]) == ("audit archive", "operator:alice")
    assert "entries up to 5 are in archives, the newest of them a.gz" in stderr
    assert at(state, "doctor")[2] in (0, 1)
    assert "as new as the audit record says" in at(state, "doctor")[0]


def test_an_archive_of_another_kek(state: Path, tmp_path: Path) -> None:
    """It is checked with the key of its time; a backup of the record goes on from it."""
    file = tmp_path / "a.gz"
    assert at(state, "audit", "archive", "--before", "1s", str(file))[2] == 0
    kek = (state / "kek").read_bytes()
    assert at(state, "keys", "rotate-kek")[2] == 0
    (tmp_path / "old").write_bytes(kek)
    _, stderr, code = at(state, "audit", "verify", "--archive", str(file))
    assert (code, "(archive-foreign)" in stderr, "--kek FILE" in stderr) == (1, True, True)
    words = ("audit", "verify", "--archive", str(file), "--kek", str(tmp_path / "old"))
    stdout, stderr, code = at(state, *words)
    assert code == 0, stderr
    assert at(state, *words, "--offline")[2] == 0
    assert at(state, "backup", str(tmp_path / "backup"))[2] == 0
    restored = tmp_path / "restored"
    restored.mkdir()
    (restored / "kek").write_bytes((state / "kek").read_bytes())
    (restored / "kek").chmod(0o400)
    assert at(restored, "restore", str(tmp_path / "backup"))[2] == 0
    assert at(restored, *words)[:1] == (stdout,)
    # Another record does not go on from it.
    elsewhere = tmp_path / "elsewhere"
    assert at(elsewhere, "init")[2] == 0
    _, stderr, code = at(elsewhere, *words)
    assert (code, "(archive-elsewhere)" in stderr) == (1, True), stderr


def test_an_archive_of_a_changed_record(state: Path, tmp_path: Path) -> None:
    """Nothing is written, and nothing leaves the database."""
    sql(state, "UPDATE audit SET actor = 'operator:eve' WHERE id = 2")
    _, stderr, code = at(state, "audit", "archive", "--before", "1s", str(tmp_path / "a.gz"))
    assert (code, "(audit-changed)" in stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir() if "gz" in path.name] == []
    assert len(json.loads(at(state, "audit", "list", "--json")[0])) == 7


_ROUND = "INSERT INTO verification (device, at, outcome, code, details) VALUES ('one', 1, {}, 'ok', {})"


@pytest.mark.parametrize(
    ("statement", "commands"),
    [
        ("UPDATE audit SET details = 'no JSON' WHERE id = 7", ("audit", "doctor")),
        ("UPDATE audit SET details = '[1]' WHERE id = 7", ("audit --json", "audit --csv", "doctor")),
        ("UPDATE audit SET at = X'00ff' WHERE id = 7", ("audit --json", "doctor")),
        ("UPDATE audit SET at = 9223372036854775807 WHERE id = 7", ("audit", "doctor")),
        (_ROUND.format("'invented'", "'{}'"), ("device history one",)),
        (_ROUND.format("'verified'", "'7'"), ("device history one --json",)),
        (_ROUND.format("'verified'", "'{'"), ("device history one",)),
    ],
)
def test_a_value_that_cannot_be_read_is_said(state: Path, statement: str, commands: tuple[str, ...]) -> None:
    """Rows without a seal may hold anything: a command names the code and an action, and is no traceback."""
    if "verification" in statement:
        public = state.parent / "ak"
        public.write_bytes(Attester().ak_public)
        assert at(state, "device", "register", "one", "--file", str(public), "--policy", "p1")[2] == 0
    sql(state, statement)
    for command in commands:
        stdout, stderr, code = at(state, *command.split())
        assert code == 1, (stdout, stderr)
        assert "was not written by this server" in stdout + stderr
        assert "audit verify" in stdout + stderr


@pytest.mark.parametrize(
    "grade",
    [
        "7",
        '"self-measured"',
        "[]",
        "{}",
        '{"grade": 1, "reasons": []}',
        '{"grade": "self-measured", "reasons": 5}',
        '{"grade": "self-measured", "reasons": [], "coverage": 5}',
        '{"grade": "x", "reasons": [], "coverage": {"line": "y", "uncovered": ["wheels"], "accepted": []}}',
    ],
)
def test_a_grade_that_cannot_be_read_is_none(state: Path, grade: str) -> None:
    """The column has no seal, and people read it: it is made again from the evidence, and nothing ends in a
    traceback.
    """
    public = state.parent / "ak"
    public.write_bytes(Attester().ak_public)
    assert at(state, "device", "register", "one", "--file", str(public), "--policy", "p1")[2] == 0
    sql(state, f"UPDATE device SET grade = '{grade}'")  # noqa: S608 - that is the point
    for command in ("device list", "device list --json", "device show one", "doctor", "status"):
        stdout, stderr, code = at(state, *command.split())
        assert code in (0, 1), (stdout, stderr)
        assert "one" in stdout or command == "status"
        assert "wheels" not in stdout
