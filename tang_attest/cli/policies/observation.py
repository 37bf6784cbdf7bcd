"""``tang-attest observation`` and ``tang-attest approve``."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import click

from tang_attest.cli import output
from tang_attest.cli.coverage import accept_option, say_coverage
from tang_attest.cli.invocation import run
from tang_attest.cli.policies.states import state_as_json
from tang_attest.cli.types import Duration, Number
from tang_attest.errors import TangAttestError
from tang_attest.protocol.reference_state import COUNTING, ReferenceState
from tang_attest.service.policies.reference_values import Approval, Waiting

if TYPE_CHECKING:
    from tang_attest.ports.policies import Observation
    from tang_attest.protocol.coverage import BootPart
    from tang_attest.protocol.policy import ReferencePolicy
    from tang_attest.server.compose import Installation
    from tang_attest.service.policies.explanation import Explanation

#: Machines that a line names.
_NAMED: Final = 5


@click.group()
def observation() -> None:
    """Refused evidence that an operator may approve."""


@observation.command("list")
@click.option("--device", help="Only of this machine.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many, newest first."
)
@output.wide_option
@output.json_option
def list_observations(device: str | None, limit: int, wide: bool, as_json: bool) -> None:
    """List refused evidence, newest first.

    Also shows which PCRs differ from the policy as it is now.
    """

    async def load(installation: Installation) -> list[tuple[Observation, tuple[int, ...]]]:
        from tang_attest.ports.store import if_ours

        rows = []
        policies: dict[str, ReferencePolicy | None] = {}
        for entry in await installation.store.policies.list_observations(device, limit):
            if entry.device not in policies:
                policies[entry.device] = await if_ours(_policy_of(installation, entry.device))
            if (policy := policies[entry.device]) is not None:
                rows.append((entry, _differences(entry, policy)))
        if device is not None and not rows:
            await installation.store.devices.get_device(device)  # or it is misspelled
        return rows

    rows = run(load)
    if as_json:
        output.print_json([{**_as_json(entry), "differs": list(differs)} for entry, differs in rows])
        return
    output.table(
        ("id", "machine", "when", "code", "selection", "differs in pcr", "reset count"),
        [
            (
                o.id,
                o.device,
                o.at,
                o.code,
                o.snapshot.selection,
                ", ".join(map(str, differs)) or "nothing",
                o.reset_count,
            )
            for o, differs in rows
        ],
        empty="no observations: nothing authentic was refused",
        extra=("selection", "reset count"),
        wide=wide,
    )


@observation.command()
@click.argument("number", type=Number(), metavar="ID")
@output.json_option
def show(number: int, as_json: bool) -> None:
    """Explain the differences, by PCR and by event.

    There are events if the machine sent its log.  The log is compared with that of an approved boot of the
    machine.  Look at it before you approve.
    """

    async def explain(installation: Installation) -> Explanation:
        return await installation.explanations.explain(await installation.explanations.find(number))

    found = run(explain)
    if as_json:
        output.print_json(_explanation_as_json(found))
        return
    entry = found.observation
    click.echo(f"observation {entry.id} of {entry.device}, {output.local(entry.at)}: {entry.code}")
    expected = found.nearest.values if found.nearest else {}
    output.table(
        ("pcr", "approved", "seen"),
        [
            (pcr, expected[pcr].hex() if pcr in expected else None, entry.snapshot.values[pcr].hex())
            for pcr in found.differences
        ],
        empty=f"it equals state '{found.nearest.label}'" if found.nearest else "",
    )
    for change in found.changes:
        click.echo(f"PCR {change.pcr}: {output.printable(change.sentence)}")
    for doubt in found.doubts:
        output.say(doubt)
    if not found.reasons:
        output.say(f"policy {found.policy} would permit it now")
        return
    for reason in found.reasons:
        if reason.code in ("rule-failed", "log-replay-mismatch", "log-missing"):
            output.say(output.decapitalize(reason.sentence.rstrip(".")))
    output.hint(f"if you made this change: tang-attest approve {entry.device} --observation {entry.id}")


@observation.command()
@click.argument("numbers", type=Number(), nargs=-1, metavar="[ID...]")
@click.option("--device", help="All of this machine.")
@output.json_option
def dismiss(numbers: tuple[int, ...], device: str | None, as_json: bool) -> None:
    """Forget refused evidence that you are not going to approve.

    It then waits in no list, and no approval can mean it.  The audit record keeps the refusal, and says who
    dismissed it.  A machine that boots the same again is observed again.

    \b
    tang-attest observation dismiss 17 18
    tang-attest observation dismiss --device pi-b
    """
    if bool(numbers) == (device is not None):
        raise click.UsageError("Say either ID... or --device.")

    async def work(installation: Installation) -> list[Observation]:
        if device is not None:
            await installation.store.devices.get_device(device)
            found = list(await installation.store.policies.list_observations(device, 10_000))
        else:
            found = [await installation.explanations.find(number) for number in sorted(set(numbers))]
        if found:
            await installation.reference_values.dismiss(found)
        return found

    found = run(work)
    told = ", ".join(f"{seen.id} of {seen.device}" for seen in found)
    result = {"dismissed": [{"id": seen.id, "device": seen.device, "code": seen.code} for seen in found]}
    if found:
        output.done(as_json, f"dismissed: {told}", result)
    else:
        output.done(as_json, f"{device} has no observation", result)


def _explanation_as_json(found: Explanation) -> dict[str, object]:
    return {
        **_as_json(found.observation),
        "policy": found.policy,
        "nearest_state": found.nearest.label if found.nearest else None,
        "differs": list(found.differences),
        "reasons": [reason.as_json() for reason in found.reasons],
        "changes": [change.as_json() for change in found.changes],
        "doubts": list(found.doubts),
    }


async def _policy_of(installation: Installation, device: str) -> ReferencePolicy:
    return await installation.store.policies.get_policy(
        (await installation.store.devices.get_device(device)).policy
    )


def _differences(entry: Observation, policy: ReferencePolicy) -> tuple[int, ...]:
    values = entry.snapshot.values
    differences = [state.differences(values) for state in policy.states if state.life in COUNTING]
    return min(differences, key=len, default=tuple(sorted(values)))


@click.command()
@click.argument("device")
@click.option("--label", help="Name of the new reference state; the time by default.")
@click.option(
    "--observation",
    "observation_id",
    type=Number(),
    help="The observation to approve; needed when different boots were refused since the last permitted one.",
)
@click.option("--only-this-device", is_flag=True, help="Not for the other machines under the same policy.")
@click.option("--once", is_flag=True, help="For one boot only.")
@click.option("--for", "valid_for", type=Duration(), help="For this long only, such as 30m or 7d.")
@click.option(
    "--same", is_flag=True, help="Approve also each machine whose refused boot differs in the same way."
)
@click.option("--yes", is_flag=True, help="With --same: do not ask.")
@accept_option
@click.option("--force", is_flag=True, help="Accept a capped state, or a boot that nothing measured.")
@output.json_option
def approve(
    device: str,
    label: str | None,
    observation_id: int | None,
    only_this_device: bool,
    once: bool,
    valid_for: timedelta | None,
    same: bool,
    yes: bool,
    accepted: tuple[BootPart, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Turn the refused boot of DEVICE into a reference state.

    The disk opens by itself from the next boot on.  States approved before stay valid.  Prints which PCRs are
    new, and for which machines they count.

    \b
    tang-attest approve pi-b --once --for 30m     one boot, within half an hour
    tang-attest approve pi-b --same               and the others after the same update

    With --same it lists the machines that wait with the same new values in the same PCRs, under any policy, and
    asks once.
    """
    approval = Approval(
        only_this_device=only_this_device, once=once, valid_for=valid_for, force=force, accepted=accepted
    )
    if same:
        _approve_alike(device, label, observation_id, approval, yes=yes, as_json=as_json)
        return

    async def work(
        installation: Installation,
    ) -> tuple[Observation, ReferenceState, ReferencePolicy, list[str]]:
        policy = await installation.store.policies.get_policy(
            (await installation.store.devices.get_device(device)).policy
        )
        seen, made = await installation.reference_values.approve(
            device, label, observation_id=observation_id, approval=approval
        )
        machines = [
            each.name
            for each in await installation.store.devices.list_devices()
            if each.policy == policy.name
        ]
        return seen, made, policy, machines

    seen, made, policy, machines = run(work)
    if as_json:
        result = {"device": device, "policy": policy.name, "observation": seen.id, "observed_at": seen.at}
        counts_for = machines if made.limits.device is None else [made.limits.device]
        differs = list(_differences(seen, policy))
        output.print_json(
            {**result, "differs": differs, "counts_for": counts_for, "state": state_as_json(made)}
        )
        return
    when = output.local(seen.at)
    output.say(f"observation {seen.id} of {device}, from {when}, is approved{_limits(made)}: {made.label}")
    output.say(f"{_novelty(seen, policy)}; it counts for {_audience(made, policy, machines)}")
    observed = seen.snapshot
    say_coverage(observed.event_log, observed.selection, observed.values, policy.cap_pcr, made.accepted)


