"""The cost of signed values: processor time of the server for an unlock by an approved state and by signed ones, in turn.

.venv/bin/python -m tests.bench.signed [ROUNDS]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tang_attest.protocol.challenge import unlock_digest
from tang_attest.protocol.quote import Evidence
from tang_attest.protocol.signed_values import statement
from tang_attest.protocol.signed_values.statement import ValueStatement
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.audit.actors import Caller
from tang_attest.service.policies.signers import SignerTerms
from tests.attester import Attester, members
from tests.protocol.signed_values import signing
from tests.server import Server, new_x

_CALLER = Caller("192.0.2.7", "0123456789abcdef")
_SELECTION = "sha256:0,4,7,11,15"


async def measure(directory: Path, rounds: int) -> dict[str, float]:
    """Return the median of processor milliseconds of an unlock, by what permits it."""
    vendor, pipeline = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256R1())
    async with Server(directory) as server:
        server.clock.time = datetime.now(UTC)
        attester = Attester()
        kid = await server.enroll(attester, selection=Selection.parse(_SELECTION))
        assert (await server.unlock(attester, kid)).code == "state-learned"
        for name, key, pcrs in (("vendor", vendor, (11,)), ("pipeline", pipeline, (4,))):
            terms = SignerTerms(name=name, pem=signing.public_pem(key), pcrs=pcrs)
            await server.signers.trust("pi-b", terms)
        attester.reset_count += 1
        base = dict(attester.pcrs["sha256"])
        changed = {4: b"\x44" * 32, 11: b"\xbb" * 32}
        now = server.clock.now().replace(microsecond=0)
        made = ValueStatement(
            policies=("pi-b",),
            bank="sha256",
            values={4: changed[4]},
            label="web/1",
            version=1,
            not_before=now - timedelta(hours=1),
            not_after=now + timedelta(days=1),
        )
        kinds: dict[str, tuple[int | None, Mapping[str, Any] | None]] = {
            "approved": (None, None),
            ".pcrsig": (11, {"pcrsig": signing.pcrsig(vendor, changed[11])}),
            "statement": (4, {"statements": [statement.sign(made, signing.private_pem(pipeline))]}),
        }
        spent: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(rounds + 5):
            for kind, (pcr, brought) in kinds.items():
                attester.pcrs["sha256"] = base | ({} if pcr is None else {pcr: changed[pcr]})
                took = await _unlock(server, attester, kid, brought)
                if number >= 5:  # the first ones fill caches
                    spent[kind].append(took)
    return {kind: 1000 * median(times) for kind, times in spent.items()}


async def _unlock(server: Server, attester: Attester, kid: str, brought: Mapping[str, Any] | None) -> float:
    """Return the processor seconds of one unlock, without those of the client."""
    assert server.site.attest is not None
    unlock = server.site.attest.unlock
    x = dict(members(new_x()))
    begun = time.process_time()
    challenge = await unlock.challenge(kid)
    asked = time.process_time() - begun
    quote = attester.attest(unlock_digest(challenge.nonce, kid, thumbprint(x)), str(challenge.selection))
    evidence = Evidence(
        challenge.nonce, quote, attester.sign(quote), attester.values(str(challenge.selection))
    )
    evidence = replace(evidence, signed_values=brought)
    begun = time.process_time()
    await unlock.respond(kid, x, evidence, _CALLER)
    return asked + time.process_time() - begun


def main(rounds: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        found = asyncio.run(measure(Path(directory) / "state", rounds))
    approved = found["approved"]
    for kind, milliseconds in found.items():
        print(f"{kind:10} {milliseconds:6.2f} ms  {100 * (milliseconds / approved - 1):+5.1f} %")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
