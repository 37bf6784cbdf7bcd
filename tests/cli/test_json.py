"""``--json`` of commands that change something: one document on stdout, which says what came of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import sites
from tests.cli.transcript import run

TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and a state with a device under a policy with one state, for each test to copy."""
    directory = tmp_path_factory.mktemp("site")
    with sites.made(directory):
        Path("more").write_text(json.dumps({"0": "33" * 32, "7": "44" * 32}))
        Path("change").write_text(
            json.dumps({"add": [{"label": "next", "values": {"0": "66" * 32, "7": "77" * 32}}]})
        )
        assert run("policy", "create", "db", "--selection", "sha256:0,7")[2] == 0
        assert run("device", "register", "one", "--file", "ak", "--policy", "web")[2] == 0
    return directory


@pytest.fixture(autouse=True)
def site(tmp_path: Path, made: Path) -> Iterator[None]:
    """The files and the state in the current directory, in a zone that is not UTC."""
    with sites.copied(made, tmp_path, TZ="Asia/Tokyo"):
        yield


def answer(command: str) -> Any:
    """The document that *command* prints; hints, notes and warnings on stderr."""
    out, err, code = run(*command.split(), "--json")
    assert code == 0, (command, err)
    assert all(line.startswith(("hint: ", "tang-attest: ")) for line in err.splitlines()), err
    return json.loads(out)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("policy create new --selection sha256:0", {"name": "new", "selection": "sha256:0", "states": []}),
        ("policy record web --file more --label m", {"policy": "web", "label": "m", "life": "active"}),
        (
            "policy stage web --file more --label m --for 2d",
            {"policy": "web", "label": "m", "life": "staged"},
        ),
        ("policy retire web first", {"policy": "web", "label": "first", "life": "retired"}),
        ("policy trust-predictions web on", {"policy": "web", "trust_predictions": True}),
        (
            "policy apply web --file change",
            {"policy": "web", "staged": ["next"], "retired": [], "rules": None},
        ),
        ("policy require-approval web on", {"policy": "web"}),
        ("policy require-rounds web on", {"policy": "web"}),
        ("policy require-attested-root web off", {"policy": "web"}),
        ("policy refuse-stale web on --for 30d", {"policy": "web"}),
        ("policy require-ima web off", {"policy": "web", "ima": None}),
        (
            "policy rollout start web --file change --name n --share 100%",
            {"name": "n", "status": "running", "waiting": ["one"]},
        ),
        ("device label one --add a --remove b", {"devices": ["one"], "added": ["a"], "removed": ["b"]}),
        ("device allow one", {"device": "one"}),
        ("device suspend one --reason lost", {"device": "one", "suspended": True, "reason": "lost"}),
        ("device running-policy one web", {"device": "one", "running_policy": "web"}),
        ("device running-policy one --own", {"device": "one", "running_policy": None}),
        ("device rename one two", {"device": "two", "before": "one", "policy": "web"}),
        (
            "device move one db",
            {"device": "one", "policy": "db", "before": "web", "last_boot_permitted": None},
        ),
        ("policy remove db", {"policy": "db", "removed": True}),
        ("observation dismiss --device one", {"dismissed": []}),
        ("device remove one --yes", {"device": "one", "removed": True}),
        ("keys rotate", {"device": None}),
        ("keys rotate --device one", {"device": "one"}),
        ("keys rotate-kek", {"foreign": 0}),
        ("token create --record --for 1h", {"record": True}),
        ("admin-token create ci --scope read", {"name": "ci"}),
        ("backup saved", {"file": "saved", "with_secret": False, "devices": 1}),
        ("db upgrade", {"sealed": 0, "foreign": []}),
        ("--state other init", {"state": "other"}),
    ],
)
def test_a_change_is_one_document(command: str, expected: dict[str, object]) -> None:
    """With the members that a program needs to go on; times are in UTC."""
    document = answer(command)
    assert {name: document[name] for name in expected} == expected
    for name, value in document.items():
        if isinstance(value, str) and name.endswith(("_at", "_until")):
            assert TIME.fullmatch(value), (name, value)


def test_what_is_made_can_be_named_at_once() -> None:
    """Ids, thumbprints and states of a document are those that other commands take."""
    assert answer("policy retire web first")["life"] == "retired"
    assert answer("policy reinstate web first")["life"] in ("active", "staged")
    made = answer("token create --record")
    assert made["id"] in run("token", "list", "--wide")[0]
    assert f"{made['id'][:16]} " in run("token", "list")[0]
    assert answer(f"token revoke {made['id']}") == {"id": made["id"], "name": None}
    assert answer("admin-token create ci --scope read")["token"]
    assert answer("admin-token revoke ci") == {"name": "ci"}
    rotated = answer("keys rotate")
    assert set(rotated["made"]) | set(rotated["rotated"]) <= {key["kid"] for key in answer("keys list")}
    assert answer("policy rollout start web --file change --name n --share 1%")["status"] == "running"
    for verb, status in (
        ("stop --reason x", "stopped"),
        ("resume", "running"),
        ("widen --share 5%", "running"),
    ):
        name, _, options = verb.partition(" ")
        assert answer(f"policy rollout {name} web {options}")["status"] == status
    assert answer("policy rollout abandon web --reason y")["status"] == "abandoned"
    assert answer("device suspend one --reason x")["suspended"]
    assert answer("device resume one") == {"device": "one", "suspended": False}
    answer("backup saved")
    (Path("other")).mkdir()
    (Path("other/kek")).write_bytes(Path("state/kek").read_bytes())
    (Path("other/kek")).chmod(0o400)
    restored = answer("--state other restore saved")
    assert restored["devices"] == 1
    assert [entry["name"] for entry in answer("--state other device list")] == ["one"]


def test_a_backup_on_stdout_is_no_json() -> None:
    """Two things cannot be there."""
    assert run("backup", "-", "--json")[2] == 2


def test_exit_codes_of_an_unknown_device() -> None:
    """A device that does not exist is no refused machine, and no unreachable one."""
    for verb in (("verify",), ("watch", "--rounds", "1")):
        out, err, code = run("device", verb[0], "nosuch", *verb[1:])
        assert (out, err, code) == ("FAILURE: instance nosuch not registered\n", "", 4)
        out, err, code = run("device", verb[0], "nosuch", *verb[1:], "--json")
        assert (json.loads(out)["code"], err, code) == ("not-found", "", 4)


def test_rounds_are_documents_too() -> None:
    """A round is one; of several, each is a line, and the last line counts."""
    out, _, code = run("device", "verify", "one", "--timeout", "1", "--json")
    document = json.loads(out)
    assert (document["device"], document["outcome"], document["code"], code) == (
        *("one", "unreachable", "device-unreachable"),
        3,
    )
    out, _, code = run("device", "watch", "one", "--rounds", "2", "--delay", "0", "--timeout", "1", "--json")
    first, second, last = map(json.loads, out.splitlines())
    assert [first["round"], second["round"], code] == [1, 2, 3]
    assert last == {"device": "one", "rounds": 2, "verified": 0}
