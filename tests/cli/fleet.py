"""The machines of a transcript: they enroll and unlock with software AKs against the state on the disk."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tpm2_pytss.constants import TPMA_OBJECT

from tang_attest.config import Settings
from tang_attest.errors import TangAttestError
from tang_attest.protocol.challenge import announce_digest, unlock_digest
from tang_attest.protocol.enrollment import activation_proof, enrollment_digest
from tang_attest.protocol.quote import Evidence
from tang_attest.protocol.tpm import parse_ak
from tang_attest.protocol.values.advertisement import thumbprint
from tang_attest.server.compose import Installation, opened
from tang_attest.service.audit.actors import Caller
from tang_attest.service.enrollment.enroll import Application
from tang_attest.service.policies.announce import Announcement
from tang_attest.service.rounds.polls import Polls
from tests.attester import AK_ATTRIBUTES, Attester, members
from tests.swtpm import Swtpm

_CALLER = Caller("192.0.2.7", "0123456789abcdef")
_VECTORS = Path(__file__).parent.parent / "vectors" / "ek"


class Machines:
    """Each is made when it is first named; a context manager that ends what runs of them."""

    def __init__(self) -> None:
        self._machines: dict[str, Attester] = {}
        self._tpms: dict[str, Swtpm] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for tpm in self._tpms.values():
            tpm.stop()

    def act(self, line: str) -> str:
        """Do what *line* tells and return the result."""
        name, _, deed = line.partition(" ")
        if deed == "starts its TPM":
            tpm = self._tpms.setdefault(name, Swtpm(Path(name).absolute(), banks=("sha256",)))
            tpm.start()
            return tpm.tcti
        machine = self._machines.setdefault(name, Attester())
        for pattern, happens in _DEEDS.items():
            if match := re.fullmatch(pattern, deed):
                return happens(machine, *match.groups())
        if match := re.fullmatch(r"enrolls with (\S+)", deed):
            return asyncio.run(self._try(self._enroll(machine, name, match[1])))
        if match := re.fullmatch(r"announces a boot with PCR (\d+) extended, as (\S+)", deed):
            return asyncio.run(self._try(self._announce(machine, name, int(match[1]), match[2])))
        if match := re.fullmatch(r"unlocks(?: with the statement (\S+))?", deed):
            text = None if match[1] is None else Path(match[1]).read_text().strip()
            return asyncio.run(self._try(self._unlock(machine, name, text)))
        raise ValueError(f"no machine can do this: {line}")

    async def _try(self, deed: Coroutine[None, None, str]) -> str:
        try:
            return await deed
        except TangAttestError as error:
            return f"refused: {error.code}"

    async def _enroll(self, machine: Attester, name: str, token: str) -> str:
        async with opened(Settings(state=Path("state"))) as state:
            enroll = state.attestation(Polls()).enroll
            application = Application(name, token, machine.ak_public, machine.ek_public, None)
            begun = await enroll.begin(application, _CALLER)
            secret = machine.activate(
                begun.activation.credential_blob,
                begun.activation.encrypted_secret,
                parse_ak(machine.ak_public).name,
            )
            proof = activation_proof(begun.challenge.nonce, secret)
            binding = enrollment_digest(begun.challenge.nonce, name, proof)
            evidence = _evidence(machine, "", binding, str(begun.challenge.selection))
            await enroll.finish(begun.session, proof, evidence, _CALLER)
            return "enrolled"

    async def _unlock(self, machine: Attester, name: str, statement: str | None) -> str:
        async with opened(Settings(state=Path("state"))) as state:
            unlock = state.attestation(Polls()).unlock
            kid = await _kid(state, name)
            challenge = await unlock.challenge(kid)
            x = dict(members(ec.generate_private_key(ec.SECP521R1())))
            binding = unlock_digest(challenge.nonce, kid, thumbprint(x))
            evidence = _evidence(machine, challenge.nonce, binding, str(challenge.selection))
            if statement is not None:
                evidence = replace(evidence, signed_values={"statements": [statement]})
            await unlock.respond(kid, x, evidence, _CALLER)
            return "unlocked"

    async def _announce(self, machine: Attester, name: str, pcr: int, label: str) -> str:
        async with opened(Settings(state=Path("state"))) as state:
            use_case = state.attestation(Polls()).announce
            kid = await _kid(state, name)
            challenge = await use_case.challenge(kid)
            values = _twin(machine, pcr).values(str(challenge.selection))
            binding = announce_digest(challenge.nonce, kid, values, label)
            evidence = _evidence(machine, challenge.nonce, binding, str(challenge.selection))
            announcement = Announcement(label, values, (f"PCR {pcr}: kernel /boot/vmlinuz",))
            announced, _ = await use_case.announce(kid, announcement, evidence, _CALLER)
            return announced.life.value


def _extend(machine: Attester, pcr: str) -> str:
    machine.extend(int(pcr), b"something")
    return "extended"


def _boot(machine: Attester) -> str:
    machine.reset_count += 1
    for values in machine.pcrs.values():
        values[15] = bytes(len(values[0]))
    return "booted"


def _boot_as(machine: Attester, vector: str) -> str:
    machine.boot(vector)
    return "booted"


def _write_values(machine: Attester, pcr: str | None, path: str) -> str:
    source = _twin(machine, int(pcr)) if pcr else machine
    lines = [f"{number}: 0x{value.hex()}" for number, value in source.pcrs["sha256"].items()]
    Path(path).write_text("\n".join(["sha256:", *lines]) + "\n")
    return "written"


def _write_ak(machine: Attester, path: str) -> str:
    Path(path).write_bytes(machine.ak_public)
    return "written"


#: Acts of a machine alone, without the server.
_DEEDS: dict[str, Callable[..., str]] = {
    r"extends PCR (\d+)": _extend,
    r"boots": _boot,
    r"boots as in (\S+)": _boot_as,
    r"writes its values(?: with PCR (\d+) extended)? to (\S+)": _write_values,
    r"writes its AK to (\S+)": _write_ak,
}


def _twin(machine: Attester, pcr: int) -> Attester:
    """*machine* as it will be once ``extends PCR`` happened and it booted."""
    twin = Attester()
    twin.pcrs = {bank: dict(values) for bank, values in machine.pcrs.items()}
    twin.extend(pcr, b"something")
    twin.pcrs["sha256"][15] = bytes(32)
    return twin


async def _kid(installation: Installation, name: str) -> str:
    return (await installation.store.devices.get_device(name)).kids[0]


def _evidence(machine: Attester, nonce: str, binding: bytes, selection: str) -> Evidence:
    quote = machine.attest(binding, selection)
    return Evidence(nonce, quote, machine.sign(quote), machine.values(selection), machine.event_log)


def prepare(directory: Path, files: Mapping[str, str]) -> Machines:
    """Lay *files*, public areas of AKs, vendors' certificates and event logs into *directory*; the machines."""
    for name, content in files.items():
        (directory / name).write_text(content)
    machine = Attester()
    (directory / "ak.tpm2b").write_bytes(machine.ak_public)
    (directory / "ak.tpmt").write_bytes(machine.ak_public[2:])
    pem = machine.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (directory / "ak.pem").write_bytes(pem)
    (directory / "other.tpm2b").write_bytes(Attester().ak_public)
    weak = Attester(attributes=int(AK_ATTRIBUTES & ~TPMA_OBJECT.RESTRICTED & ~TPMA_OBJECT.FIXEDTPM))
    (directory / "weak.tpm2b").write_bytes(weak.ak_public)
    (directory / "garbage").write_bytes(b"\x00\x05\xff garbage")
    event_logs = _VECTORS.parent / "eventlogs"
    for vector in (*_VECTORS.glob("*.pem"), *event_logs.glob("*.bin"), *event_logs.glob("pcrs/*.json")):
        shutil.copy(vector, directory)
    return Machines()
