"""``tang-attest status``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tang_attest.cli import output
from tang_attest.cli.invocation import run

if TYPE_CHECKING:
    from tang_attest.service.machines.overview import Notice


@click.command()
@output.json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show what wants a person, and what ends when.

    On one screen: machines that are refused, suspended or silent; observations, announcements and states that
    wait; rollouts; the ends of tokens, certificates, trust anchors and limited approvals; rotated keys that
    still answer; and tables with rows that this server did not write.  The exit code is 1 when something wants a person, and 0 when nothing does.
    'tang-attest doctor' examines the installation itself.

    \b
    tang-attest status || mail -s "$(hostname): disks" ops
    """
    from tang_attest.server.checkup import attention
    from tang_attest.service.machines.overview import Topic

    machines, notices = run(attention)
    wanting = sum(notice.attention for notice in notices)
    if as_json:
        output.print_json(
            {
                "attention": bool(wanting),
                "machines": machines,
                **{
                    topic.value: [_as_json(n) for n in notices if n.topic is topic]
                    for topic in Topic
                    if topic is not Topic.DATABASE or any(n.topic is topic for n in notices)
                },
            }
        )
    else:
        _show(notices)
        things = {0: "nothing wants", 1: "1 thing wants"}.get(wanting, f"{wanting} things want")
        output.say(f"{things} a person; {machines} {'machine is' if machines == 1 else 'machines are'} known")
    ctx.exit(1 if wanting else 0)


def _show(notices: list[Notice]) -> None:
    output.table(
        ("topic", "attention", "name", "what", "when"),
        [(n.topic.value, n.attention, n.name, n.sentence, n.at) for n in notices],
        empty="nothing waits, and nothing ends",
        prose=("what",),
    )
    for action in dict.fromkeys(n.action for n in notices if n.action):
        output.hint(action)


def _as_json(notice: Notice) -> dict[str, object]:
    return {name: value for name, value in asdict(notice).items() if name != "topic"}
