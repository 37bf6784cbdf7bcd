"""Write the test vectors of docs/protocol.md into vectors/, the same bytes each time.

`make vectors` runs it.  vectors/README.md describes the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from tools.conformance.report import PROTOCOL
from tools.vectors import activation, advertisements, exchange, logs, requests, signed_values, texts
from tools.vectors.keys import VECTORS, write_new_rsa_keys

#: Of the format of the files: it changes when a reader of the files has to.
FORMAT: Final = 1

FILES: Final[dict[str, tuple[str, str, Callable[[], Iterator[dict[str, Any]]]]]] = {
    "exchange": ("2", "The exchange of McCallum and Relyea with all intermediate values.", exchange.exchanges),
    "jwe": ("8", "Headers of a disk, and the key that opens them.", exchange.jwes),
    "activation": ("4", "TPM2_MakeCredential with a fixed seed, by template of the EK.", activation.activations),
    "qualifying-data": ("3.2, 4.2, 9, 10.2", "The texts that are hashed into a quote.", texts.qualifying_data),
    "cap": ("10.6, 11", "Texts of the cap, and the PCR that they lead to in each bank.", texts.caps),
    "advertisements": ("5", "Advertisements of a device, good and bad.", advertisements.advertisements),
    "requests": ("3.3", "Unlock requests with one fault or two, and their answers.", requests.requests),
    "counters": ("3.3", "The clock of the newest evidence, and that of a quote after it.", requests.counters),
    "signed-values": ("3.8", "Unlock requests with signed values, and their answers.", signed_values.signed_values),
    "event-logs": ("4.2", "Event logs, their replay, and the parts of the boot that a selection covers.", logs.event_logs),
    "ima": ("10.5", "IMA's list in parts.", logs.ima_lists),
}  # fmt: skip


def generate(kind: str) -> str:
    """Return the text of vectors/*kind*.json."""
    section, about, make = FILES[kind]
    head: dict[str, Any] = {
        "format": FORMAT,
        "protocol": PROTOCOL,
        "kind": kind,
        "section": section,
        "about": about,
    }
    if kind == "requests":
        head["device"] = requests.device()
    if kind == "signed-values":
        head |= {"policy": signed_values.policy(), "device": signed_values.device()}
    return json.dumps(head | {"vectors": list(make())}, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write every file."""
    parser = argparse.ArgumentParser(description="Write the test vectors into vectors/.")
    parser.add_argument("--new-rsa-keys", action="store_true", help="make other RSA keys first")
    if parser.parse_args().new_rsa_keys:
        write_new_rsa_keys()
    for kind in FILES:
        (VECTORS / f"{kind}.json").write_text(generate(kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
