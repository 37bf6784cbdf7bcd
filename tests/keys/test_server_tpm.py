"""Exchange keys in the server's own TPM, a real software TPM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.errors import Malformed, Unavailable
from tang_attest.keys import server_tpm as queueing
from tang_attest.keys import tpm as module
from tang_attest.keys.encrypted import EncryptedKeys
from tang_attest.keys.secret import ServerSecret
from tang_attest.keys.server_tpm import ServerTpm, TpmExchangeKey
from tang_attest.keys.tpm import Tpm, WrappedKey
from tang_attest.ports.keys import OPEN, holder
from tang_attest.protocol.exchange import ExchangeKey
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.points import CURVES, Curve, Point
from tang_attest.service.unlock import exchanging
from tests.swtpm import Swtpm

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = ServerSecret(b"s" * 32)
HOLDER = holder(b"name", b"key")


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[Swtpm]:
    with Swtpm(tmp_path / "tpm") as started:
        yield started


@pytest.fixture
def server_tpm(swtpm: Swtpm) -> Iterator[ServerTpm]:
    tpm = ServerTpm(swtpm.tcti)
    yield tpm
    tpm.shutdown()


def client(curve: Curve) -> ExchangeKey:
    """Somebody with x and X."""
    return ExchangeKey(ec.generate_private_key(curve.implementation))


def refusal(key: TpmExchangeKey) -> str:
    """The code with which *key* does not answer."""
    with pytest.raises(Unavailable) as refused:
        key.multiply(client(key.curve).public)
    return refused.value.code


@pytest.mark.parametrize("curve", CURVES)
def test_the_exchange_equals_the_software_one(server_tpm: ServerTpm, curve: str) -> None:
    """Y is the whole point s·X, on each curve that the TPM has: what x·S is, computed by the client's side."""
    key = TpmExchangeKey(server_tpm.run(lambda tpm: tpm.create(curve)), server_tpm)
    assert key.curve is CURVES[curve]
    assert key.kid == thumbprint(key.public.members())
    for _ in range(5):
        x = client(key.curve)
        assert key.multiply(x.public) == x.multiply(key.public)
    generator = Point(key.curve, key.curve.gx, key.curve.gy)
    assert key.multiply(generator) == key.public
    assert key.multiply(generator.negated()) == key.public.negated()


