"""``tang-attest ek-root``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.errors import Malformed, Refused, TangAttestError
from tang_attest.files import read_file
from tang_attest.programs.tpm2 import Tpm2Tools
from tang_attest.protocol.endorsement.endorsement import MAX_CERTIFICATE, MAX_ROOTS_FILE, EndorsementKey
from tang_attest.service.enrollment.endorsing import endorse

if TYPE_CHECKING:
    from tang_attest.ports.enrollment import EkRoot
    from tang_attest.server.compose import Installation

#: NV indices of EK certificates (EK Credential Profile 2.5, section "NV indices"), in the order in which the pin
#: looks: RSA 2048 and P-256 of the low range; RSA 2048, P-256, P-384, P-521, RSA 3072 and 4096 of the high range.
EK_CERTIFICATES: Final = (
    "0x01c00002",
    "0x01c0000a",
    "0x01c00012",
    "0x01c00014",
    "0x01c00016",
    "0x01c00018",
    "0x01c0001c",
    "0x01c0001e",
)


@click.group("ek-root")
def ek_root() -> None:
    """Certificates of TPM vendors that vouch for EKs."""


@ek_root.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--label", help="A name for listings; the certificate's subject by default.")
@output.json_option
def add(file: Path, label: str | None, as_json: bool) -> None:
    """Trust every certificate in FILE.

    FILE is a PEM bundle or DER, with TPM vendors' roots and intermediates.
    """
    data = read_file(file, MAX_ROOTS_FILE)
    added = run(lambda state: state.ek_roots.add(data, label))
    if as_json:
        output.print_json([_root_as_json(root) for root in added])
        return
    for root in added:
        output.say(f"trusted: {root.label} ({root.fingerprint})")


def _root_as_json(root: EkRoot) -> dict[str, object]:
    return {"fingerprint": root.fingerprint, "label": root.label, "added_at": root.added_at}


@ek_root.command("list")
@output.wide_option
@output.json_option
def list_roots(wide: bool, as_json: bool) -> None:
    """List the trusted certificates."""

    async def load(installation: Installation) -> list[EkRoot]:
        return list(await installation.store.enrollment.list_ek_roots())

    roots = run(load)
    if as_json:
        output.print_json([_root_as_json(root) for root in roots])
        return
    output.table(
        ("fingerprint", "label", "added"),
        [(r.fingerprint, r.label, r.added_at) for r in roots],
        empty="no EK roots: only tokens with --allow-unverified-ek can be used",
        extra=("added",),
        prose=("label",),
        wide=wide,
    )


@ek_root.command()
@click.argument("certificate", type=click.Path(path_type=Path), required=False)
@click.option("--tpm", is_flag=True, help="Check the EK certificates that a TPM of this machine holds.")
@click.option("--tcti", default="device:/dev/tpmrm0", show_default=True, help="With --tpm: the way to it.")
@output.json_option
@click.pass_context
def check(ctx: click.Context, certificate: Path | None, tpm: bool, tcti: str, as_json: bool) -> None:
    """Try an EK certificate, before a token is used up.

    It is compared with the trusted certificates.  CERTIFICATE is what 'tpm2 nvread 0x01c00002' or 'tpm2
    getekcertificate' wrote on the machine.  Exit with 0 when it is verified, 1 when an enrollment with it
    would be refused, 2 when nothing could be checked.  Only an enrollment shows that the TPM holds the key.

    \b
    tang-attest ek-root check ek.der
    tang-attest ek-root check --tpm --json
    """
    if tpm == (certificate is not None):
        raise click.UsageError("give a certificate, or --tpm")
    try:
        found = (
            _in_tpm(tcti)
            if certificate is None
            else {str(certificate): read_file(certificate, MAX_CERTIFICATE)}
        )
    except TangAttestError as problem:
        output.error(problem)
        ctx.exit(2)
    if not found:
        output.say("the TPM holds no EK certificate; it enrolls only with --allow-unverified-ek")
    results = [_check(name, data) for name, data in found.items()]
    if as_json:
        output.print_json([_as_json(result) for result in results])
    else:
        for result in results:
            _show(result)
    ctx.exit(0 if results and all(isinstance(result.verdict, EndorsementKey) for result in results) else 1)


@dataclass(frozen=True, slots=True)
class _Result:
    """One certificate, and the key that it vouches for or the refusal of an enrollment."""

    name: str
    verdict: EndorsementKey | TangAttestError


def _check(name: str, data: bytes) -> _Result:
    async def judge(installation: Installation) -> EndorsementKey:
        return await endorse(installation.store.enrollment, data, None, installation.world.clock.now())

    try:
        return _Result(name, run(judge))
    except (Malformed, Refused) as problem:
        if not problem.code.startswith("ek-"):
            raise
        return _Result(name, problem)


def _in_tpm(tcti: str) -> Mapping[str, bytes]:
    return asyncio.run(Tpm2Tools().read_nv(tcti, EK_CERTIFICATES))


def _show(result: _Result) -> None:
    if isinstance(result.verdict, TangAttestError):
        output.say(f"{result.name}: refused")
        output.error(result.verdict)
        return
    key = result.verdict
    output.say(f"{result.name}: verified by {key.root} ({key.root_fingerprint}), issued by {key.issuer}")
    if key.subject_hint:
        output.say(f"  the TPM is {key.subject_hint}")


def _as_json(result: _Result) -> dict[str, object]:
    if isinstance(result.verdict, TangAttestError):
        reasons = [reason.as_json() for reason in result.verdict.reasons]
        return {
            "certificate": result.name,
            "verified": False,
            "code": result.verdict.code,
            "reasons": reasons,
        }
    key = result.verdict
    return {
        "certificate": result.name,
        "verified": True,
        "code": "ok",
        "issuer": key.issuer,
        "root": key.root,
        "root_fingerprint": key.root_fingerprint,
        "tpm": key.subject_hint,
    }


@ek_root.command()
@click.argument("fingerprint")
@output.json_option
def remove(fingerprint: str, as_json: bool) -> None:
    """Trust a certificate no longer.

    FINGERPRINT may be shortened to 8 digits.  Devices that enrolled with the certificate stay.
    """

    async def drop(installation: Installation) -> str:
        known = [root.fingerprint for root in await installation.store.enrollment.list_ek_roots()]
        matching = [
            entry for entry in known if len(fingerprint) >= 8 and entry.startswith(fingerprint.lower())
        ]
        chosen = matching[0] if len(matching) == 1 else fingerprint
        await installation.ek_roots.remove(chosen)
        return chosen

    removed = run(drop)
    output.done(as_json, f"no longer trusted: {removed}", {"fingerprint": removed})
