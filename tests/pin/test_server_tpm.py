"""Real pins, real commands and a server whose exchange keys live in its own TPM."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tang_attest.keys import tpm as module
from tests.pin.machine import SECRET, Machine, Operator
from tests.server import Server, new_x
from tests.swtpm import Swtpm
from tests.tang import servers
from tests.tang import test_clevis as tang

pytestmark = pytest.mark.slow


@pytest.fixture
def make_tpm(tmp_path: Path) -> Iterator[Callable[[str], Swtpm]]:
    """Makes TPMs of servers."""
    made: list[Swtpm] = []

    def make(name: str) -> Swtpm:
        made.append(Swtpm(tmp_path / name))
        made[-1].start()
        return made[-1]

    yield make
    for tpm in made:
        tpm.stop()


def test_a_stolen_disk_opens_nothing(
    tmp_path: Path, machine: Machine, name: str, make_tpm: Callable[[str], Swtpm]
) -> None:
    """State, database and secret, copied to another server: the machine itself gets nothing from it."""
    ours, operator = make_tpm("server-tpm"), Operator(tmp_path / "server")
    with operator.serve("--server-tpm", ours.tcti) as port:
        address = {"url": f"http://127.0.0.1:{port}", "name": name}
        jwe = machine.encrypt(**address, token=operator.token(name))
        assert machine.decrypt(jwe).stdout == SECRET
    [exchange] = [key for key in json.loads(operator.run("keys", "list", "--json")) if key["device"] == name]
    assert (exchange["lives_in"], exchange["curve"]) == ("TPM", "P-521")
    assert json.loads(operator.run("device", "show", name, "--json"))["key_lives_in"] == "TPM"

    shutil.copytree(operator.state, tmp_path / "stolen")
    thief = Operator.__new__(Operator)
    thief.state = tmp_path / "stolen"
    other = make_tpm("thief-tpm")
    machine.extra["CLEVIS_ATTEST_TOTAL_TIMEOUT"] = "12"  # 503 is tried again for so long
    for options, code in (
        (("--server-tpm", other.tcti), "server-tpm-foreign"),
        ((), "server-tpm-unavailable"),
    ):
        with thief.serve("--port", str(port), *options):
            refused = machine.decrypt(jwe)
        assert (refused.returncode, refused.stdout) == (1, b"")
        assert code in machine.console
        machine.reboot()
    del machine.extra["CLEVIS_ATTEST_TOTAL_TIMEOUT"]
    looked = thief.try_run("--server-tpm", other.tcti, "doctor")
    assert looked.returncode == 1
    assert "server tpm: it answers, but 1 of 1 keys are not its own\n" in looked.stdout
    assert "problem  server tpm: the key lives in a TPM" in thief.try_run("doctor").stdout

    with operator.serve("--port", str(port), "--server-tpm", ours.tcti):
        assert machine.decrypt(jwe).stdout == SECRET
    assert "ok       server tpm: it answers, and 1 keys are its own\n" in operator.try_run("--server-tpm", ours.tcti, "doctor").stdout  # fmt: skip


def test_a_restart_of_the_server(
    tmp_path: Path, machine: Machine, name: str, make_tpm: Callable[[str], Swtpm]
) -> None:
    """Killed or reloaded, the next server goes on with the same TPM, which was reset or not."""
    tpm, operator = make_tpm("server-tpm"), Operator(tmp_path / "server")
    port_of_tpm = tpm.port
    with operator.serve("--server-tpm", tpm.tcti) as port:
        jwe = machine.encrypt(url=f"http://127.0.0.1:{port}", name=name, token=operator.token(name))
    for _ in range(2):
        with operator.serve("--port", str(port), "--server-tpm", tpm.tcti):
            assert machine.decrypt(jwe).stdout == SECRET
            machine.reboot()
            tpm.stop()
            tpm.start(port_of_tpm)
            assert machine.decrypt(jwe).stdout == SECRET
            machine.reboot()


def test_moving_open_keys_into_the_tpm(tmp_path: Path, make_tpm: Callable[[str], Swtpm]) -> None:
    """Keys of a Tang server are imported as they are, and rotated: stock clevis binds to a key in the TPM."""
    tpm, operator = make_tpm("server-tpm"), Operator(tmp_path / "server")
    (tmp_path / "keys").mkdir()
    servers.keygen(tmp_path / "keys")
    operator.run("keys", "import", str(tmp_path / "keys"))
    with operator.serve("--plain-tang") as port:
        old = tang.encrypt(port)
    operator.run("--server-tpm", tpm.tcti, "keys", "rotate")
    with operator.serve("--plain-tang", "--port", str(port), "--server-tpm", tpm.tcti):
        new = tang.encrypt(port)
        assert tang._kid(new) != tang._kid(old)
        assert [tang.decrypt(jwe).stdout for jwe in (old, new)] == [tang.SECRET] * 2
    with operator.serve("--plain-tang", "--port", str(port)):
        assert tang.decrypt(old).stdout == tang.SECRET
        assert tang.decrypt(new).returncode != 0
    refused = operator.try_run("keys", "rotate")
    assert refused.returncode == 1
    assert "the old key lives in a TPM, and the new one would not (server-tpm-unavailable)" in refused.stderr


@pytest.mark.parametrize("curve", ["P-256", "P-384"])
async def test_a_tpm_without_p521(
    tmp_path: Path,
    machine: Machine,
    make_tpm: Callable[[str], Swtpm],
    monkeypatch: pytest.MonkeyPatch,
    curve: str,
) -> None:
    """Both pins work with a key on the strongest curve that the server's TPM has."""
    monkeypatch.setattr(module, "_CURVES", {curve: module._CURVES[curve]})
    state = tmp_path / "server"
    async with Server(state, plain_tang=True, server_tpm=make_tpm("server-tpm").tcti) as server:
        port = server.client.port
        assert port is not None
        await server.keys.import_key(new_x(), "exchange", rotated=False)
        await server.keys.rotate()
        token = await server.token(force=True)
        jwe = await asyncio.to_thread(
            machine.encrypt, url=f"http://127.0.0.1:{port}", name="pi-b", token=token
        )
        assert (await asyncio.to_thread(machine.decrypt, jwe)).stdout == SECRET
        open_jwe = await asyncio.to_thread(tang.encrypt, port)
        assert (await asyncio.to_thread(tang.decrypt, open_jwe)).stdout == tang.SECRET
        curves = {
            key.curve for key, _ in await server.store.keys.list_keys() if server.private_keys.is_in_tpm(key)
        }
        assert curves == {curve}
