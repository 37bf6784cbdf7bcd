"""``tang-attest device``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tang_attest.cli import output
from tang_attest.cli.coverage import accept_option
from tang_attest.cli.invocation import run
from tang_attest.cli.machines import registered
from tang_attest.cli.machines.verification import COMMANDS, DEFAULT_AK, reach_of, spell_disks
from tang_attest.cli.policies.conditions import spell
from tang_attest.cli.renamed import Command
from tang_attest.cli.types import Duration
from tang_attest.errors import Malformed
from tang_attest.files import read_file
from tang_attest.ports.machines import Device, DeviceSearch
from tang_attest.protocol.enrollment import accept_ak
from tang_attest.protocol.tpm import AttestationKey, ak_from_pem, public_from_tpmt
from tang_attest.service.machines.grading import graded
from tang_attest.service.unlock.device_keys import find_device_key

if TYPE_CHECKING:
    from tang_attest.protocol.coverage import BootPart
    from tang_attest.server.compose import Installation
    from tang_attest.service.machines.transfers import Move


@click.group()
def device() -> None:
    """Devices: the machines that the server knows."""


@device.command("list")
@click.option("--policy", "policies", multiple=True, help="Only those under this policy; repeat it for more.")
@click.option(
    "--label",
    "labels",
    multiple=True,
    help="Only those that have this label, and each other one that is given.",
)
@click.option(
    "--refused", is_flag=True, help="Only those whose last boot or round was refused, and suspended ones."
)
@click.option(
    "--stale",
    type=Duration(),
    is_flag=False,
    flag_value="30d",
    metavar="[DURATION]",
    help="Only those that gave no evidence for so long, 30d unless you say: no boot and no round.",
)
@output.wide_option
@output.json_option
def list_devices(
    policies: tuple[str, ...],
    labels: tuple[str, ...],
    refused: bool,
    stale: timedelta | None,
    wide: bool,
    as_json: bool,
) -> None:
    """List devices, with their last evidence and round.

    A device has to meet every option.

    \b
    tang-attest device list --policy webservers --refused
    tang-attest device list --stale 14d --label site=berlin
    """

    async def load(installation: Installation) -> list[Device]:
        since = None if stale is None else installation.world.clock.now() - stale
        search = DeviceSearch(policies=policies, labels=labels, refused=refused, silent_since=since)
        found = list(await installation.store.devices.list_devices(search))
        for policy in () if found else policies:
            await installation.store.policies.get_policy(policy)  # or it is misspelled
        return await graded(installation.store, found)

    devices = run(load)
    searched = bool(policies or labels or refused or stale)
    if as_json:
        output.print_json([_as_json(entry) for entry in devices])
        return
    output.table(
        (
            "name",
            "policy",
            "labels",
            "ek",
            "grade",
            "coverage",
            "learning until",
            "last seen",
            "last verdict",
            "running",
            "disks",
        ),
        [
            (
                d.name,
                d.policy,
                ", ".join(d.labels) or None,
                "verified" if d.ek_verified else "UNVERIFIED",
                d.grade["grade"] if d.grade else None,
                _coverage(d),
                d.learning.until if d.learning else None,
                d.last_seen_at,
                d.last_code,
                _running(d),
                spell_disks(d.disks),
            )
            for d in devices
        ],
        empty="no machine has that"
        if searched
        else "no machines yet; make a token with 'tang-attest token create'",
        extra=("labels", "ek", "grade", "learning until", "disks"),
        prose=("disks",),
        wide=wide,
    )


@device.command()
@click.argument("name")
@output.json_option
def show(name: str, as_json: bool) -> None:
    """Show everything known about one device."""

    async def load(installation: Installation) -> tuple[Device, str | None]:
        (entry,) = await graded(installation.store, [await installation.store.devices.get_device(name)])
        if not entry.kids:
            return entry, None
        key = (await find_device_key(installation.store.decisions, entry.kids[0])).key
        return entry, "TPM" if installation.private_keys.is_in_tpm(key) else "database"

    entry, place = run(load)
    view = {**_as_json(entry), "key_lives_in": place}
    if as_json:
        output.print_json(view)
    else:
        output.table(
            ("field", "value"),
            [
                (key.replace("_", " "), ", ".join(value) if isinstance(value, list) else value)
                for key, value in (view | {"signed": entry.signed}).items()
            ],
            empty="",
        )


@device.command(cls=Command, renamed={"--ak-public": "--file"})
@click.argument("name", required=False)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    help="The AK: TPM2B_PUBLIC or TPMT_PUBLIC, as 'tpm2 readpublic -o' writes it; - is stdin.",
)
@registered.ek_options
@click.option("--policy", help="The policy it comes under; with --file an empty one of its own by default.")
@click.option("--tcti", help="Its TPM, if this machine reaches it, such as swtpm:host=127.0.0.1,port=2321.")
@click.option("--ak-handle", default=DEFAULT_AK, show_default=True, help="Where the AK is in that TPM.")
@click.option(
    "--pem", is_flag=True, help="The file is a PEM key: its attributes cannot be checked, and are not."
)
@click.option(
    "--verify-only",
    is_flag=True,
    help="Make no exchange key: it unlocks nothing, and may share its AK. Needs --tcti.",
)
@output.json_option
def register(
    name: str | None,
    file: Path | None,
    policy: str | None,
    tcti: str | None,
    ak_handle: str,
    pem: bool,
    verify_only: bool,
    as_json: bool,
    **ek: Any,
) -> None:
    """Add a device by its AK, or expect one by its EK.

    By its AK (--file) the device is there at once.  Nothing then proves which TPM holds the key.

    By its EK, the machine enrolls later, once: under this name and policy, and only with this TPM.  Enrollment
    proves that it has it.  --from registers a list, all of it or nothing.

    \b
    tang-attest device register web-1 --ek-sha256 9f86d081884c7d65... --policy webservers
    tang-attest device register --from machines.csv --policy webservers --without-token
    """
    sources = [source for source in (file, *(ek[each] for each in registered.SOURCES)) if source is not None]
    if len(sources) != 1:
        raise click.UsageError("say one of --file, --ek-sha256, --ek-certificate and --from")
    if (name is None) != (ek["listed"] is not None):
        raise click.UsageError("a NAME goes with every option but --from, whose list has the names")
    if file is None or name is None:
        if tcti is not None or pem or verify_only:
            raise click.UsageError("--tcti, --pem and --verify-only go with --file")
        registered.register(name, policy, as_json, **ek)
        return
    if ek["labels"] or ek["without_token"]:
        raise click.UsageError("--label and --without-token go with an EK")
    if verify_only and tcti is None:
        raise click.UsageError("--verify-only needs --tcti")
    key, reach = read_ak(file, pem=pem), reach_of(tcti, ak_handle)
    entry = run(
        lambda state: state.devices.register(name, key, policy, reach=reach, verified_only=verify_only)
    )
    output.done(as_json, f"SUCCESS: instance {name} registered", _as_json(entry))
    for kid in () if as_json else entry.kids:
        click.echo(kid)


def read_ak(path: Path, *, pem: bool = False) -> AttestationKey:
    """The AK in a file.  Raises ``file-unreadable``, ``key-malformed``, ``ak-unsuitable``."""
    data = read_file(path, 16 * 1024)
    if pem:
        return ak_from_pem(data)
    if data.startswith(b"-----BEGIN"):
        raise Malformed(
            "key-malformed", "The file is a PEM key, whose attributes cannot be checked; say --pem."
        )
    try:
        return accept_ak(data)
    except Malformed:
        return accept_ak(public_from_tpmt(data))


@device.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--add", multiple=True, metavar="LABEL", help="Give them this label; repeat it for more.")
@click.option("--remove", multiple=True, metavar="LABEL", help="Take this label from them.")
@output.json_option
def label(names: tuple[str, ...], add: tuple[str, ...], remove: tuple[str, ...], as_json: bool) -> None:
    """Add labels to devices, or remove them.

    Listings and rollouts select devices by labels.

    \b
    tang-attest device label pi-b pi-c --add canary --add site=berlin
    """
    if not add and not remove:
        raise click.UsageError("Say --add or --remove.")
    run(lambda state: state.devices.label(names, add, remove))
    changes = [f"+{each}" for each in add] + [f"-{each}" for each in remove]
    result = {"devices": list(names), "added": list(add), "removed": list(remove)}
    output.done(as_json, f"labels of {', '.join(names)}: {' '.join(changes)}", result)


@device.command()
@click.argument("name")
@click.argument("new", metavar="NEW-NAME")
@output.json_option
def rename(name: str, new: str, as_json: bool) -> None:
    """Give a device another name.

    Its keys, states, history and approvals stay its own: nothing has to be done on the machine.  The audit record
    keeps the old name in its old entries, and 'audit --device' finds them by the new one.  A policy that has the
    name of the device keeps it.

    \b
    tang-attest device rename pi-b kitchen
    """
    renamed = run(lambda state: state.transfers.rename(name, new))
    output.done(
        as_json, f"device {name} is {new} now", {"device": new, "before": name, "policy": renamed.policy}
    )
    if renamed.policy == name:
        output.hint(f"its policy is still called {name}")


@device.command()
@click.argument("name")
@click.argument("policy")
@click.option(
    "--force",
    is_flag=True,
    help="Move it although it would be refused there, or quotes other PCRs of the bank.",
)
@output.json_option
def move(name: str, policy: str, force: bool, as_json: bool) -> None:
    """Bring a device under another policy.

    The policy has to be over the PCRs that the machine quotes, with the same cap, and to permit its last boot.
    From now on its states, rules and conditions count, on every server.  Approvals for this device alone stay
    with the old policy, and count again if it comes back.

    \b
    tang-attest device move pi-b webservers
    """
    moved = run(lambda state: state.transfers.move(name, policy, force=force))
    result = {
        "device": name,
        "policy": moved.after.name,
        "before": moved.before.name,
        "selection": str(moved.after.selection),
        "last_boot_permitted": moved.permitted,
        "reason": moved.reason.as_json() if moved.reason else None,
        "states_left": list(moved.left),
        "learning_ended": moved.unarmed,
        "old_policy_unused": moved.disused,
    }
    output.done(
        as_json,
        f"device {name} is under policy {moved.after.name} now, before it was under {moved.before.name}",
        result,
    )
    if as_json:
        return
    for line in _consequences(name, moved):
        output.say(line)
    if moved.disused:
        output.hint(
            f"no device is under {moved.before.name} any more: 'tang-attest policy remove {moved.before.name}'"
        )


def _consequences(name: str, moved: Move) -> Iterator[str]:
    if moved.reason is not None:
        reason = output.decapitalize(moved.reason.sentence.rstrip("."))
        yield f"its last boot would be refused: {reason} ({moved.reason.code})"
    elif moved.permitted:
        yield "its last boot is permitted there"
    else:
        yield "no evidence of it shows whether it is permitted there"
    if moved.after.selection != moved.before.selection:
        yield f"it quotes {moved.after.selection} from now on, before {moved.before.selection}"
    yield from spell(moved.after.conditions)
    if moved.left:
        yield f"states for {name} alone stay with {moved.before.name}: {', '.join(moved.left)}"
    if moved.unarmed:
        yield "its next boot is not learned any more"


@device.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output.json_option
def remove(name: str, yes: bool, as_json: bool) -> None:
    """Remove a device, and destroy its exchange keys for good.

    Its disks then open by passphrase only, even if the machine enrolls again: they have to be bound anew.
    """
    run(lambda state: state.store.devices.get_device(name))
    question = f"Destroy the exchange keys of {name}? Its disks will open by passphrase only"
    if not yes and not click.confirm(question, err=True):
        output.say("nothing was removed")
        click.get_current_context().exit(1)
    run(lambda state: state.devices.remove(name))
    output.done(as_json, f"SUCCESS: instance {name} removed", {"device": name, "removed": True})


@device.command()
@click.argument("name")
@click.option(
    "--for",
    "window",
    type=Duration(),
    default="1h",
    show_default=True,
    help="How long the next boot is waited for.",
)
@accept_option
@output.json_option
def learn(name: str, window: timedelta, accepted: tuple[BootPart, ...], as_json: bool) -> None:
    """Record PCR 10 and 11 of the next boot.

    Every other PCR has to be as expected.  That boot itself is refused, so that a person with the passphrase
    is there to see it.
    """
    learning = run(lambda state: state.reference_values.learn(name, window, accepted))
    sentence = f"the next boot of {name} is learned, until {output.minute(learning.until)}"
    output.done(as_json, sentence, {"device": name, "learning_until": learning.until})


def _as_json(entry: Device) -> dict[str, object]:
    reasons: Any = entry.grade["reasons"] if entry.grade else ()
    return {
        "name": entry.name,
        "policy": entry.policy,
        "labels": list(entry.labels),
        "kids": list(entry.kids),
        "origin": entry.origin,
        "enrolled_at": entry.enrolled_at,
        "ek_verified": entry.ek_verified,
        "ek_issuer": entry.ek_issuer,
        "grade": entry.grade["grade"] if entry.grade else None,
        "grade_reasons": [*reasons, *entry.unmeasured],
        "coverage": entry.coverage,
        "uncovered": [part.value for part in entry.uncovered],
        "accepted_uncovered": [part.value for part in entry.accepted_uncovered],
        "ak_name": entry.ak_name.hex(),
        "ak_scheme": f"{entry.ak_scheme} {entry.ak_hash}",
        "reset_count": entry.clock.reset_count if entry.clock else None,
        "learning_until": entry.learning.until if entry.learning else None,
        "last_seen_at": entry.last_seen_at,
        "last_code": entry.last_code,
        "last_state": entry.last_state,
        "signed": None if entry.signed is None else entry.signed.named(),
        "running_policy": entry.running_policy,
        "outcome": entry.standing.outcome,
        "outcome_code": entry.standing.code,
        "outcome_since": entry.standing.since,
        "answered_at": entry.standing.answered_at,
        "verified_at": entry.standing.verified_at,
        "suspended_at": entry.suspension.at if entry.suspension else None,
        "suspended_by": entry.suspension.by if entry.suspension else None,
        "suspended_reason": entry.suspension.reason if entry.suspension else None,
        "allowed_until": entry.allowed_until,
        "disks": entry.disks.word,
        "volumes": [f"{how} {uuid}" for uuid, how in sorted(entry.disks.volumes.items())],
        "disks_told_at": entry.told.at if entry.told else None,
        "disks_not_told_because": entry.disks.untold or None,
    }


def _coverage(entry: Device) -> str:
    """The gaps first: one that nobody accepted is what matters most."""
    if entry.coverage.startswith("unknown"):
        return "unknown"
    gaps = [
        f"{'accepted' if part in entry.accepted_uncovered else 'UNCOVERED'}: {part.words}"
        for part in entry.uncovered
    ]
    return ", ".join(gaps) or "covered"


def _running(entry: Device) -> str | None:
    """Status of the running system; a suspension comes first."""
    if entry.suspension is not None:
        return "SUSPENDED"
    return None if entry.standing.outcome is None else entry.standing.outcome.value


for command in (*COMMANDS, *registered.COMMANDS):
    device.add_command(command)
