"""The runner of the protocol's model: it tells a complete search from an interrupted one, and mutants from the model."""

from __future__ import annotations

import re

import pytest

from tools import check_model
from tools.check_model import MODEL, SEARCHES, ModelError, Search, search, verdict


def test_each_mutant_of_the_model_is_searched() -> None:
    """A check with a mutant nobody builds would be untried."""
    text = "".join(path.read_text() for path in MODEL.glob("*.pml"))
    assert set(re.findall(r"\bM_([A-Z_]+)", text)) - {"NAME"} == {it.mutant for it in SEARCHES} - {""}


def test_each_property_is_broken_by_a_mutant() -> None:
    """A property that nothing breaks might be true of nothing."""
    numbers = {int(number) for number in re.findall(r"CHECK\((\d+),", (MODEL / "verifier.pml").read_text())}
    assert numbers == {it.aim for it in SEARCHES} - {0}
    text = (MODEL / "README.md").read_text()
    assert all(f"`{it.mutant}`" in text for it in SEARCHES if it.mutant)


@pytest.mark.parametrize(
    "it", [Search("safety", "RACE", 6), Search("liveness"), Search("liveness", "STRICT_CLOCK")], ids=str
)
def test_a_search_tells_a_mutant_from_the_model(it: Search) -> None:
    """The quick ones; `make model` runs all.  Compiling takes longer than these searches, so little is
    optimized.
    """
    assert search(it, "-Og").broken == bool(it.mutant)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_model_holds_and_its_mutants_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    """`make model` ends with 0."""
    assert check_model.main() == 0
    assert "UNEXPECTED" not in capsys.readouterr().out


def test_an_unexpected_result_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A mutant that breaks nothing is as wrong as a model that breaks."""
    holds, breaks = (
        check_model.Result(1, broken=False, seconds=0),
        check_model.Result(1, broken=True, seconds=0),
    )
    assert not check_model.report([Search("safety", "X", 2)], [holds])
    assert not check_model.report([Search("safety")], [breaks])
    assert capsys.readouterr().out.count("UNEXPECTED") == 2


@pytest.mark.parametrize(
    "output",
    [
        "",
        "errors: 0",
        "error: max search depth too small\n 12 states, stored\nerrors: 0",
        "Warning: Search not completed\n 12 states, stored\nerrors: 0",
    ],
)
def test_a_search_that_is_not_exhaustive_proves_nothing(output: str) -> None:
    """No result is an error, not a success."""
    with pytest.raises(ModelError):
        verdict(output)