def test_the_strongest_curve(server_tpm: ServerTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """P-521 where the TPM has it, else the next one; a TPM with none of ours makes no key."""
    curves = dict(module._CURVES)
    for name in ("P-521", "P-384", "P-256"):
        assert server_tpm.create().point().curve.name == name
        del curves[name]
        monkeypatch.setattr(module, "_CURVES", dict(curves))
    with pytest.raises(Unavailable) as refused:
        server_tpm.create()
    assert refused.value.code == "server-tpm-unavailable"
    assert "none of the curves" in refused.value.sentence


def test_the_key_cannot_leave_its_tpm(swtpm: Swtpm, server_tpm: ServerTpm) -> None:
    """It was born there, under a parent that it cannot leave, and it neither signs nor is restricted to storage."""
    wrapped = server_tpm.create()
    (swtpm.directory / "public").write_bytes(len(wrapped.public).to_bytes(2, "big") + wrapped.public)
    shown = swtpm.run("tpm2", "print", "-t", "TPM2B_PUBLIC", "public").stdout.decode()
    assert "value: fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|decrypt\n" in shown


def test_x_is_checked_before_it_goes_to_the_tpm(server_tpm: ServerTpm) -> None:
    """A point of another curve, or of none, is refused here."""
    key = TpmExchangeKey(server_tpm.create(), server_tpm)
    with pytest.raises(Malformed) as refused:
        key.multiply(client(CURVES["P-256"]).public)
    assert refused.value.code == "curve-mismatch"
    with pytest.raises(Malformed) as refused:
        Point(key.curve, 1, 1)
    assert refused.value.code == "point-invalid"


def test_the_authorization_value_is_needed(server_tpm: ServerTpm) -> None:
    """The TPM and the wrapped key, without the encrypted authorization value, give nothing."""
    wrapped = server_tpm.create()
    for auth in (b"", b"\x01" * 32):
        assert refusal(TpmExchangeKey(replace(wrapped, auth=auth), server_tpm)) == "server-tpm-foreign"
    TpmExchangeKey(wrapped, server_tpm).load()


class Tap:
    """Somebody on the bus: forwards to the TPM's two ports and keeps every byte."""

    def __init__(self, tpm: Swtpm) -> None:
        self.bytes = bytearray()
        self._listeners: list[socket.socket] = []
        while not self._listeners:
            self.port = random.randrange(20001, 32000, 2)
            with contextlib.suppress(OSError):
                for plus in (0, 1):
                    self._listeners.append(socket.create_server(("127.0.0.1", self.port + plus)))
        self._threads = [
            threading.Thread(target=self._serve, args=(listener, tpm.port + plus))
            for plus, listener in enumerate(self._listeners)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, listener: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError), listener:
            while True:
                client, _ = listener.accept()
                with client, socket.create_connection(("127.0.0.1", port)) as server:
                    self._forward({client: server, server: client})

    def _forward(self, other: dict[socket.socket, socket.socket]) -> None:
        while True:
            for source in select.select(list(other), [], [])[0]:
                data = source.recv(65536)
                if not data:
                    return
                self.bytes += data
                other[source].sendall(data)

    def close(self) -> None:
        for listener, thread in zip(self._listeners, self._threads, strict=True):
            listener.shutdown(socket.SHUT_RDWR)  # ends accept()
            thread.join(120)


def test_what_somebody_on_the_bus_sees(swtpm: Swtpm) -> None:
    """The wrapped key and who is asked, but neither the authorization value nor Y."""
    tap = Tap(swtpm)
    tpm = ServerTpm(f"swtpm:host=127.0.0.1,port={tap.port}")
    try:
        wrapped = tpm.create()
        key = TpmExchangeKey(wrapped, tpm)
        y = key.multiply(client(key.curve).public)
        tpm.shutdown()
    finally:
        tap.close()
    assert wrapped.private in tap.bytes
    assert wrapped.public in tap.bytes
    assert wrapped.auth not in tap.bytes
    assert y.x.to_bytes(66, "big")[2:] not in tap.bytes
    assert y.y.to_bytes(66, "big")[2:] not in tap.bytes


# --- another TPM -------------------------------------------------------------------------------------------------


def test_a_stolen_disk_opens_nothing(swtpm: Swtpm, server_tpm: ServerTpm, tmp_path: Path) -> None:
    """Database and secret together are worth nothing without the TPM, with another one, and after it was cleared."""
    sealed = asyncio.run(EncryptedKeys(SECRET, server_tpm).create_exchange("P-521", NOW, HOLDER))
    server_tpm.shutdown()
    with Swtpm(tmp_path / "thief") as other:
        for tcti, code in ((None, "server-tpm-unavailable"), (other.tcti, "server-tpm-foreign")):
            stolen = EncryptedKeys(SECRET, ServerTpm(tcti)).open_exchange(sealed)
            assert isinstance(stolen, TpmExchangeKey)
            assert refusal(stolen) == code
            for use in (stolen.check, stolen.load):
                with pytest.raises(Unavailable) as refused:
                    use()
                assert refused.value.code == code
        assert isinstance(stolen, TpmExchangeKey)
        # Somebody who leaves out our checks is refused by the TPM itself.
        forced = replace(stolen._wrapped, parent=stolen._tpm.check())
        assert refusal(TpmExchangeKey(forced, stolen._tpm)) == "server-tpm-foreign"
        stolen._tpm.shutdown()
    ours = EncryptedKeys(SECRET, ServerTpm(swtpm.tcti)).open_exchange(sealed)
    x = client(ours.curve)
    assert ours.multiply(x.public) == x.multiply(ours.public)
    assert isinstance(ours, TpmExchangeKey)
    ours._tpm.shutdown()
    swtpm.run("tpm2", "clear", "-c", "p")
    assert refusal(ours) == "server-tpm-foreign"


def test_another_secret_does_not_open_it(server_tpm: ServerTpm) -> None:
    """The TPM without the secret is worth nothing either."""
    sealed = asyncio.run(EncryptedKeys(SECRET, server_tpm).create_exchange("P-521", NOW, HOLDER))
    with pytest.raises(Unavailable) as refused:
        EncryptedKeys(ServerSecret(b"o" * 32), server_tpm).open_exchange(sealed)
    assert (refused.value.code, sealed.curve) == ("internal", "P-521")


def test_keys_of_both_kinds(server_tpm: ServerTpm) -> None:
    """Keys that were made before go on working; which is which can be told without the secret; none is swapped."""
    keys = EncryptedKeys(SECRET, server_tpm)
    before = EncryptedKeys(SECRET).create("exchange", "P-521", NOW)
    new, other = (asyncio.run(keys.create_exchange("P-521", NOW, HOLDER)) for _ in range(2))
    strangers = EncryptedKeys(ServerSecret(b"o" * 32))
    assert [strangers.is_in_tpm(key) for key in (before, new)] == [False, True]
    assert not any(strangers.is_in_tpm(replace(new, jwe=text)) for text in ("", "....", "MQ.", "?."))
    for key in (before, new):
        opened = keys.open_exchange(key)
        x = client(opened.curve)
        assert opened.multiply(x.public) == x.multiply(opened.public)
        assert keys.open_exchange(key) is opened
    for wrong in (replace(new, jwe=other.jwe), replace(new, kid=other.kid), replace(new, use="sign")):
        with pytest.raises(Unavailable) as refused:
            (keys.open_signer if wrong.use == "sign" else keys.open_exchange)(wrong)
        assert refused.value.code == "internal"


def test_an_inner_key_of_another_name(server_tpm: ServerTpm) -> None:
    """Even with the secret, a header cannot name another key than the one that the TPM wrapped."""
    keys = EncryptedKeys(SECRET, server_tpm)
    new, other = (server_tpm.create() for _ in range(2))
    lie = keys._encrypted(
        "exchange", TpmExchangeKey(new, server_tpm), other.encode(), NOW, OPEN, cty="tpm2-wrapped-key"
    )
    no_key = keys._encrypted(
        "exchange", TpmExchangeKey(new, server_tpm), b"other", NOW, OPEN, cty="tpm2-wrapped-key"
    )
    for wrong in (lie, no_key):
        with pytest.raises(Unavailable, match="is not the key"):
            keys.open_exchange(wrong)


def test_a_wrong_product_is_not_released(server_tpm: ServerTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point off the curve comes from a TPM that is broken or tampered with."""
    key = TpmExchangeKey(server_tpm.create(), server_tpm)
    zgen = Tpm.zgen

    def disturbed(tpm: Tpm, wrapped: WrappedKey, x: Point) -> tuple[int, int]:
        product = zgen(tpm, wrapped, x)
        return product[0], product[1] ^ 1

    monkeypatch.setattr(Tpm, "zgen", disturbed)
    assert refusal(key) == "server-tpm-unavailable"


def test_the_encoding(server_tpm: ServerTpm) -> None:
    """The written form is read; anything else is an error, and nothing secret is ever printed."""
    wrapped = server_tpm.create()
    assert WrappedKey.decode(wrapped.encode()) == wrapped
    for wrong in (b"", wrapped.encode()[:-1], wrapped.encode() + b"\0", b"\xff" * 9):
        with pytest.raises(ValueError, match="structure"):
            WrappedKey.decode(wrong)
    for public in (b"", b"\0" * 50, replace(wrapped, public=wrapped.public[:4]).public):
        with pytest.raises(ValueError, match=r"structure|curve"):
            replace(wrapped, public=public).point()
    assert repr(wrapped.auth) not in repr(wrapped)
    assert repr(wrapped.private) not in repr(wrapped)


# --- a TPM that is away ------------------------------------------------------------------------------------------


def test_a_tpm_that_comes_back(swtpm: Swtpm, server_tpm: ServerTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is away the error says so; back, it answers the next request."""
    monkeypatch.setattr(queueing, "_WELL_FOR_S", 0)  # a TPM that was well a second ago is asked again
    key = TpmExchangeKey(server_tpm.create(), server_tpm)
    x = client(key.curve)
    port = swtpm.port
    for _ in range(2):
        swtpm.stop()
        for ask in (key.check, key.load, lambda: key.multiply(x.public), server_tpm.create):
            with pytest.raises(Unavailable) as refused:
                ask()
            assert refused.value.code == "server-tpm-unavailable"
        swtpm.start(port)
        assert key.multiply(x.public) == x.multiply(key.public)
    # Reset so quickly that nobody noticed: the connection of before fails, and a new one does not.
    swtpm.stop()
    swtpm.start(port)
    assert key.multiply(x.public) == x.multiply(key.public)


@pytest.mark.parametrize("tcti", ["device:/dev/no-such-tpm", "device:/dev/null", "swtpm:host=127.0.0.1,port=1", "tabrmd:bus_name=no.such"])  # fmt: skip
def test_a_tpm_that_is_not_there(tcti: str) -> None:
    """Every fault of the TCTI has one code."""
    with pytest.raises(Unavailable) as refused:
        ServerTpm(tcti).check()
    assert refused.value.code == "server-tpm-unavailable"


def test_leftovers_of_a_killed_server(swtpm: Swtpm) -> None:
    """Without a resource manager, what a killed server left in the TPM is taken out by the next one."""
    for _ in range(5):
        tpm = Tpm(swtpm.tcti)
        key = tpm.create("P-256")
        tpm.load(key)
        tpm._esapi.close()  # as if killed: nothing is flushed
    tpm = Tpm(swtpm.tcti)
    tpm.load(key)
    tpm.close()
    left = swtpm.run("tpm2", "getcap", "handles-transient").stdout + swtpm.run("tpm2", "getcap", "handles-loaded-session").stdout  # fmt: skip
    assert left == b""


def test_a_persistent_storage_key_is_used(swtpm: Swtpm) -> None:
    """The usual one at its usual handle is the same key; another one there is passed over."""
    made = Tpm(swtpm.tcti)
    key, name = made.create("P-256"), made.parent
    made.close()
    attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
    for algorithm in ("ecc256:aes128cfb", "ecc256:aes256cfb"):
        swtpm.run(
            *("tpm2", "createprimary", "-Q", "-C", "o", "-g", "sha256", "-c", "primary.ctx"),
            *("-G", algorithm, "-a", attributes),
        )
        swtpm.run("tpm2", "evictcontrol", "-Q", "-C", "o", "-c", "primary.ctx", "0x81000001")
        swtpm.run("tpm2", "flushcontext", "-t")
        tpm = Tpm(swtpm.tcti)
        assert tpm.parent == name
        assert len(tpm._held) == (1 if algorithm == "ecc256:aes128cfb" else 2)
        tpm.load(key)
        tpm.close()
        swtpm.run("tpm2", "evictcontrol", "-Q", "-C", "o", "-c", "0x81000001")


def test_an_owner_who_locked_his_hierarchy(swtpm: Swtpm, server_tpm: ServerTpm) -> None:
    """Without a persistent storage key, and with a password of the owner, the TPM refuses us."""
    swtpm.run("tpm2", "changeauth", "-c", "owner", "secret")
    with pytest.raises(Unavailable) as refused:
        server_tpm.check()
    assert refused.value.code == "server-tpm-unavailable"


# --- one TPM, many requests --------------------------------------------------------------------------------------


def test_many_at_once(server_tpm: ServerTpm) -> None:
    """16 clients with four keys, more than the TPM holds at a time: every Y is right."""
    keys = [TpmExchangeKey(server_tpm.create(), server_tpm) for _ in range(4)]

    def ask(number: int) -> bool:
        key = keys[number % 4]
        x = client(key.curve)
        return server_tpm.submit(key.multiply, x.public).result(60) == x.multiply(key.public)

    with ThreadPoolExecutor(16) as clients:
        assert all(clients.map(ask, range(64)))


def test_the_queue_is_bounded(server_tpm: ServerTpm) -> None:
    """A call beyond the queue is refused at once; one that was given up costs the TPM nothing; the rest are answered."""
    go = threading.Event()
    asked: list[int] = []
    first = server_tpm.submit(go.wait, 60)
    while not first.running():
        pass
    waiting = [server_tpm.submit(asked.append, number) for number in range(queueing.QUEUE)]
    with pytest.raises(Unavailable, match=f"{queueing.QUEUE} exchanges wait"):
        server_tpm.submit(asked.append, -1)
    assert waiting[7].cancel()
    go.set()
    waiting[-1].result(60)
    assert asked == [number for number in range(queueing.QUEUE) if number != 7]


def test_a_tpm_that_hangs(swtpm: Swtpm, server_tpm: ServerTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever, not even the end of the server; when it goes on, so do we."""
    key = TpmExchangeKey(server_tpm.create(), server_tpm)
    x = client(key.curve)

    async def ask() -> Point:
        return await exchanging.run_where(key.place, key.multiply, x.public)

    os.kill(swtpm.pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as impatient:
            impatient.setattr(exchanging, "PATIENCE_S", 0.5)
            with pytest.raises(Unavailable) as refused:
                asyncio.run(ask())
        assert refused.value.code == "server-tpm-unavailable"
    finally:
        os.kill(swtpm.pid, signal.SIGCONT)
    assert asyncio.run(ask()) == x.multiply(key.public)
    os.kill(swtpm.pid, signal.SIGSTOP)
    try:
        waiting = server_tpm.submit(key.multiply, x.public)
        monkeypatch.setattr(queueing, "_LEAVE_AFTER_S", 0.5)
        server_tpm.shutdown()
        assert not waiting.done()
    finally:
        os.kill(swtpm.pid, signal.SIGCONT)
    assert waiting.result(60) == x.multiply(key.public)


def test_without_a_tpm() -> None:
    """Without the setting, every call reports it, and nothing is started."""
    tpm = ServerTpm()
    for use in (tpm.check, tpm.create, lambda: tpm.submit(print)):
        with pytest.raises(Unavailable) as refused:
            use()
        assert refused.value.code == "server-tpm-unavailable"
    tpm.shutdown()


def test_a_tpm_key_for_another_holder(server_tpm: ServerTpm) -> None:
    """A key in the TPM answers only the AK that its record was encrypted for, too."""
    keys = EncryptedKeys(SECRET, server_tpm)
    key = asyncio.run(keys.create_exchange("P-521", NOW, HOLDER))
    assert keys.open_exchange(key).kid == key.kid
    for wrong in (OPEN, holder(b"other", b"key")):
        with pytest.raises(Unavailable) as refused:
            keys.open_exchange(replace(key, holder=wrong))
        assert refused.value.code == "registry-tampered"


# --- a password of the owner hierarchy ------------------------------------------------------------------------------


def test_the_owner_hierarchy_has_a_password(swtpm: Swtpm) -> None:
    """Without it the sentence says what is missing; a wrong one is named; with it keys are made and used."""
    swtpm.run("tpm2", "changeauth", "-c", "o", "secret")
    for given, said in ((None, "has a password"), (b"wrong", "is not that of its owner hierarchy")):
        with pytest.raises(Unavailable) as refused:
            ServerTpm(swtpm.tcti, lambda given=given: given).create()  # type: ignore[misc]
        assert refused.value.code == "server-tpm-unavailable"
        assert said in refused.value.sentence
        assert "owner_auth_file" in refused.value.sentence
    tpm = ServerTpm(swtpm.tcti, lambda: b"secret")
    key = TpmExchangeKey(tpm.create(), tpm)
    x = client(key.curve)
    assert key.multiply(x.public) == x.multiply(key.public)
    tpm.shutdown()


def test_the_password_is_not_asked_for_in_vain(swtpm: Swtpm) -> None:
    """A hierarchy without one, or a storage key that is there already, needs none."""

    def asked() -> bytes | None:
        raise AssertionError("nobody needs it")

    tpm = ServerTpm(swtpm.tcti, asked)
    tpm.create()
    tpm.shutdown()
