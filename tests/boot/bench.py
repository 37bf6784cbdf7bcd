"""Cost of attestation at boot, beside the stock tang pin in the same machine; writes build/boot-bench.json.

python -m tests.boot.bench [RUNS]
"""

from __future__ import annotations

import datetime as dt
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.bench.figures import boot as figures
from tests.bench.figures import report
from tests.boot.hardware.machine import SERVER, SERVER_PORT, Machine, Network
from tests.boot.images import disk
from tests.boot.images.tree import Variant
from tests.boot.world import ROOT_IS_OPEN, World
from tests.ports import free_port

_TANGD: Final = "/usr/libexec/tangd"
_STAMPS: Final = ROOT_IS_OPEN + r"[^\n]*, initrd ([0-9.]+) root ([0-9.]+)\n"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as directory:
        print("bench-boot: making two machines; without cached images that takes minutes", flush=True)
        attest = World.new(Path(directory) / "attest", Variant())
        attest.enroll()
        tang = _tang(Path(directory))
        seconds: dict[str, list[float]] = {"attest": [], "tang": []}
        for number in range(runs):  # in turn, so that other load meets both
            print(f"bench-boot: {number + 1} of {runs}, with each pin", flush=True)
            with attest.site:
                seconds["attest"].append(_measure(replace(attest.machine, network=attest.network)))
            with _tangd(Path(directory) / "keys") as port:
                seconds["tang"].append(_measure(replace(tang.machine, network=Network(server_port=port))))
        sizes = {
            name: world.built.initrd.stat().st_size for name, world in (("attest", attest), ("tang", tang))
        }
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="minutes"),
        "what": "QEMU TCG, 1 CPU, OVMF, swtpm; from the start of the initrd to its root being open",
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "median_seconds": {name: round(value, 2) for name, value in medians.items()},
        "ratio_to_tang": round(medians["attest"] / medians["tang"], 2),
        "initrd_bytes": sizes,
        "initrd_added_bytes": sizes["attest"] - sizes["tang"],
    }
    figures.FILE.parent.mkdir(exist_ok=True)
    figures.FILE.write_text(json.dumps(result, indent=2) + "\n")
    print(report.boot_table(figures.read(figures.FILE)))


def _tang(directory: Path) -> World:
    """The same machine with nothing of ours, bound to Debian's tangd."""
    keys = directory / "keys"
    keys.mkdir()
    subprocess.run(["/usr/libexec/tangd-keygen", str(keys)], check=True, capture_output=True)
    reply = subprocess.run(
        [_TANGD, str(keys)], input=b"GET /adv HTTP/1.0\r\n\r\n", check=True, capture_output=True, timeout=20
    ).stdout
    advertisement = directory / "advertisement"
    advertisement.write_bytes(reply.partition(b"\r\n\r\n")[2])
    world = World.new(directory / "tang", Variant(attest=False))
    configuration = {"url": f"http://{SERVER}:{SERVER_PORT}", "adv": str(advertisement)}
    disk.clevis_bind(world.root_disk, "tang", json.dumps(configuration), {})
    return world


@contextmanager
def _tangd(keys: Path) -> Iterator[int]:
    """Debian's tangd behind socat, as its socket unit would start it; the port."""
    port = free_port()
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
    process = subprocess.Popen(["socat", listen, f"EXEC:{_TANGD} {keys}"], stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def _measure(machine: Machine) -> float:
    with machine.boot() as console:
        match = console.wait_for(_STAMPS)
        return float(match[2]) - float(match[1])


if __name__ == "__main__":
    main()
