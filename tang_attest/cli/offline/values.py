"""``tang-attest values``: sign values for policies, and look at what is signed; without a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from tang_attest.cli import output
from tang_attest.cli.types import MOMENT, Duration, Pcrs
from tang_attest.errors import Malformed
from tang_attest.files import read_file, write_line
from tang_attest.protocol.signed_values import pcrsig, statement
from tang_attest.protocol.signed_values.examine import untimely
from tang_attest.protocol.signed_values.keys import MAX_KEY, read_key
from tang_attest.protocol.signed_values.pcrsig import PcrSignature
from tang_attest.protocol.signed_values.signer import SECURE_BOOT_PCR
from tang_attest.protocol.signed_values.statement import MAX_STATEMENT, SUFFIX, ValueStatement
from tang_attest.protocol.values.pcr import BANK_SIZES, Selection
from tang_attest.protocol.values.pcr_file import parse_every_value, parse_values

_MAX_VALUES: Final = 64 * 1024
_VALID_FOR: Final = timedelta(days=90)


@click.group()
def values() -> None:
    """Signed values of boots, for policies that trust the key.

    A pipeline signs the PCR values of what it builds.  Machines bring the statement with their evidence, and boot it
    with nobody approving anything.  No server is needed for signing.
    """


@values.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    required=True,
    help="Private key in PEM: P-256 or Ed25519.",
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    required=True,
    help="A policy that the values are for; several times for more.",
)
@click.option(
    "--label",
    required=True,
    help="Name of the values, such as web/6.1.0-31; the part before the slash is the family.",
)
@click.option(
    "--version",
    "number",
    type=click.IntRange(0, statement.MAX_VERSION),
    required=True,
    help="A number that rises with every statement of the family.",
)
@click.option("--pcrs", type=Pcrs(), help="Sign these PCRs of the file only; by default all.")
@click.option(
    "--bank",
    type=click.Choice(list(BANK_SIZES)),
    default="sha256",
    show_default=True,
    help="Bank of the values.",
)
@click.option("--not-before", type=MOMENT, help="They count from this time on; now by default.")
@click.option(
    "--for",
    "valid_for",
    type=Duration(),
    default=_VALID_FOR,
    show_default="90d",
    help="They count for so long.",
)
@click.option(
    "--output",
    "-o",
    "target",
    type=click.Path(path_type=Path),
    help=f"File for the statement, *{SUFFIX}; by default stdout.",
)
@output.json_option
def sign(
    file: Path,
    key_file: Path,
    policies: tuple[str, ...],
    label: str,
    number: int,
    pcrs: tuple[int, ...] | None,
    bank: str,
    not_before: datetime | None,
    valid_for: timedelta,
    target: Path | None,
    as_json: bool,
) -> None:
    """Sign PCR values.

    FILE is the output of 'tpm2 pcrread', or JSON {"4": "hex", ...}; - is stdin.  The result is a line of text, a JWS.
    Put it beside the image as a file *.tang-attest.jws, where the machine finds it, or post it to the server with
    'tang-attest policy stage'.

    The key is read from a file alone, so that it is in no argument and no environment.

    \b
    tang-attest values sign image.json --key pipeline.key --policy webservers \\
        --label web/6.1.0-31 --version 31 --pcrs 4,9 -o image.tang-attest.jws
    """
    data = read_file(file, _MAX_VALUES)
    found = parse_every_value(data, bank) if pcrs is None else parse_values(data, Selection(bank, pcrs))
    begin = (not_before or datetime.now(UTC)).replace(microsecond=0)
    made = ValueStatement(
        policies=tuple(sorted(set(policies))),
        bank=bank,
        values=found,
        label=label,
        version=number,
        not_before=begin,
        not_after=begin + valid_for,
    )
    text = statement.sign(made, read_file(key_file, MAX_KEY))
    if len(text) > MAX_STATEMENT:
        raise Malformed("statement-malformed", f"The statement has more than {MAX_STATEMENT} characters.")
    if target is not None:
        write_line(target, text)
    elif not as_json:
        click.echo(text)
    if as_json:
        output.print_json({"statement": text, **_document(made)})
    elif target is not None:
        until = output.minute(made.not_after)
        output.say(f"{target} has {label}, version {number}, for {', '.join(made.policies)}, until {until}")
    if SECURE_BOOT_PCR in found:
        output.hint("no policy lets a signer sign PCR 7, so this statement counts nowhere: give --pcrs")


@values.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", "key_file", type=click.Path(path_type=Path), required=True, help="Public key in PEM.")
@output.json_option
def verify(file: Path, key_file: Path, as_json: bool) -> None:
    """Check the signature of a statement, or those of a .pcrsig.

    FILE is a statement or a .pcrsig; - is stdin.  Exit code 0: KEY signed the statement, and it counts now, or KEY signed
    PCR 11 in the .pcrsig (objcopy -O binary --only-section=.pcrsig IMAGE FILE).
    """
    data, key = _read(file), read_key(read_file(key_file, MAX_KEY))
    if _is_json(data):
        _show_entries(_signed_entries(data, key), {"verified": True}, as_json)
        return
    made = statement.verify(_text(data), key)
    if (late := untimely(made, datetime.now(UTC))) is not None:
        raise Malformed(late.code, late.sentence)
    _show(made, {"verified": True}, as_json)


@values.command()
@click.argument("file", type=click.Path(path_type=Path))
@output.json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show a statement or a .pcrsig, unverified.

    FILE is a statement or a .pcrsig; - is stdin.  Anybody can write one: 'tang-attest values verify' checks its
    signatures.
    """
    data = _read(file)
    if _is_json(data):
        _show_entries(pcrsig.parse(data), {"verified": False}, as_json)
        return
    kid, made = statement.inspect(_text(data))
    _show(made, {"verified": False, "kid": kid}, as_json)


