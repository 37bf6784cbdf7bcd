"""``python -m tests.bench.steps``: what the steps of an attested unlock cost by themselves, without HTTP.

One thread, no other work in the process; each figure is the median of some hundred calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Final, cast

from cryptography.hazmat.primitives.asymmetric import ec

from tang_attest.config import Settings
from tang_attest.protocol import tpm
from tang_attest.protocol.challenge import unlock_digest
from tang_attest.protocol.enrollment import EnrolledDevice
from tang_attest.protocol.quote import verify_quote
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.points import Point, parse_point
from tang_attest.server.compose import Installation, opened
from tang_attest.store import SqlStore
from tang_attest.store.database import authentic, tables
from tang_attest.web.wire import AttestMember, parse_json, validate
from tests.bench.load import servers
from tests.bench.load.attester import SELECTION, Blinded, Machine
from tests.bench.load.workplace import workplace

_CALLS: Final = 300
#: Its form counts here, and its text only has to be the one that is signed.
_NONCE: Final = "n" * 76


async def _measure(installation: Installation, machine: Machine) -> dict[str, float]:
    x = Blinded.make()
    body = machine.evidence(_NONCE, x)
    jwk = parse_json(body)
    member = jwk.pop("attest")
    evidence = validate(AttestMember, member).evidence()
    bound = await installation.store.decisions.find_key(machine.kid)
    if bound is None or bound.device is None:
        raise RuntimeError("the machine is not enrolled")
    key, point = installation.private_keys.open_exchange(bound.key), parse_point(jwk)
    ak = tpm.parse_ak(bound.device.ak_public)
    device = EnrolledDevice(machine.kid, ak)
    binding = unlock_digest(_NONCE, machine.kid, thumbprint(point.members()))
    selection = (await installation.store.policies.get_policy(bound.device.policy)).selection
    signature = tpm.parse_signature(evidence.signature)
    private, peer = ec.generate_private_key(ec.SECP521R1()), machine.server
    found = await _time_find(installation, machine.kid)
    store = cast(SqlStore, installation.store)
    row = await store._database.read(lambda connection: authentic.load(connection, tables.device)[0])
    form, seals = authentic.form(tables.device), store._authenticity
    return {
        "one raw P-521 ECDH": _time(lambda: private.exchange(ec.ECDH(), peer)),
        "... with a point that is read for it": _time(
            lambda: private.exchange(ec.ECDH(), point.public_key())
        ),
        "a modular inverse": _time(lambda: pow(point.x, -1, point.curve.p)),
        "the exchange": _time(lambda: key.multiply(point)),
        "checking the quote, all of it": _time(lambda: verify_quote(device, evidence, selection, binding)),
        "... its structure": _time(lambda: tpm.parse_attest(evidence.quote)),
        "... the signature's structure": _time(lambda: tpm.parse_signature(evidence.signature)),
        "... the signature": _time(lambda: tpm.verify_signature(ak, signature, evidence.quote)),
        "reading the body": _time(lambda: validate(AttestMember, parse_json(body)["attest"]).evidence()),
        "reading X, and its thumbprint": _time(lambda: _thumbprint(jwk)),
        "finding key, device and policy, alone": found,
        "... the seal of the device's row": _time(
            lambda: seals.digest(form, row.serial, row.version, row.raw)
        ),
    }


def _thumbprint(jwk: Mapping[str, object]) -> str:
    point: Point = parse_point(jwk)
    return thumbprint(point.members())


def _time(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_CALLS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return 1e6 * median(times)


async def _time_find(installation: Installation, kid: str) -> float:
    times = []
    for _ in range(_CALLS):
        begin = time.perf_counter()
        await installation.store.decisions.find_key(kid)
        times.append(time.perf_counter() - begin)
    return 1e6 * median(times)


def main() -> None:
    """Enroll a machine over HTTP, then measure in this process."""
    with workplace("steps") as work:
        servers.init(work / "state")
        (token,) = servers.create_tokens(work / "state", [SELECTION])
        with servers.serve(work / "state", None, work / "log") as server:
            machine = Machine(server.port, "machine", token)

        async def run() -> dict[str, float]:
            async with opened(Settings(state=work / "state")) as state:
                return await _measure(state, machine)

        steps = asyncio.run(run())
    for name, microseconds in steps.items():
        print(f"{name:42}{microseconds:8.0f} µs")


if __name__ == "__main__":
    main()
