"""Many machines with one token, and machines that the server knows by their EK: real TPMs and the real pin."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pin.conftest import Server
from tests.pin.machine import SECRET, Machine


@pytest.fixture
def policy(machine: Machine, server: Server, name: str) -> str:
    """The policy of a first machine, which was recorded."""
    machine.encrypt(url=server.url, name=name, token=server.operator.token(name))
    return name


@pytest.fixture
def others(make_machine: Callable[[str], Machine]) -> Callable[[], Machine]:
    """Makes machines that boot as the first one does."""
    numbers = iter(range(9))
    return lambda: make_machine(f"other-{next(numbers)}")


def test_one_token_enrolls_as_many_machines_as_it_says(
    server: Server, policy: str, others: Callable[[], Machine], tmp_path: Path
) -> None:
    """Each binds and opens with a key of its own; the next one reads what to do."""
    options = ("--machines", "2", "--policy", policy, "--name", f"{policy[:20]}-m?", "--allow-unverified-ek")
    text = server.operator.run("token", "create", *options).strip()
    (tmp_path / "token").write_text(text)
    for number in (1, 2):
        machine, name = others(), f"{policy[:20]}-m{number}"
        jwe = machine.encrypt(url=server.url, name=name, token=f"@{tmp_path}/token")
        assert machine.decrypt(jwe).stdout == SECRET
    late = others().try_encrypt("-y", url=server.url, name=f"{policy[:20]}-m3", token=text)
    assert late.returncode == 1
    assert b"refused (token-used-up): The token has enrolled the 2 machines that it is for." in late.stderr


def test_a_machine_enrolls_by_its_ek_alone(
    server: Server, policy: str, others: Callable[[], Machine]
) -> None:
    """The refusal names the hash, which is that of tpm2-tools; once it is registered, the machine binds."""
    machine, name = others(), f"{policy[:20]}-ek"
    config = {"url": server.url, "name": name, "without_token": True}
    refused = machine.try_encrypt("-y", **config)
    assert refused.returncode == 1
    told = re.search(rb"refused \(ek-not-registered\): .*SHA-256 ([0-9a-f]{64})", refused.stderr)
    assert told is not None, refused.stderr
    machine.tpm.run("tpm2", "createek", "-G", "rsa", "-c", "ek.ctx", "-u", "ek.der", "-f", "der")
    (der,) = Path(machine.tpm.directory).rglob("ek.der")
    assert hashlib.sha256(der.read_bytes()).hexdigest() == told[1].decode()
    machine.tpm.run("tpm2", "flushcontext", "-t")
    server.operator.run(
        "device", "register", name, "--ek-sha256", told[1].decode(), "--policy", policy, "--without-token"
    )
    jwe = machine.encrypt(**config)
    assert machine.decrypt(jwe).stdout == SECRET
    shown = json.loads(server.operator.run("device", "show", name, "--json"))
    assert (shown["ek_verified"], shown["policy"]) == (True, policy)
    thief = others().try_encrypt("-y", **config)
    assert b"refused (ek-not-registered)" in thief.stderr
