"""The conformance kit passes this project's pin, and finds each mutant of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.boot.images.cache import ROOT
from tests.conformance.mutants.pin import MUTANTS, PinMutant
from tests.conformance.pin import PinUnderTest, patched
from tests.pin.machine import PIN, Machine
from tests.swtpm import Swtpm

#: On a busy machine; alone it takes a minute.
_PATIENCE = 900


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine for all: a TPM takes longer to make than the kit to find a mutant."""
    directory = tmp_path_factory.mktemp("client")
    with Swtpm(directory / "tpm", banks=("sha256", "sha384")) as tpm:
        made = Machine(directory / "machine", tpm)
        PinUnderTest.make_ak(tpm)
        yield made


@pytest.fixture
def pin(machine: Machine, tmp_path: Path) -> PinUnderTest:
    """A copy of the pin on the machine, which has just been reset."""
    machine.tpm.restart()
    return PinUnderTest(machine, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(_PATIENCE)
def test_our_pin_keeps_every_duty(pin: PinUnderTest) -> None:
    """Bind, unlock and cap."""
    results = pin.run(timeout=_PATIENCE)
    failed = [f"{it['duty']}: {it['outcome']}: {it['detail']}" for it in results if it["outcome"] != "kept"]
    itself = "a client that caps itself does so before it hands the key on: not tested: "
    assert failed == [f"{itself}--caps-itself says that the command is followed by nothing that caps"]
    assert len(results) > 20


@pytest.mark.slow
@pytest.mark.timeout(_PATIENCE)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda it: it.name.replace(" ", "-"))
def test_a_mutant_is_found(mutant: PinMutant, pin: PinUnderTest) -> None:
    """The kit calls the duty broken that the mutant is aimed at."""
    pin.patch(mutant.file, mutant.changes)
    results = pin.run(mutant.duty)
    assert results, "no duty has these words"
    assert [it for it in results if it["outcome"] == "broken"], "the kit found nothing"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda it: it.name.replace(" ", "-"))
def test_a_patch_fits(mutant: PinMutant) -> None:
    """A change of the shell that a mutant changes is noticed at once."""
    path = ROOT / "initrd/clevis-attest-cap" if mutant.file == "cap" else PIN / mutant.file
    patched(path.read_text(), mutant.file, mutant.changes)


def test_a_patch_that_does_not_fit_fails() -> None:
    """A mutant never becomes the pin itself because its source moved."""
    with pytest.raises(AssertionError, match="has 0 times: no such text"):
        patched("text", "file", [("no such text", "")])


def test_there_are_ten_mutants() -> None:
    """Each has a name of its own."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 10
