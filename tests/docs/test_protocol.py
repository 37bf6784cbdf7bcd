"""docs/protocol.md says of codes, limits and messages what the program does."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tang_attest import errors
from tang_attest.errors import ACTIONS
from tang_attest.protocol import cap
from tang_attest.protocol.challenge import Purpose
from tang_attest.protocol.values.sizes import MAX_EVENT_LOG, MAX_IMA_PART
from tang_attest.web import wire
from tang_attest.web.problems import status_of
from tang_attest.web.registry import BY_CODE, CODES, ROUTES, Audience
from tools.protocol_tables import MAX_REPLY

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text()
PIN = (ROOT / "clevis-pin" / "lib" / "clevis-attest-functions").read_text()
#: Folders of code that answers machines; the rest answers operators.
MACHINES = ("protocol", "service/unlock", "service/enrollment", "service/rounds", "store/records")
FILES = (
    *("service/policies/announce.py", "store/decisions.py", "store/verifications.py", "store/locks.py"),
    *("store/database/failures.py", "web/wire.py", "web/attest_routes.py", "web/app.py"),
    *("web/gate/bodies.py", "web/gate/limits.py"),
)
#: Raised by what an operator gives; a machine gets another class of the code, or never this code.
OF_OPERATORS = {
    ("Malformed", "selection-invalid"),
    ("Malformed", "eventlog-malformed"),
    ("Malformed", "eventlog-bank-missing"),
    ("NotFound", "token-invalid"),
    ("Malformed", "statement-malformed"),
}
#: Codes in those files that no answer to a machine has.
ELSEWHERE = {
    *("rules-invalid", "change-invalid", "setting-invalid", "document-invalid", "certificate-malformed"),
    *("key-malformed", "cap-malformed", "observation-missing", "would-refuse", "device-unreachable"),
    *("audit-changed", "audit-cut", "audit-unsealed", "policy-changed", "ek-list-invalid", "program-missing"),
    *("signer-unsuitable", "signer-unsafe"),
    *("passkey-invalid", "act-forged", "act-reused"),
}
#: Functions for machines and for operators side by side, so that not every code is of the protocol.
SHARED = ("store/records/", "service/enrollment/registered.py")


def _raised() -> Iterator[tuple[str, str, str]]:
    """File, class and code of each error that the code for machines makes."""
    classes = {
        name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
    }
    package = ROOT / "tang_attest"
    paths = [path for folder in MACHINES for path in (package / folder).rglob("*.py")]
    for path in [*paths, *(package / file for file in FILES)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in classes
                and node.args
                and isinstance(node.args[0], ast.Constant)
                and isinstance(node.args[0].value, str)
            ):
                yield str(path.relative_to(package)), node.func.id, node.args[0].value


def test_every_code_of_a_machine_is_registered_with_its_status() -> None:
    """One status for a code, whichever class of error carries it."""
    for file, kind, code in _raised():
        if code in ELSEWHERE or (kind, code) in OF_OPERATORS:
            continue
        each = BY_CODE.get(code)
        if each is None and file.startswith(SHARED):
            continue
        assert each is not None, f"{file}: {code} is in no registry"
        status = status_of(getattr(errors, kind)(code, "x"))
        assert each.status in (status, 200), f"{file}: {kind} {code} is {status}"


def test_every_registered_code_is_raised_and_has_an_action() -> None:
    """The registry has no code that the program does not know."""
    text = "".join(
        path.read_text() for path in (ROOT / "tang_attest").rglob("*.py") if path.name != "registry.py"
    )
    for each in CODES:
        assert each.code in ACTIONS
        # As an argument, a member of a table, or in the middle of a name that is put together.
        assert text.count(f'"{each.code}"') > 1 or f'"{each.code.partition("-")[2]}"' in text, each.code
        assert set(each.steps) <= set(ROUTES)
    assert len(BY_CODE) == len(CODES)


def test_codes_before_the_signature_tell_nothing_of_the_policy() -> None:
    """Section 3.5: such a code is heard by anybody, and none of step 5 and later is."""
    for each in CODES:
        step = each.steps.get("rec", "")
        if re.fullmatch(r"[0-4](, [0-4])*", step):
            assert each.heard_by is Audience.ANYBODY, each.code
        elif re.fullmatch(r"\d+(, \d+)*", step) and each.code != "evidence-malformed":
            assert each.heard_by is Audience.TPM, each.code


def test_each_table_of_the_document_names_registered_codes_only() -> None:
    """Codes in the tables of steps exist, and are registered."""
    tables = re.findall(r"^\| .*\|$", PAGE, re.MULTILINE)
    named = {code for row in tables for code in re.findall(r"`([a-z]+(?:-[a-z]+)*)`", row)} & set(ACTIONS)
    assert named <= set(BY_CODE), named - set(BY_CODE)
    assert set(BY_CODE) <= named


def test_the_pin_has_words_for_every_code_of_an_unlock() -> None:
    """And so none of the server's own need be shown at a prompt."""
    words = PIN[PIN.index("attest_refusal()") :]
    for each in CODES:
        if "rec" in each.steps:
            assert re.search(rf"(?<![a-z-]){each.code}(?![a-z-])", words), each.code


