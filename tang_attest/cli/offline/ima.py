"""``tang-attest ima``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.renamed import Command
from tang_attest.errors import Malformed
from tang_attest.files import read_file

if TYPE_CHECKING:
    from tang_attest.protocol.ima import ImaProgress, Requirement

_BANKS = {64: "sha256", 96: "sha384", 128: "sha512"}


@click.group()
def ima() -> None:
    """Measurement lists of Linux' IMA.

    A list is a copy of /sys/kernel/security/ima/binary_runtime_measurements; - is stdin.
    """


@ima.command("check", cls=Command, renamed={"--allow": "--file"})
@click.argument("list_file", metavar="LIST", type=click.Path(path_type=Path))
@click.option("--pcr10", metavar="HEX", help="PCR 10 as a TPM signed it: the list has to lead there.")
@click.option("--file", type=click.Path(path_type=Path), help="What is allowed: YAML, see docs/rules.md.")
@click.option(
    "--sums", type=click.Path(path_type=Path), multiple=True, help="Allowed files, as sha256sum prints them."
)
@output.json_option
def check(
    list_file: Path, pcr10: str | None, file: Path | None, sums: tuple[Path, ...], as_json: bool
) -> None:
    """Try a requirement on LIST, as 'policy require-ima' would.

    The files of --file and --sums say what is allowed.  Exits with 1 when an entry is not allowed or the list
    does not lead to PCR 10. Without --pcr10 the list is taken at its word.

    \b
    sha256sum /usr/bin/* > sums
    tang-attest ima check /sys/kernel/security/ima/binary_runtime_measurements --sums sums
    """
    from tang_attest.protocol.ima import MAX_LIST, ImaProgress, Mode, advance, reasons

    requirement = read_requirement(file, sums)
    data = read_file(list_file, MAX_LIST)
    bank, value = ("sha256", _leads_to(data)) if pcr10 is None else _value(pcr10)
    # One byte more than there can be: a whole list, which nothing follows.
    progress, _ = advance(
        ImaProgress.begin(0, requirement, bank), data, {10: value}, requirement, MAX_LIST + 1
    )
    found = reasons(progress, requirement)
    if as_json:
        body = {"entries": progress.count, "extends": [mode.value for mode in progress.values]}
        output.print_json(
            {**body, "bytes": progress.offset, "reasons": [reason.as_json() for reason in found]}
        )
    else:
        for reason in found:
            click.echo(reason.sentence)
        mode = "" if Mode.BANK in progress.values else ", extended as SHA-1"
        click.echo(f"{progress.count} entries{mode}, {progress.bad_count} not allowed")
    _say_what_was_left_out(progress, data, pcr10)
    click.get_current_context().exit(1 if found else 0)


def _say_what_was_left_out(progress: ImaProgress, data: bytes, pcr10: str | None) -> None:
    if pcr10 is None:
        output.say("the list was compared with no PCR, so anyone may have written it")
    if progress.offset < len(data):
        output.say(f"{len(data) - progress.offset} bytes after that PCR 10 were not looked at")


def read_requirement(file: Path | None, sums: tuple[Path, ...]) -> Requirement:
    """The requirement of *file* (YAML) and *sums* together.  Raises ``rules-invalid`` and as the readers of files."""
    from tang_attest.documents import MAX_DOCUMENT, load_yaml
    from tang_attest.protocol.ima import parse_requirement, parse_sums
    from tang_attest.protocol.ima.requirement import MAX_SUMS

    if file is None and not sums:
        raise click.UsageError("say what is allowed: --file or --sums")
    document = {} if file is None else load_yaml(read_file(file, MAX_DOCUMENT), f"File {file}")
    if not sums:
        return parse_requirement(document)
    if not isinstance(document, dict) or "sums" in document:
        raise click.UsageError("with --sums, the file of --file is a mapping without the key 'sums'")
    together: dict[str, list[str]] = {}
    for path in sums:
        for name, digests in parse_sums(read_file(path, MAX_SUMS)).items():
            together.setdefault(name, []).extend(digests)
    return parse_requirement({**document, "sums": together})


def _value(text: str) -> tuple[str, bytes]:
    try:
        value = bytes.fromhex(text.removeprefix("0x").removeprefix("0X"))
    except ValueError:
        value = b""
    if 2 * len(value) not in _BANKS:
        raise Malformed("values-invalid", "PCR 10 is 64, 96 or 128 hex digits.")
    return _BANKS[2 * len(value)], value


def _leads_to(data: bytes) -> bytes:
    from tang_attest.protocol.ima import MAX_LIST, replay_all

    return replay_all(data, "sha256", MAX_LIST)
