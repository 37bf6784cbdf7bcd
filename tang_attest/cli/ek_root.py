"""``tang-attest ek-root``."""

from __future__ import annotations

from pathlib import Path

import click

from tang_attest.cli import output
from tang_attest.cli.files import read_file
from tang_attest.cli.state import State, run
from tang_attest.ports import EkRoot
from tang_attest.protocol.endorsement import MAX_ROOTS_FILE


@click.group("ek-root")
def ek_root() -> None:
    """Whose word is taken that an EK is a real TPM's."""


@ek_root.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--label", help="A name for listings; the certificate's subject by default.")
def add(file: Path, label: str | None) -> None:
    """Trust every certificate in FILE (PEM bundle or DER): TPM vendors' roots and intermediates."""
    data = read_file(file, MAX_ROOTS_FILE)
    for root in run(lambda state: state.registry.add_ek_roots(data, label)):
        output.say(f"trusted: {root.label} ({root.fingerprint[:16]})")


@ek_root.command("list")
@output.json_option
def list_roots(as_json: bool) -> None:
    """List the trusted certificates."""

    async def load(state: State) -> list[EkRoot]:
        return list(await state.store.list_ek_roots())

    roots = run(load)
    if as_json:
        output.print_json(
            [{"fingerprint": r.fingerprint, "label": r.label, "added_at": r.added_at} for r in roots],
        )
        return
    output.table(
        ("fingerprint", "label", "added"),
        [(r.fingerprint[:16], r.label, r.added_at) for r in roots],
        empty="no EK roots: only tokens with --allow-unverified-ek can be used",
    )


@ek_root.command()
@click.argument("fingerprint")
def remove(fingerprint: str) -> None:
    """Trust a certificate no longer; FINGERPRINT may be shortened as in the listing."""

    async def drop(state: State) -> str:
        known = [root.fingerprint for root in await state.store.list_ek_roots()]
        matching = [
            entry for entry in known if len(fingerprint) >= 8 and entry.startswith(fingerprint.lower())
        ]
        chosen = matching[0] if len(matching) == 1 else fingerprint
        await state.registry.remove_ek_root(chosen)
        return chosen

    output.say(f"no longer trusted: {run(drop)[:16]}")