def test_labels_and_purposes() -> None:
    """Section 15.2 and 15.3 have all that the program uses."""
    text = "".join(path.read_text() for path in (ROOT / "tang_attest").rglob("*.py"))
    used = set(re.findall(r"tang-attest/v1 ([a-z ]+?)(?:\\n|\")", text))
    for label in used:
        assert f"tang-attest/v1 {label}" in PAGE, label
    for purpose in Purpose:
        assert f"| `{purpose}` |" in PAGE


@pytest.mark.parametrize("bank", ["sha256", "sha384", "sha512"])
def test_the_value_of_the_cap(bank: str) -> None:
    """Section 11.3."""
    assert f"| `{bank}` | `{cap.cap_value(bank).hex()}` |" in PAGE


def test_the_largest_answer() -> None:
    """The pin reads what the document says."""
    assert f"readonly ATTEST_MAX_REPLY={MAX_REPLY}\n" in PIN


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("clevis-pin/lib/clevis-attest-functions", "readonly ATTEST_MAX_EVENT_LOG={}\n", MAX_EVENT_LOG),
        ("clevis-pin/clevis-attest-agent", " MAX_IMA={}\n", MAX_IMA_PART),
        ("clevis-pin/clevis-attest-agent", " MAX_CAP={}\n", cap.MAX_TEXTS),
        ("clevis-pin/lib/clevis-attest-setup-functions", "((${{#c_token}} > {}))", wire.MAX_TOKEN),
        # With the quotes around it.
        ("clevis-pin/lib/clevis-attest-setup-functions", "((${{#session}} <= {}))", wire.MAX_SESSION + 2),
    ],
)
def test_the_clients_limits_are_the_servers(file: str, text: str, limit: int) -> None:
    """Section 14: a client sends no more, and takes as much."""
    assert text.format(limit) in (ROOT / file).read_text()


def test_a_text_of_the_cap_is_not_too_long() -> None:
    """The initrd begins another text before a TPM would refuse this one."""
    [most] = re.findall(r"^most=(\d+)", (ROOT / "initrd" / "clevis-attest-cap").read_text(), re.MULTILINE)
    line = len("passphrase 0f6e5a3c-0000-4000-8000-000000000002\n")
    assert len(cap.HEADER) + int(most) * line <= cap.MAX_TEXT


def test_bcp_14_words_have_a_subject() -> None:
    """No sentence or item begins with a duty, and none is passive about who has it."""
    text = PAGE[PAGE.index("## 1. Conventions") : PAGE.index("## 13. Grammar")]
    body = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)  # of a table the header has the subject
    duties = re.findall(r"[^.:;|]*?\b(?:MUST|SHOULD|MAY)\b[^.:;|]*", body)
    assert len(duties) > 60
    for duty in duties:
        assert not re.match(r"\s*(?:\*|\d+\.)?\s*(?:MUST|SHOULD|MAY)\b", duty), duty


def test_the_examples_of_messages_are_json() -> None:
    """Each indented object of the document can be parsed; `...` stands for what is left out."""
    for text in _objects():
        json.loads(text)


def _objects() -> Iterator[str]:
    """Objects in indented blocks, one for each that begins a line or follows ``200 ``."""
    for block in re.findall(r"(?:^    .*\n)+", PAGE, re.MULTILINE):
        text = ""
        for indented in block.splitlines():
            line = indented[4:].removeprefix("200 ")
            if text or line.startswith("{"):
                text += line
                if text.count("{") == text.count("}"):
                    yield text
                    text = ""
