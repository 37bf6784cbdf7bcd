"""The shape of the program, kept honest: who may import whom, and who may make the values that carry proof."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tang_attest import errors

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tang_attest"
FILES = sorted(PACKAGE.rglob("*.py"))

#: layer -> the layers of ours it may import
MAY_IMPORT = {
    "errors": set(),
    "protocol": {"errors", "protocol"},
    "ports": {"errors", "protocol", "ports"},
    "service": {"errors", "protocol", "ports", "service"},
    "config": {"errors"},
    "documents": {"errors"},
    "files": {"errors"},
    "log": set(),
    "programs": {"errors", "protocol", "ports", "programs"},
    "daemon": {"errors", "daemon"},
    "doctor": {"errors", "protocol", "ports", "config", "daemon", "keys", "store", "web", "doctor"},
    "keys": {"errors", "protocol", "ports", "service", "keys"},
    "store": {"errors", "protocol", "ports", "store"},
    "web": {"errors", "protocol", "ports", "service", "daemon", "web"},
    "server": {
        "errors",
        "protocol",
        "ports",
        "service",
        "config",
        "files",
        "log",
        "daemon",
        "doctor",
        "programs",
        "keys",
        "store",
        "web",
        "server",
    },
    "cli": {
        "errors",
        "protocol",
        "ports",
        "service",
        "config",
        "daemon",
        "doctor",
        "documents",
        "files",
        "log",
        "programs",
        "keys",
        "store",
        "web",
        "server",
        "cli",
    },
}
#: library -> the only layer, or the only files, that may import it
ONLY_IN = {
    # structures that machines send; the server's own TPM; AKs in a TPM at hand
    "tpm2_pytss": ("protocol/tpm.py", "keys/tpm.py", "keys/attestation.py"),
    "aiohttp": "web",
    "prometheus_client": "web",
    "asyncpg": "store",
    "sqlalchemy": "store",
    "alembic": "store",
    "yaml": "documents.py",
    "re2": "protocol/rules/patterns.py",
    "click": "cli",
    "rich": "cli",
}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dependencies_point_inward(path: Path) -> None:
    """The protocol imports nothing of ours, the use cases only the core, and the edges meet only in the CLI."""
    layer = _layer(path)
    if layer in ("__init__", "__main__"):
        return
    for name in _imports(path):
        parts = name.split(".")
        if (
            parts[0] == "tang_attest"
            and len(parts) > 1
            and (PACKAGE / parts[1]).with_suffix("").name in MAY_IMPORT
        ):
            assert parts[1] in MAY_IMPORT[layer], f"{layer} must not import {name}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_one_home(library: str) -> None:
    """All uses of a library are in one place."""
    homes = ONLY_IN[library] if isinstance(ONLY_IN[library], tuple) else (ONLY_IN[library],)
    for path in FILES:
        inside = path.relative_to(PACKAGE)
        if str(inside) in homes or inside.parts[0] in homes:
            continue
        assert not any(name.split(".")[0] == library for name in _imports(path)), (
            f"{inside} imports {library}"
        )


def test_the_core_is_pure() -> None:
    """No clock, randomness, file or coroutine in the protocol."""
    for path in (PACKAGE / "protocol").rglob("*.py"):
        names = {name.split(".")[0] for name in _imports(path)}
        if path.name == "tpm.py":
            names.discard("os")  # it silences libtss2's own log once, at import
        assert not names & {"os", "time", "random", "secrets", "asyncio", "pathlib", "socket", "io"}, path
        text = path.read_text()
        assert "async def" not in text, path
        assert "open(" not in text.replace("reopen(", ""), path


def _calls(name: str) -> set[str]:
    """The functions, as file:function, that call *name*."""
    found = set()
    for path in FILES:
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if (
                        isinstance(node, ast.Call)
                        and getattr(node.func, "id", getattr(node.func, "attr", "")) == name
                    ):
                        found.add(f"{path.relative_to(PACKAGE)}:{function.name}")
    return found


def test_only_the_policy_makes_permits() -> None:
    """Nothing reaches a private exchange key without an appraisal."""
    assert _calls("Permit") == {"protocol/policy.py:appraise"}


def test_only_verification_makes_verified_quotes() -> None:
    """A value that says "verified" was."""
    assert _calls("VerifiedQuote") == {"protocol/quote.py:verify_quote"}


def test_only_the_exchange_and_plain_tang_multiply() -> None:
    """There are two ways to Y: with a permit, and without for an open key."""
    assert _calls("multiply") == {"protocol/exchange.py:respond", "service/tang/plain.py:recover"}
    assert _calls("zgen") == {"keys/server_tpm.py:_zgen"}
    assert _calls("_zgen") == {"keys/server_tpm.py:multiply"}


def test_every_code_that_is_raised_has_an_action() -> None:
    """A code that nobody explains helps nobody; a code that nobody raises is a lie."""
    words = set()
    for path in FILES:
        if path.name == "errors.py":
            continue
        words |= {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    assert set(errors.ACTIONS) - words == set(), "codes that nothing raises"


def test_every_code_is_documented() -> None:
    """docs/errors.md explains every code; it is generated by tools/generate_docs.py."""
    text = (ROOT / "docs" / "errors.md").read_text()
    for code, action in errors.ACTIONS.items():
        assert f"`{code}`" in text, code
        assert action in text, code
