"""The kit as a program: it needs Python and `cryptography` alone, explains itself, and ends with a status."""

from __future__ import annotations

import ast
import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.tested import kit_and_server
from tools.vectors.keys import VECTORS

KIT = VECTORS.parent / "tools" / "conformance"

#: Runs the kit of a directory in a Python that has nothing but the standard library and cryptography.
_ALONE = """
import runpy, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {"__main__", "cryptography", "conformance", "cffi", "_cffi_backend"}:
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
try:
    import tang_attest
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tang_attest can be imported")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(directory: Path, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a copy of the kit with its vectors."""
    if not (directory / "tools").exists():
        shutil.copytree(
            KIT, directory / "tools" / "conformance", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copytree(VECTORS, directory / "vectors")
    return subprocess.run(
        [sys.executable, "-I", "-c", _ALONE, str(directory / "tools" / "conformance"), *words],
        input=stdin, capture_output=True, text=True, timeout=240, check=False, cwd=directory,
    )  # fmt: skip


@pytest.mark.parametrize("path", sorted(KIT.rglob("*.py")), ids=lambda it: str(it.relative_to(KIT)))
def test_a_file_imports_the_kit_the_standard_library_and_cryptography(path: Path) -> None:
    """Nothing of ours, and nothing else to install."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name.partition(".")[0] in {*sys.stdlib_module_names, "cryptography", "conformance"}, name


@pytest.mark.parametrize("words", [(), ("server",), ("client",)])
def test_help_teaches(words: tuple[str, ...], tmp_path: Path) -> None:
    """Each command says what it needs, and how to get it."""
    done = run_alone(tmp_path, *words, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: conformance" in done.stdout
    expected = {(): "exit status", ("server",): "tang-attest token create", ("client",): "tpm2 readpublic"}[
        words
    ]
    assert expected in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 140


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        (("server", "ftp://192.0.2.1"), "a b\n", "'ftp://192.0.2.1' is no http or https URL"),
        (("server", "http://127.0.0.1:1"), "one-word\n", "a device's name, a space and a token"),
        (("server", "http://127.0.0.1:1", "--token-file", "/nowhere"), "", "/nowhere"),
        (("server", "http://127.0.0.1:1", "--vectors", "/nowhere"), "a b\n", "/nowhere/requests.json"),
    ],
)
def test_a_mistake_is_told_in_a_line(words: tuple[str, ...], stdin: str, said: str, tmp_path: Path) -> None:
    """Status 2, and no traceback."""
    done = run_alone(tmp_path, *words, stdin=stdin)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_server_that_is_not_there_keeps_nothing(tmp_path: Path) -> None:
    """Status 1, and a line for the duty."""
    done = run_alone(tmp_path, "server", "http://127.0.0.1:1", "--fail-fast", stdin="a b\n")
    assert done.returncode == 1
    assert done.stdout.startswith(
        "FAIL  5         the server's advertisement is signed by each signing key in it: "
    )
    assert done.stdout.endswith("0 kept, 1 broken, 0 not tested\n")
    assert done.stderr == ""


@pytest.mark.slow
async def test_the_kit_alone_passes_our_server(tmp_path: Path) -> None:
    """`python -I`, where nothing of this project can be imported."""
    async with kit_and_server(tmp_path / "state") as world:
        assert world.sibling is not None
        stdin = "".join(f"{it.name} {it.token}\n" for it in (world.device, world.sibling))
        url = f"http://{world.http.host}:{world.http.port}"
        done = await asyncio.to_thread(run_alone, tmp_path, "server", url, "--json", stdin=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout)["results"]
    outcomes = {outcome: [it["duty"] for it in results if it["outcome"] == outcome] for outcome in ("kept", "broken", "not tested")}  # fmt: skip
    assert outcomes["broken"] == []
    assert len(outcomes["kept"]) > 180
    # A nonce lives for two minutes, and nobody moves the clock.
    assert all("expire" in duty for duty in outcomes["not tested"])