def _read(file: Path) -> bytes:
    return read_file(file, pcrsig.MAX_FILE).strip()


def _is_json(data: bytes) -> bool:
    return data.startswith(b"{")


def _text(data: bytes) -> str:
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise Malformed("statement-malformed", "The file is no statement: it is not ASCII.") from None


def _signed_entries(data: bytes, key: bytes) -> tuple[PcrSignature, ...]:
    entries = pcrsig.signed_by(key, pcrsig.parse(data))
    if not entries:
        raise Malformed("statement-untrusted", "The key has signed no entry of the .pcrsig.")
    return entries


def _show_entries(entries: Sequence[PcrSignature], more: Mapping[str, Any], as_json: bool) -> None:
    """Show entries of a .pcrsig; *more* says if they are verified."""
    if as_json:
        rows = [{"key": each.pkfp, "pol": each.pol.hex(), "ref": each.ref} for each in entries]
        output.print_json({**more, "bank": pcrsig.BANK, "pcrs": [pcrsig.PCR], "entries": rows})
        return
    output.say("the signatures hold" if more["verified"] else "NOT verified: anybody can write a .pcrsig")
    output.table(
        ("key", "pol", "ref"), [(each.pkfp[:16], each.pol.hex(), each.ref) for each in entries], empty=""
    )
    if more["verified"] and len({each.pol for each in entries}) > 1:
        output.hint("if one boot reaches several of these values, sign its phase enter-initrd only")


def _document(made: ValueStatement) -> dict[str, object]:
    return {
        "label": made.label,
        "version": made.version,
        "policies": list(made.policies),
        "bank": made.bank,
        "not_before": made.not_before,
        "not_after": made.not_after,
        "values": {str(pcr): value.hex() for pcr, value in sorted(made.values.items())},
    }


def _show(made: ValueStatement, more: Mapping[str, Any], as_json: bool) -> None:
    document = {**more, **_document(made)}
    if as_json:
        output.print_json(document)
        return
    output.say("the signature holds" if more["verified"] else "NOT verified: anybody can write a statement")
    rows = [
        ("label", made.label),
        ("version", made.version),
        ("policies", ", ".join(made.policies)),
        ("from", made.not_before),
        ("until", made.not_after),
        *(("key", more["kid"]) for _ in range("kid" in more)),
        *((f"PCR {pcr} ({made.bank})", value.hex()) for pcr, value in sorted(made.values.items())),
    ]
    output.table(("member", "value"), rows, empty="")