def _approve_alike(
    device: str,
    label: str | None,
    observation_id: int | None,
    approval: Approval,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    machines = run(
        lambda state: state.reference_values.waiting_alike(device, observation_id, capped=approval.force)
    )
    if not yes:
        for each in machines:
            seen = each.observation
            output.say(
                f"{each.device.name}, policy {each.policy.name}: observation {seen.id}, {output.local(seen.at)}"
            )
        output.say(_novelty(machines[0].observation, machines[0].policy))
        counted = "this machine" if len(machines) == 1 else f"these {len(machines)} machines"
        if not click.confirm(f"Approve {counted}?", err=True):
            output.say("nothing was approved")
            click.get_current_context().exit(1)
    # The observations that were shown, and no others.
    done = run(lambda state: state.reference_values.approve_alike(machines, label, approval))
    failed = [result for _, result in done if isinstance(result, TangAttestError)]
    if as_json:
        output.print_json([_alike_as_json(each, result) for each, result in done])
    else:
        for each, result in done:
            word = (
                f"approved{_limits(result)}: {result.label}"
                if isinstance(result, ReferenceState)
                else (f"not approved: {output.decapitalize(result.sentence.rstrip('.'))} ({result.code})")
            )
            output.say(f"{each.device.name}, policy {each.policy.name}: {word}")
    if failed:
        if not as_json:
            output.hint(output.decapitalize(failed[0].action.rstrip(".")))
        click.get_current_context().exit(1)


def _alike_as_json(each: Waiting, result: ReferenceState | TangAttestError) -> dict[str, object]:
    failed = isinstance(result, TangAttestError)
    return {
        "device": each.device.name,
        "policy": each.policy.name,
        "observation": each.observation.id,
        "state": None if isinstance(result, TangAttestError) else state_as_json(result),
        "reason": result.reasons[0].as_json() if isinstance(result, TangAttestError) and failed else None,
    }


def _novelty(seen: Observation, policy: ReferencePolicy) -> str:
    """The PCRs that no state had as they are now."""
    differs = _differences(seen, policy)
    if not differs:
        return "its values are those of another state"
    return f"new in PCR {', '.join(map(str, differs))}"


def _audience(state: ReferenceState, policy: ReferencePolicy, machines: list[str]) -> str:
    """The machines that may boot *state* from now on."""
    if state.limits.device is not None:
        return state.limits.device
    shown = ", ".join(machines[:_NAMED])
    if len(machines) > _NAMED:
        shown += f" and {len(machines) - _NAMED:,} more"
    return f"every machine of policy {policy.name}: {shown}"


def _limits(state: ReferenceState) -> str:
    limits = state.limits
    words = [
        " for this machine only" if limits.device else "",
        " for one boot" if limits.uses_left else "",
        f" until {output.minute(limits.expires_at)}" if limits.expires_at else "",
    ]
    return "".join(words)


def _as_json(entry: Observation) -> dict[str, object]:
    return {
        "id": entry.id,
        "device": entry.device,
        "at": entry.at,
        "code": entry.code,
        "selection": str(entry.snapshot.selection),
        "values": {str(pcr): value.hex() for pcr, value in sorted(entry.snapshot.values.items())},
        "reset_count": entry.reset_count,
        "event_log_bytes": len(entry.snapshot.event_log),
    }
