"""Pages of the console, as paths, for the links of messages; each has the route in web/console/app.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

#: The list of things that wait for a person.
FIRST: Final = "/"
RECORD: Final = "/audit"


def of_machine(name: str) -> str:
    """Return the page of a machine."""
    return f"/machines/{_part(name)}"


def of_newest_refusal(name: str) -> str:
    """Return the address that leads to the newest refused boot of a machine, or else to the machine."""
    return f"{of_machine(name)}/refusal"


def of_policy(name: str) -> str:
    """Return the page of a policy."""
    return f"/policies/{_part(name)}"


def of_subject(subject: Mapping[str, Any]) -> str:
    """Return the page on which a further operator signs *subject*, the subject of an act's text."""
    boots = subject.get("boots")
    if isinstance(boots, list) and boots and isinstance(boots[0], Mapping):
        return f"/refusals/{int(boots[0].get('observation', 0))}"
    if subject.get("device"):
        return of_machine(str(subject["device"]))
    return of_policy(str(subject["policy"])) if subject.get("policy") else FIRST


def _part(name: str) -> str:
    return quote(name, safe="")
