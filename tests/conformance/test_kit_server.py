"""The conformance kit passes this project's server, and finds each mutant of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.mutants.server import MUTANTS, Mutant, PatchError, changed_code, mutated
from tests.conformance.tested import broken, kit_and_server, run_all


@pytest.mark.slow
async def test_our_server_keeps_every_duty(tmp_path: Path) -> None:
    """Nothing is broken, and nothing but what another duty covers is left untested."""
    async with kit_and_server(tmp_path / "state") as world:
        results = await run_all(world)
    assert broken(results) == []
    assert len(results) > 180


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda it: it.name.replace(" ", "-"))
async def test_a_mutant_is_found(mutant: Mutant, tmp_path: Path) -> None:
    """The kit calls a duty broken."""
    async with kit_and_server(tmp_path / "state") as world:
        with mutated(mutant):
            results = await run_all(world, fail_fast=True)
    assert [it for it in results if it.outcome == "broken"], "the kit found nothing"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda it: it.name.replace(" ", "-"))
def test_a_patch_fits(mutant: Mutant) -> None:
    """A change of the function that a mutant changes is noticed at once."""
    changed_code(mutant)


def test_a_patch_that_does_not_fit_fails() -> None:
    """A mutant never becomes the server itself because its source moved."""
    for changes in ((("no such text", ""),), (("a", "b"),)):
        with pytest.raises(PatchError, match=r"x: protocol\.quote:advance has"):
            changed_code(Mutant("x", "protocol.quote:advance", changes))


def test_a_patch_with_an_unknown_name_fails() -> None:
    """A local variable that was renamed makes a NameError, and the kit would find that, not the fault."""
    with pytest.raises(PatchError, match=r"x: protocol\.quote:advance does not know earlier"):
        changed_code(
            Mutant("x", "protocol.quote:advance", (("return (now - before", "return (now - earlier"),))
        )


def test_there_are_twenty_mutants() -> None:
    """Each has a name of its own."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 20
