"""Policy subcommands for signers: whose statements count, and for which PCRs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.cli.types import Pcrs
from tang_attest.files import read_file
from tang_attest.protocol.signed_values import pcrsig
from tang_attest.protocol.signed_values.keys import MAX_KEY, StatementForm
from tang_attest.protocol.signed_values.statement import inspect
from tang_attest.service.policies.signers import SignerTerms, describe_signer

if TYPE_CHECKING:
    from tang_attest.protocol.signed_values.signer import Signer, Signers


@click.command("trust-signer")
@click.argument("name")
@click.argument("key", type=click.Path(path_type=Path))
@click.option(
    "--pcrs",
    type=Pcrs(),
    required=True,
    help="The PCRs that it may sign, such as 11, or 4,9; never 7 or the cap.",
)
@click.option("--name", "signer", help="What the signer is called; the name of the file by default.")
@click.option(
    "--label",
    help="It signs this label and those below it (LABEL/...) only; images of a .pcrsig are labeled below it.",
)
@click.option(
    "--no-rollback", is_flag=True, help="Refuse a lower version than the highest that was permitted."
)
@click.option("--force", is_flag=True, help="Even if nothing pins the program that measures these PCRs.")
@output.json_option
def trust_signer(
    name: str,
    key: Path,
    pcrs: tuple[int, ...],
    signer: str | None,
    label: str | None,
    no_rollback: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Let values that a key signs count.

    KEY is a public key in PEM.  An RSA key signs .pcrsig, as ukify and systemd-measure do; a key on P-256 or Ed25519
    signs statements, as 'tang-attest values sign' does.  A machine that brings signed values needs nobody's approval.
    All other PCRs have to be as a state of the policy has them.

    Let ukify use an RSA key for the phase enter-initrd only: by default it signs later phases with the same key, whose
    values root on a running machine can quote.  The cap decides even then.

    PCR 11 alone proves nothing, because any program can extend it to a signed value.  So the policy needs PCR 7, with
    Secure Boot on, or PCR 4.

    Trust a new key before you drop the old one: both count meanwhile.

    \b
    tang-attest policy trust-signer webservers vendor-pcr.pub --pcrs 11
    tang-attest policy trust-signer webservers pipeline.pem --pcrs 4,9 --label web --no-rollback
    """
    pem = read_file(key, MAX_KEY)
    terms = SignerTerms(
        name=signer or key.name.partition(".")[0], pem=pem, pcrs=pcrs, label=label, no_rollback=no_rollback
    )
    made = run(lambda state: state.signers.trust(name, terms, force=force))
    what = "a .pcrsig" if made.form is StatementForm.PCRSIG else "statements"
    sentence = f"policy {name} trusts signer {made.name}: {what} about PCR {_numbers(made.pcrs)}"
    output.done(as_json, sentence, signer_as_json(name, made))
    if made.form is StatementForm.PCRSIG:
        output.hint("the key has to sign the phase enter-initrd only (ukify --phases=enter-initrd)")
    else:
        if pcrsig.PCR in made.pcrs:
            output.hint("a .pcrsig does not count with this key: ukify has to sign with an RSA key")
        output.hint(f"sign values with 'tang-attest values sign FILE --key PRIVATE.pem --policy {name} ...'")


@click.command()
@click.argument("name")
@output.wide_option
@output.json_option
def signers(name: str, wide: bool, as_json: bool) -> None:
    """List the signers of a policy, and what they signed.

    Shown are the highest versions that were permitted, the statements that were posted, and the retired labels.
    """
    found = run(lambda state: state.signers.signers(name))
    if as_json:
        output.print_json(_as_json(name, found))
        return
    output.table(
        ("signer", "form", "pcrs", "labels", "rollback", "highest versions", "since", "by", "key"),
        [
            (
                each.name,
                each.form.value,
                _numbers(each.pcrs),
                each.label or "all",
                "refused" if each.no_rollback else "allowed",
                _versions(each) or None,
                each.added_at,
                each.added_by,
                each.key_id[:16],
            )
            for each in found.signers
        ],
        empty=f"policy {name} trusts no signer",
        extra=("since", "by"),
        wide=wide,
    )
    if found.statements:
        posted = [inspect(text)[1] for text in found.statements]
        output.table(
            ("posted", "version", "pcrs", "from", "until"),
            [
                (each.label, each.version, _numbers(each.values), each.not_before, each.not_after)
                for each in posted
            ],
            empty="",
        )
    for label in found.retired:
        output.say(f"retired: {label}")
        output.hint(f"tang-attest policy reinstate {name} {shlex.quote(label)}")


@click.command("drop-signer")
@click.argument("name")
@click.argument("signer")
@output.json_option
def drop_signer(name: str, signer: str, as_json: bool) -> None:
    """Let what a signer signed count no more.

    It takes effect at once, for running machines in their next round.  Machines whose boot only this signer vouches
    for need another signer's statement or an approval at their next boot.
    """
    run(lambda state: state.signers.drop(name, signer))
    result = {"policy": name, "signer": signer, "trusted": False}
    output.done(as_json, f"policy {name} does not trust signer {signer} any more", result)


def _numbers(pcrs: object) -> str:
    return ",".join(str(pcr) for pcr in sorted(pcrs))  # type: ignore[call-overload]  # any collection of numbers


def _versions(signer: Signer) -> str:
    return ", ".join(
        f"{family}: {highest.version}" if family else str(highest.version)
        for family, highest in sorted(signer.highest.items())
    )


def signer_as_json(policy: str, signer: Signer) -> dict[str, object]:
    """*signer* of *policy*, for programs."""
    return {
        "policy": policy,
        **describe_signer(signer),
        "highest": {
            family: {"version": highest.version, "at": highest.at}
            for family, highest in sorted(signer.highest.items())
        },
        "added_at": signer.added_at,
        "added_by": signer.added_by,
    }


def _as_json(policy: str, found: Signers) -> dict[str, object]:
    posted = [inspect(text)[1] for text in found.statements]
    return {
        "policy": policy,
        "signers": [signer_as_json(policy, each) for each in found.signers],
        "statements": [
            {
                "label": each.label,
                "version": each.version,
                "pcrs": sorted(each.values),
                "not_before": each.not_before,
                "not_after": each.not_after,
            }
            for each in posted
        ],
        "retired": list(found.retired),
    }


COMMANDS: Final = (trust_signer, signers, drop_signer)
