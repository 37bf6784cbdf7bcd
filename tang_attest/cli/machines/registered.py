"""Device subcommands for EKs that are registered before their machines enroll."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.errors import Malformed
from tang_attest.files import read_file
from tang_attest.protocol.endorsement.endorsement import MAX_CERTIFICATE
from tang_attest.protocol.endorsement.registered import (
    MAX_LIST,
    EkEntry,
    certificate_digest,
    parse_digest,
    parse_list,
)
from tang_attest.protocol.enrollment import check_name
from tang_attest.protocol.values.labels import check_labels

if TYPE_CHECKING:
    from tang_attest.ports.enrollment import RegisteredEk
    from tang_attest.server.compose import Installation

#: Options that say which EK; `device register` takes one of them, or an AK.
SOURCES: Final = ("ek_sha256", "ek_certificate", "listed")

_OPTIONS: Final = (
    click.option(
        "--ek-sha256",
        metavar="HASH",
        help="The EK: the SHA-256 of what 'tpm2 readpublic -f der' writes of it.",
    ),
    click.option(
        "--ek-certificate", type=click.Path(path_type=Path), help="The EK: its certificate, DER or PEM."
    ),
    click.option(
        "--from",
        "listed",
        type=click.Path(path_type=Path),
        help="A CSV file with name and ek_sha256 or ek_certificate; - is stdin.",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        help="With an EK: the machine gets this label; repeat it for more.",
    ),
    click.option("--without-token", is_flag=True, help="With an EK: the machine needs no token to enroll."),
)


def ek_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* the options of a registered EK."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def register(
    name: str | None,
    policy: str | None,
    as_json: bool,
    *,
    ek_sha256: str | None,
    ek_certificate: Path | None,
    listed: Path | None,
    labels: tuple[str, ...],
    without_token: bool,
) -> None:
    """Register the EK of machine *name*, or those of a list, and report it."""
    if listed is not None:
        entries = parse_list(read_file(listed, MAX_LIST), policy)
        entries = tuple(
            replace(
                entry,
                labels=check_labels((*entry.labels, *labels)),
                without_token=entry.without_token or without_token,
            )
            for entry in entries
        )
    else:
        if policy is None:
            raise Malformed("setting-invalid", "A machine that is expected by its EK needs --policy.")
        digest = (
            parse_digest(ek_sha256)
            if ek_sha256 is not None
            else certificate_digest(read_file(ek_certificate or Path("-"), MAX_CERTIFICATE))
        )
        entry = EkEntry(
            line=0,
            name=check_name(name or ""),
            ek_sha256=digest,
            policy=policy,
            labels=check_labels(labels),
            without_token=without_token,
        )
        entries = (entry,)
    new = run(lambda state: state.registered_eks.register(entries))
    result = {"registered": [_as_json(each) for each in new], "unchanged": len(entries) - len(new)}
    known = "" if len(new) == len(entries) else f", {len(entries) - len(new)} known before"
    output.done(as_json, f"{len(new)} registered{known}", result)


@click.command("registered")
@output.wide_option
@output.json_option
def list_registered(wide: bool, as_json: bool) -> None:
    """List registered EKs, and those that have enrolled."""

    async def load(installation: Installation) -> list[RegisteredEk]:
        return list(await installation.store.enrollment.list_registered_eks())

    found = run(load)
    if as_json:
        output.print_json([_as_json(each) for each in found])
        return
    output.table(
        ("name", "ek sha256", "policy", "labels", "token", "registered", "enrolled"),
        [
            (
                each.name,
                each.ek_sha256.hex() if wide else each.ek_sha256.hex()[:16],
                each.policy,
                ", ".join(each.labels) or None,
                "no" if each.without_token else "needed",
                each.added_at,
                each.used_at,
            )
            for each in found
        ],
        empty="no EKs are registered",
        extra=("labels", "registered"),
        wide=wide,
    )


@click.command()
@click.argument("named", metavar="NAME")
@output.json_option
def unregister(named: str, as_json: bool) -> None:
    """Take the registration of an EK back.

    NAME is that of the machine, or the whole hash.  A device that has enrolled stays; once it was removed, its
    TPM enrolls again only after another registration.
    """
    taken = run(lambda state: state.registered_eks.unregister(named))
    output.done(as_json, f"the EK of {taken.name} is not registered any more", _as_json(taken))


def _as_json(each: RegisteredEk) -> dict[str, object]:
    return {
        "name": each.name,
        "ek_sha256": each.ek_sha256.hex(),
        "policy": each.policy,
        "labels": list(each.labels),
        "without_token": each.without_token,
        "added_at": each.added_at,
        "added_by": each.added_by,
        "used_at": each.used_at,
    }


COMMANDS: Final = (list_registered, unregister)
