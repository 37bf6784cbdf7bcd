"""``tang-attest keys``."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import at_terminal, run, settings
from tang_attest.cli.progress import shown
from tang_attest.cli.types import OfKey
from tang_attest.errors import Conflict, Malformed, NotFound
from tang_attest.files import read_file
from tang_attest.keys.jwk import load_private
from tang_attest.service.tang.plain import load_json, permits

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from tang_attest.ports.keys import EncryptedKey
    from tang_attest.server.compose import Installation
    from tang_attest.server.rekeying import Rotated
    from tang_attest.service.tang.server_keys import KeyUse


@click.group()
def keys() -> None:
    """Signing keys and exchange keys."""


@keys.command("list")
@output.wide_option
@output.json_option
def list_keys(wide: bool, as_json: bool) -> None:
    """List the keys, rotated ones too.

    A rotated key still answers, but is advertised no longer.  A retired key does neither.  A key that lives in the TPM can be used with
    that TPM only; the others with the database and the kek.
    """

    async def load(installation: Installation) -> list[tuple[EncryptedKey, str | None, str]]:
        places = {True: "TPM", False: "database"}
        return [
            (k, device, places[installation.private_keys.is_in_tpm(k)])
            for k, device in await installation.store.keys.list_keys()
        ]

    rows = run(load)
    if as_json:
        output.print_json(
            [
                {
                    "kid": k.kid,
                    "use": k.use,
                    "curve": k.curve,
                    "device": device,
                    "lives_in": place,
                    "created_at": k.created_at,
                    "rotated_at": k.rotated_at,
                    "retired_at": k.retired_at,
                }
                for k, device, place in rows
            ]
        )
        return
    output.table(
        ("kid", "use", "curve", "lives in", "serves", "created", "rotated", "retired"),
        [
            (
                k.kid,
                k.use,
                k.curve,
                place,
                device or ("anybody" if k.use == "exchange" else "advertisements"),
                k.created_at,
                k.rotated_at,
                k.retired_at,
            )
            for k, device, place in rows
        ],
        empty="no keys",
        extra=("curve", "lives in", "created"),
        wide=wide,
    )


@keys.command()
@click.option("--device", help="Give this device a new exchange key instead.")
@output.json_option
def rotate(device: str | None, as_json: bool) -> None:
    """Make new keys in place of the advertised ones.

    The old keys still answer for volumes that are bound to them.  Without --device: the signing keys and the
    open exchange keys. Machines that are bound later have to be told the new thumbprint. With --device:
    rebind its disks with 'clevis luks attest-regen', so that the new key is used.
    """
    if device is not None:
        kid, old = run(lambda state: state.keys.rotate_device(device))
        made = [kid]
    else:
        made, old = run(lambda state: state.keys.rotate())
    if not as_json:
        for kid in made:
            click.echo(kid)
    result = {"device": device, "made": list(made), "rotated": list(old)}
    output.done(as_json, f"{len(made)} made, {len(old)} rotated", result)


@keys.command(cls=OfKey)
@click.argument("kid")
@click.option("--force", is_flag=True, help="Retire it although the newest boot of its machine used it.")
@output.json_option
def retire(kid: str, force: bool, as_json: bool) -> None:
    """Let a key answer no more.

    Every server refuses it at once: a disk that is still bound to it opens by passphrase only, until 'keys
    reinstate'.  Nothing is destroyed.  The last key that is advertised stays: rotate first.

    A server knows the use of a machine's key from the audit record.  It does not know which disks the tang pin
    bound to an open key.

    \b
    tang-attest keys rotate --device pi-b        then on pi-b: clevis luks attest-regen
    tang-attest keys list                        the old key is the rotated one
    tang-attest keys retire KID
    """
    used = run(lambda state: state.keys.retire(kid, force=force))
    output.done(as_json, f"key {kid} is retired; {_spell(used)}", asdict(used))


@keys.command(cls=OfKey)
@click.argument("kid")
@output.json_option
def reinstate(kid: str, as_json: bool) -> None:
    """Let a retired key answer again.

    It is advertised again unless it was rotated.
    """
    used = run(lambda state: state.keys.reinstate(kid))
    output.done(as_json, f"key {kid} answers again", asdict(used))


def _spell(used: KeyUse) -> str:
    """The known use of a key."""
    if used.use == "sign":
        return "it signs no advertisement any more"
    if used.device is None:
        return "nobody knows which disks the tang pin bound to it"
    if used.last_at is None:
        return f"the audit record has no unlock of {used.device} with it"
    when = output.minute(used.last_at)
    if used.in_use:
        return f"{used.device} is still bound to it, and last unlocked with it at {when}"
    return f"{used.device} last unlocked with it at {when}, and its newest boot used another"


@keys.command("rotate-kek")
@output.json_option
def rotate_kek(as_json: bool) -> None:
    """Replace the key-encryption key (kek).

    Everything in the database is put under the new one.  Stop all servers first, and copy STATE/kek to the
    others before they start again.  No disk has to be bound anew.  All of the database is moved, or nothing;
    after an interruption, run it again.  The old key stays beside the new one: backups that were made until
    now need it, and noted heads of the audit record are those of before.
    """
    from tang_attest.server.rekeying import rotate_secret

    async def work() -> Rotated:
        async with shown("moving"):
            return await rotate_secret(settings(), at_terminal())

    rotated = asyncio.run(work())
    if as_json:
        output.print_json({**asdict(rotated), "kept": str(rotated.kept)})
        return
    output.say(f"{rotated.rows} rows and their keys are under the new key-encryption key")
    if rotated.foreign:
        output.say(
            f"{rotated.foreign} rows are not, because this server did not write them; see 'tang-attest doctor'"
        )
    for when, head in (("until now", rotated.old_head), ("from now on", rotated.new_head)):
        if head is not None:
            output.say(f"head of the audit record {when}: {head}")
    output.hint(f"the old one is {rotated.kept}; put it to the backups of its time, then remove it here")


@keys.command("import")
@click.argument("directory", type=click.Path(path_type=Path))
@output.json_option
def import_keys(directory: Path, as_json: bool) -> None:
    """Import a Tang server's keys as open keys.

    Hidden ones, too.

    They answer without evidence, and only while the server runs with --plain-tang: disks that are bound with
    the tang pin open as before, until they are bound anew with the attest pin.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".jwk")
    except OSError as error:
        raise NotFound(
            "file-unreadable", f"Directory {directory} cannot be read: {error.strerror}."
        ) from None
    if not paths:
        raise NotFound("file-unreadable", f"Directory {directory} holds no *.jwk file.")
    # All are read before the first is added: a file that is no key stops the import while nothing has changed.
    found = [(path, *_read(path)) for path in paths]

    results: list[dict[str, object]] = []

    async def add(installation: Installation) -> None:
        for path, private, use in found:
            rotated = path.name.startswith(".")
            what = f"from {path.name} for {use}{', rotated' if rotated else ''}"
            kid, sentence = None, f"there already: the key {what}"
            try:
                kid = await installation.keys.import_key(private, use, rotated=rotated)
                sentence = f"imported {kid} {what}"
            except Conflict as error:
                if error.code != "name-taken":
                    raise
            results.append({"file": path.name, "use": use, "rotated": rotated, "imported": kid})
            if not as_json:
                output.say(sentence)

    run(add)
    if as_json:
        output.print_json(results)


def _read(path: Path) -> tuple[ec.EllipticCurvePrivateKey, str]:
    """The private key in a file, and what it is for.  Raises ``key-malformed`` naming the file."""
    try:
        jwk = load_json(read_file(path, 64 * 1024))
    except ValueError:
        raise Malformed("key-malformed", f"File {path.name} is not JSON.") from None
    if not isinstance(jwk, dict):
        raise Malformed("key-malformed", f"File {path.name} is not a JWK.")
    if permits(jwk, "deriveKey", explicit=True):
        use = "exchange"
    elif permits(jwk, "sign"):
        use = "sign"
    else:
        raise Malformed(
            "key-malformed", f"File {path.name}: the key is neither for signing nor for deriveKey."
        )
    try:
        return load_private(jwk), use
    except Malformed as error:
        raise Malformed(error.code, f"File {path.name}: {output.decapitalize(error.sentence)}") from None
