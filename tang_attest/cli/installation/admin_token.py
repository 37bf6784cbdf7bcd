"""``tang-attest admin-token``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run
from tang_attest.cli.types import Duration
from tang_attest.ports.admin import AdminToken, Scope
from tang_attest.service.admin.tokens import SCOPES

if TYPE_CHECKING:
    from tang_attest.server.compose import Installation


@click.group("admin-token")
def admin_token() -> None:
    """Bearer tokens for the admin API."""


@admin_token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    help="One of its scopes; repeat it for more.",
)
@click.option(
    "--policy", "policies", multiple=True, help="Only for this policy and its machines; repeat it for more."
)
@click.option(
    "--for", "valid_for", type=Duration(), default="90d", show_default=True, help="How long it is valid."
)
@output.json_option
def create(
    name: str, scopes: tuple[str, ...], policies: tuple[str, ...], valid_for: timedelta, as_json: bool
) -> None:
    """Create an admin token and print it, this once.

    NAME is the actor in the audit record, and is never used again.

    \b
    read      see machines, policies, observations, the audit record
    stage     add values that no machine has shown yet; they count at once
    approve   approve what a machine booted or announced, retire and restore states
    enroll    create and revoke enrollment tokens, register EKs
    operate   label, suspend and resume machines
    remove    remove machines, whose disks then open by passphrase only

    \b
    tang-attest admin-token create image-build --scope stage --policy webservers
    """
    if not scopes:
        raise click.UsageError(f"missing option '--scope': {SCOPES}")
    text, made = run(
        lambda state: state.admin_tokens.create(
            name, [Scope(scope) for scope in scopes], policies or None, valid_for
        )
    )
    output.new_token(as_json, text, "valid", made.expires_at, _as_json(made))


@admin_token.command("list")
@output.wide_option
@output.json_option
def list_tokens(wide: bool, as_json: bool) -> None:
    """List admin tokens, without their texts.

    The texts are not kept.
    """

    async def load(installation: Installation) -> list[AdminToken]:
        return list(await installation.store.admin_tokens.list_admin_tokens())

    tokens = run(load)
    if as_json:
        output.print_json([_as_json(entry) for entry in tokens])
        return
    output.table(
        ("name", "scopes", "policies", "created", "by", "expires", "revoked"),
        [
            (
                t.name,
                ", ".join(t.scopes),
                "all" if t.policies is None else ", ".join(t.policies),
                t.created_at,
                t.created_by,
                t.expires_at,
                t.revoked_at,
            )
            for t in tokens
        ],
        empty="no admin tokens",
        extra=("created", "by"),
        wide=wide,
    )


@admin_token.command()
@click.argument("name")
@output.json_option
def revoke(name: str, as_json: bool) -> None:
    """Revoke an admin token for good.

    The next request with it is refused.
    """
    run(lambda state: state.admin_tokens.revoke(name))
    output.done(as_json, f"admin token {name} is revoked", {"name": name})


def _as_json(entry: AdminToken) -> dict[str, object]:
    return {
        "name": entry.name,
        "scopes": list(entry.scopes),
        "policies": None if entry.policies is None else list(entry.policies),
        "created_at": entry.created_at,
        "created_by": entry.created_by,
        "expires_at": entry.expires_at,
        "revoked_at": entry.revoked_at,
    }
