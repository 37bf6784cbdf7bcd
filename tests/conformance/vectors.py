"""The test vectors of vectors/, for ``parametrize``."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet

from tang_attest.protocol.values.base64url import unb64u
from tools.vectors.keys import VECTORS


@cache
def document(kind: str) -> dict[str, Any]:
    """Return the whole file."""
    read: dict[str, Any] = json.loads((VECTORS / f"{kind}.json").read_text())
    return read


def each(kind: str) -> list[ParameterSet]:
    """Return the vectors of *kind*, named."""
    return [pytest.param(vector, id=vector["name"].replace(" ", "-")) for vector in document(kind)["vectors"]]


def number(text: str) -> int:
    """Return a scalar."""
    return int.from_bytes(unb64u(text), "big")
