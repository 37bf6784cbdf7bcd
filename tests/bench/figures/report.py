"""The figures as a table for eyes and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.bench.figures import boot

#: Targets for one process: name, bound, and whether the bound is a least or a most.
TARGETS: Final = (
    ("plain_rec_ratio_tangd", 2.0, "at least"),
    ("attested_unlock_ratio_tangd", 1.3, "at least"),
    ("exchange_ratio_ecdh", 1.2, "at most"),
    ("unlock_cpu_ratio_ecdh", 6.0, "at most"),
    ("pin_decrypt_ratio_tang", 1.5, "at most"),
)

#: Rows of the table: what, and the prefix of the names in the JSON.
ROWS: Final = (
    ("tangd /adv", "tangd_adv"),
    ("ours /adv", "adv"),
    ("tangd /rec", "tangd_rec"),
    ("ours plain /rec", "plain_rec"),
    ("ours attested unlock", "attested_unlock"),
)

#: Names of the JSON beside those of :data:`ROWS` and :data:`TARGETS`.
SINGLE: Final = (
    ("exchange_ms", "one exchange (ms)"),
    ("ecdh_ms", "one raw P-521 ECDH (ms)"),
    ("startup_s", "start-up, spawn to first answer (s)"),
    ("rss_mb", "resident memory after the load (MB)"),
    ("pin_decrypt_ms", "clevis-decrypt-attest (ms)"),
    ("pin_quote_ms", "... of which `tpm2 quote` (ms)"),
    ("tang_pin_decrypt_ms", "clevis-decrypt-tang (ms)"),
    ("server_cpu_ms_per_unlock", "the server's processor time for one unlock (ms)"),
    ("loadgen_ms_per_unlock", "the load generator's own for one unlock (ms)"),
    ("loadgen_ms_per_rec", "the load generator's own for one /rec (ms)"),
    ("fsync_ms", "one fdatasync of 4 KiB on this disk (ms)"),
)


def names() -> frozenset[str]:
    """Every name that the JSON has."""
    rows = {
        f"{prefix}{mode}_{what}"
        for _, prefix in ROWS
        for mode in ("", "_keepalive")
        for what in ("per_s", "p50_ms", "p99_ms")
    }
    ratios = {f"{name}_keepalive" for name, _, _ in TARGETS[:2]}
    return frozenset(
        rows | ratios | {name for name, _, _ in TARGETS} | {name for name, _ in SINGLE} | {"concurrency"}
    )


def table(figures: Mapping[str, float]) -> str:
    """Every figure, and whether each target is met."""
    clients = f"{figures['concurrency']:.0f} clients"
    lines = [
        f"{clients:30}{'a connection for each request':>31}{'connections kept open':>31}",
        f"{'':30}" + f"{'per s':>11}{'p50 ms':>10}{'p99 ms':>10}" * 2,
    ]
    for what, prefix in ROWS:
        line = f"{what:30}"
        for mode in ("", "_keepalive"):
            rate, p50, p99 = (figures[f"{prefix}{mode}_{name}"] for name in ("per_s", "p50_ms", "p99_ms"))
            line += f"{rate:11.0f}{p50:10.1f}{p99:10.1f}"
        lines.append(line)
    lines.append("")
    lines += [f"{what:50}{figures[name]:10.3g}" for name, what in SINGLE]
    lines.append("")
    lines += [_verdict(figures, *target) for target in TARGETS]
    lines.append("")
    lines.append(
        "The ratios are of a connection for each request: clevis makes one with each curl it runs, and tangd is"
    )
    lines.append("started anew for each.  With connections kept, which neither does, they are:")
    lines += [f"{f'{name}_keepalive':42}{figures[f'{name}_keepalive']:8.2f}" for name, _, _ in TARGETS[:2]]
    return "\n".join(lines)


def boot_table(measured: tuple[Mapping[str, float], str] | None) -> str:
    """Results of the last measurement of boots, or the command to make one."""
    if measured is None:
        return boot.NONE
    figures, title = measured
    return "\n".join(boot.lines(figures, title) + [_verdict(figures, *target) for target in boot.TARGETS])


def _verdict(figures: Mapping[str, float], name: str, bound: float, direction: str) -> str:
    value = figures[name]
    met = value >= bound if direction == "at least" else value <= bound
    return f"{name:32}{value:8.2f}   target: {direction} {bound:<5}{'met' if met else 'NOT MET'}"


def write(figures: Mapping[str, float], path: Path) -> None:
    """Write *figures* as one flat JSON object."""
    path.parent.mkdir(exist_ok=True)
    rounded = {name: float(f"{value:.4g}") for name, value in sorted(figures.items())}
    path.write_text(json.dumps(rounded, indent=2) + "\n")
