"""``tang-attest token``."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.coverage import accept_option
from tang_attest.cli.invocation import run
from tang_attest.cli.renamed import Command, note
from tang_attest.cli.types import Duration, OfKey, SelectionType
from tang_attest.protocol.policy import DEFAULT_CAP_PCR, DEFAULT_SELECTION
from tang_attest.protocol.values.pcr import Selection
from tang_attest.service.enrollment.tokens import MAX_MACHINES, TokenTerms

if TYPE_CHECKING:
    from tang_attest.ports.enrollment import Token
    from tang_attest.protocol.coverage import BootPart
    from tang_attest.server.compose import Installation


class _Create(Command):
    """``token create``, whose ``--learn-for`` has become a command of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse *args*, and say where the time to learn is given now."""
        if any(word.partition("=")[0] == "--learn-for" for word in args):
            note("--learn-for", "tang-attest device learn DEVICE --for")
        return super().parse_args(ctx, args)


@click.group()
def token() -> None:
    """Tokens with which machines enroll."""


@token.command(cls=_Create, renamed={"--valid-for": "--for"})
@click.option("--name", help="Only machines of this name may use it; * and ? stand for any characters.")
@click.option("--record", is_flag=True, help="Make a policy from the machine's first quote.")
@click.option("--policy", help="Put the machine under this existing policy instead.")
@click.option(
    "--machines",
    type=click.IntRange(1, MAX_MACHINES),
    default=1,
    show_default=True,
    metavar="N",
    help="With --policy: it enrolls so many machines.",
)
@click.option(
    "--selection",
    type=SelectionType(),
    show_default=f"proposed from the event log; {DEFAULT_SELECTION} without one",
    help="With --record: the PCRs of the new policy.",
)
@click.option(
    "--cap-pcr",
    type=click.IntRange(0, 15),
    default=DEFAULT_CAP_PCR,
    show_default=True,
    help="With --record: the PCR that is extended once the disks are open.",
)
@click.option(
    "--allow-unverified-ek", is_flag=True, help="Accept a TPM whose EK no known vendor root vouches for."
)
@accept_option
@click.option("--force", is_flag=True, help="Record values even if nothing measured this machine's boot.")
@click.option(
    "--for", "valid_for", type=Duration(), default="24h", show_default=True, help="How long it can be used."
)
@click.option(
    "--learn-for",
    type=Duration(),
    default="24h",
    hidden=True,
    help="The old place of 'device learn --for'.",
)
@click.option("--label", "labels", multiple=True, help="Give the machine this label; repeat it for more.")
@click.option(
    "--again",
    is_flag=True,
    help="Although there is a device of that name.",
)
@output.json_option
def create(
    name: str | None,
    record: bool,
    policy: str | None,
    machines: int,
    selection: Selection | None,
    cap_pcr: int,
    allow_unverified_ek: bool,
    accepted: tuple[BootPart, ...],
    force: bool,
    valid_for: timedelta,
    learn_for: timedelta,
    labels: tuple[str, ...],
    again: bool,
    as_json: bool,
) -> None:
    """Create a token and print it, this once.

    With --record, a selection with PCR 10 or 11 may be learned at a boot of the next 24 hours;
    'tang-attest device learn' gives it another time.

    A token for several machines adds no reference states: each machine has to boot as its policy says.

    \b
    tang-attest token create --name pi-b --record
    tang-attest token create --policy webservers --for 7d
    tang-attest token create --policy webservers --machines 40 --name 'web-*' --for 2d
    """
    terms = TokenTerms(
        name,
        policy,
        record,
        selection or Selection.parse(DEFAULT_SELECTION),
        cap_pcr,
        allow_unverified_ek=allow_unverified_ek,
        force=force,
        valid_for=valid_for,
        learn_for=learn_for,
        labels=labels,
        accepted_uncovered=accepted,
        proposes=selection is None and record,
        machines=machines,
        name_free=not again,
    )
    text, made = run(lambda state: state.tokens.create(terms))
    good = "once" if machines == 1 else f"for {machines} machines"
    output.new_token(as_json, text, f"good {good},", made.expires_at, _as_json(made))


@token.command("list")
@output.wide_option
@output.json_option
def list_tokens(wide: bool, as_json: bool) -> None:
    """List tokens, without their texts.

    The texts are not kept.  An id is shortened to 16 digits, which 'revoke' takes, too; --wide has all of it.
    """

    async def load(installation: Installation) -> list[Token]:
        return list(await installation.store.enrollment.list_tokens())

    tokens = run(load)
    if as_json:
        output.print_json([_as_json(entry) for entry in tokens])
        return
    output.table(
        ("id", "created", "name", "policy", "labels", "expires", "used", "revoked", "unverified ek"),
        [
            (
                t.digest.hex() if wide else t.digest.hex()[:16],
                t.created_at,
                t.name,
                t.policy or f"record {'proposed' if t.proposes else t.selection}",
                ", ".join(t.labels) or None,
                t.expires_at,
                t.used_at if t.machines == 1 else f"{t.uses} of {t.machines}",
                t.revoked_at,
                t.allow_unverified_ek,
            )
            for t in tokens
        ],
        empty="no tokens",
        extra=("created", "policy", "labels", "unverified ek"),
        wide=wide,
    )


@token.command(cls=OfKey)
@click.argument("named", metavar="ID")
@output.json_option
def revoke(named: str, as_json: bool) -> None:
    """Revoke a token that can still be used, for good.

    The machines that it enrolled stay.  An enrollment under way with it is refused, too.  ID is that of the listing, which may be shortened to 8
    digits, or the name of the machine that it is for, or the token itself; - reads it from stdin.

    \b
    tang-attest token list
    tang-attest token revoke 5d41402abc4b2a76
    """
    if named == "-":
        named = sys.stdin.readline().strip()
    revoked = run(lambda state: state.tokens.revoke(named))
    identity = revoked.digest.hex()
    output.done(as_json, f"token {identity[:16]} is revoked", {"id": identity, "name": revoked.name})


def _as_json(entry: Token) -> dict[str, object]:
    return {
        "id": entry.digest.hex(),
        "name": entry.name,
        "policy": entry.policy,
        "labels": list(entry.labels),
        "record": entry.record,
        "selection": str(entry.selection),
        "cap_pcr": entry.cap_pcr,
        "allow_unverified_ek": entry.allow_unverified_ek,
        "accepted_uncovered": [part.value for part in entry.accepted_uncovered],
        "proposes": entry.proposes,
        "machines": entry.machines,
        "uses": entry.uses,
        "created_at": entry.created_at,
        "created_by": entry.created_by,
        "expires_at": entry.expires_at,
        "used_at": entry.used_at,
        "revoked_at": entry.revoked_at,
    }
