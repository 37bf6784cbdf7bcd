"""A fleet of software machines goes through a kernel update against ``tang-attest serve``.

    python -m tests.simulate --devices 1000

Prints a table, and leaves ``simulate.json``, ``simulate-rollout.png`` and ``simulate-latency.png``.  The exit code is
1 when anything was not as expected.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tang_attest.protocol.policy import DEFAULT_SELECTION
from tests.bench.load import servers
from tests.simulate import plot
from tests.simulate.fleet import Fleet
from tests.simulate.machine import SoftwareMachine
from tests.simulate.operator import POLICY, Operator
from tests.simulate.story import OLD, Story

_BUILD = Path("build")


def simulate(work: Path, devices: int, seed: int) -> tuple[Story, dict[str, float]]:
    """The story of *devices* machines, and its figures."""
    state = work / "state"
    servers.init(state)
    operator = Operator(state)
    operator.run("policy", "create", POLICY, "--selection", DEFAULT_SELECTION)
    operator.run("policy", "apply", POLICY, "--file", "-", document=OLD.change())
    begun = time.perf_counter()

    def say(sentence: str) -> None:
        print(f"{time.perf_counter() - begun:7.1f} s  {sentence}", flush=True)

    say(f"{devices:,} machines are made")
    machines = [SoftwareMachine(seed, number) for number in range(devices)]
    tokens = operator.tokens(devices)
    with servers.serve(state, None, work / "serve.log") as server:
        fleet = Fleet(server.port, machines)
        at_first, enrolling = server.memory_mb(), time.perf_counter()
        fleet.enroll(tokens, OLD, _progress(devices, say))
        figures = {"devices": devices, "enrollments_per_s": devices / (time.perf_counter() - enrolling)}
        story = Story(fleet, operator, say, server.memory_mb, f"{seed}")
        story.event("enrolled")
        story.tell()
        figures |= {
            "rss_mb_at_first": at_first,
            "rss_mb_peak": max([*story.memories.values(), server.memory_mb()]),
        }
        figures |= {"server_cpu_s": server.cpu_s(), "seconds": time.perf_counter() - begun}
    return story, figures | _figures(story)


def _progress(count: int, say: Callable[[str], None]) -> Iterator[None]:
    """Says how far it is, ten times."""
    for number in range(1, count + 1):
        if number % max(1, count // 10) == 0:
            say(f"{number:,} of {count:,} machines enrolled")
        yield


def _figures(story: Story) -> dict[str, float]:
    figures: dict[str, float] = {
        "bad_image_reached": story.reached_by_bad,
        "bad_image_audience": story.audience_of_bad,
    }
    for phase in story.phases:
        name = phase.name.replace(" ", "_")
        p50, p99 = phase.percentiles()
        figures |= {
            f"{name}_boots": len(phase.boots),
            f"{name}_refused": len(phase.refused),
            f"{name}_per_s": phase.rate,
            f"{name}_p50_ms": p50,
            f"{name}_p99_ms": p99,
        }
    return figures


def _table(story: Story, figures: dict[str, float]) -> str:
    lines = [f"{'':16}{'boots':>8}{'refused':>9}{'per s':>8}{'p50 ms':>9}{'p99 ms':>9}"]
    for phase in story.phases:
        p50, p99 = phase.percentiles()
        row = f"{phase.name:16}{len(phase.boots):8,}{len(phase.refused):9,}{phase.rate:8.0f}{p50:9.1f}{p99:9.1f}"
        lines.append(row)
    lines += [
        "",
        f"the bad image reached {story.reached_by_bad} of the {story.audience_of_bad} machines of its audience",
        f"enrollments: {figures['enrollments_per_s']:.0f} per second",
        f"server memory (RSS): {figures['rss_mb_at_first']:.0f} MB at first, {figures['rss_mb_peak']:.0f} MB at most",
        f"server processor time: {figures['server_cpu_s']:.0f} s of {figures['seconds']:.0f} s",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Run the simulation; 1 when anything was not as expected."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulate", description="A fleet and its kernel update."
    )
    parser.add_argument("--devices", type=int, default=1000, help="how many machines, from 20")
    parser.add_argument("--seed", type=int, default=1, help="their keys, and whom a rollout reaches first")
    parser.add_argument("--output", type=Path, default=_BUILD, help="where the pictures and figures go")
    options = parser.parse_args(arguments)
    if options.devices < 20:
        parser.error("a fleet has 20 machines or more")
    options.output.mkdir(exist_ok=True, parents=True)
    # Not in /tmp, which may be memory: a commit has to reach a disk.
    work = Path(tempfile.mkdtemp(prefix="simulate-", dir=options.output))
    load = os.getloadavg()[0]
    try:
        story, figures = simulate(work, options.devices, options.seed)
    finally:
        shutil.rmtree(work)
    plot.rollout(story.fleet.boots, story.events, options.output / "simulate-rollout.png")
    plot.latency(story.fleet.boots, story.events, options.output / "simulate-latency.png")
    (options.output / "simulate.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(
        f"\n{os.cpu_count()} processors; load average {load:.1f} before the run\n\n{_table(story, figures)}"
    )
    print(f"\npictures: {options.output}/simulate-rollout.png {options.output}/simulate-latency.png")
    for sentence in story.wrong:
        print(f"NOT AS EXPECTED: {sentence}")
    return 1 if story.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
