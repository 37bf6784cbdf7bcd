"""docs/rules.md: its examples are rules, and they hold for the real boots that they describe."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tang_attest.documents import load_yaml
from tang_attest.errors import Refused
from tang_attest.protocol.ima.requirement import parse_requirement
from tang_attest.protocol.rules import parse_rules
from tests.protocol.eventlog import writer as w

REFERENCE = (Path(__file__).parents[3] / "docs" / "rules.md").read_text()
#: Examples about event logs; the document's last example is about IMA.
EXAMPLES = re.findall(r"^```yaml\n(judge-by-events.*?)^```", REFERENCE, re.MULTILINE | re.DOTALL)
#: The boot that each example is about, in the order of the document.
BOOTS = ("secure-boot", "secure-boot", "uki", "kernel-changed")


@pytest.mark.parametrize(("example", "boot"), [*zip(EXAMPLES, BOOTS, strict=True)], ids=BOOTS)
def test_an_example_holds_for_its_boot_and_for_no_other(example: str, boot: str) -> None:
    """Copied as it is, it passes; a machine that booted something else does not."""
    ruleset = parse_rules(load_yaml(example.encode(), "docs/rules.md"))
    for name in w.RECORDED:
        log = (w.VECTORS / f"{name}.bin").read_bytes()
        quoted = w.recorded_values(name)["sha256"]
        if name == boot:
            ruleset.check(log, "sha256", quoted)
            continue
        with pytest.raises(Refused):
            ruleset.check(log, "sha256", quoted)


def test_the_example_about_ima_is_a_requirement() -> None:
    """The document's other example, but for its certificate, which is left out there."""
    [example] = re.findall(r"^```yaml\n(files:.*?)^```", REFERENCE, re.MULTILINE | re.DOTALL)
    without = re.sub(r"^signed-by: .*?END CERTIFICATE-----\n", "", example, flags=re.MULTILINE | re.DOTALL)
    assert without != example
    parse_requirement(load_yaml(without.encode(), "docs/rules.md"))
