"""The operator and the pipeline of the simulation: they type commands."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from tang_attest.config import Settings
from tang_attest.protocol.policy import DEFAULT_CAP_PCR, DEFAULT_SELECTION
from tang_attest.protocol.values.pcr import Selection
from tang_attest.server.compose import opened
from tang_attest.service.enrollment.tokens import TokenTerms
from tests.cli.transcript import run

POLICY: Final = "fleet"


@dataclass(frozen=True, slots=True)
class Operator:
    """``tang-attest`` over the state directory, beside the server; in this process, which starts it but once."""

    state: Path

    def run(self, *arguments: str, document: object = None) -> str:
        """Return the output of a command; *document* goes to its stdin.  Raises unless its exit code is 0."""
        stdin = b"" if document is None else json.dumps(document).encode()
        stdout, stderr, code = run("--state", str(self.state), *arguments, stdin=stdin)
        if code:
            raise RuntimeError(f"tang-attest {' '.join(arguments)} exits {code}: {stderr}")
        return stdout

    def rollout(self, verb: str, *arguments: str, document: object = None) -> str:
        """``tang-attest policy rollout VERB fleet ...``."""
        return self.run("policy", "rollout", verb, POLICY, *arguments, document=document)

    def status(self) -> dict[str, Any]:
        """Return the rollout as --json shows it."""
        status: dict[str, Any] = json.loads(self.rollout("status", "--json"))
        return status

    def tokens(self, count: int) -> list[str]:
        """One-time tokens for the policy; what ``tang-attest token create`` does, without starting it every time."""

        async def create() -> list[str]:
            async with opened(Settings(state=self.state)) as it:
                return [(await it.tokens.create(_terms()))[0] for _ in range(count)]

        return asyncio.run(create())


def _terms() -> TokenTerms:
    return TokenTerms(
        name=None,
        policy=POLICY,
        record=False,
        selection=Selection.parse(DEFAULT_SELECTION),
        cap_pcr=DEFAULT_CAP_PCR,
        allow_unverified_ek=True,
        force=False,
        valid_for=timedelta(hours=1),
        learn_for=timedelta(hours=1),
    )
