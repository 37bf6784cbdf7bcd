"""``tang-attest values``: sign values for policies, and look at what is signed; without a server."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from tang_attest.cli import output
from tang_attest.cli.types import MOMENT, Duration, Pcrs
from tang_attest.errors import Malformed
from tang_attest.files import read_file, write_line
from tang_attest.protocol.signed_values import statement
from tang_attest.protocol.signed_values.examine import untimely
from tang_attest.protocol.signed_values.keys import MAX_KEY, read_key
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


@values.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--key", "key_file", type=click.Path(path_type=Path), required=True, help="Public key in PEM.")
@output.json_option
def verify(file: Path, key_file: Path, as_json: bool) -> None:
    """Check the signature of a statement.

    FILE is a statement; - is stdin.  Exit code 0: KEY signed it, and it counts now.
    """
    made = statement.verify(_read(file), read_key(read_file(key_file, MAX_KEY)))
    if (late := untimely(made, datetime.now(UTC))) is not None:
        raise Malformed(late.code, late.sentence)
    _show(made, {"verified": True}, as_json)


@values.command()
@click.argument("file", type=click.Path(path_type=Path))
@output.json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show a statement, unverified.

    FILE is a statement; - is stdin.  Anybody can write one: 'tang-attest values verify' checks its signature.
    """
    kid, made = statement.inspect(_read(file))
    _show(made, {"verified": False, "kid": kid}, as_json)


def _read(file: Path) -> str:
    data = read_file(file, MAX_STATEMENT + 2)
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise Malformed("statement-malformed", "The file is no statement: it is not ASCII.") from None


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
