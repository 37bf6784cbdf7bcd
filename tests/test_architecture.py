"""The shape of the program, kept honest: who may import whom, and who may make the values that carry proof."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

from tang_attest import errors
from tests.docs.sources import ClassShape, expressions, outline, parse_outline

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tang_attest"
FILES = sorted(PACKAGE.rglob("*.py"))

#: layer -> the layers of ours it may import
MAY_IMPORT = {
    "errors": set(),
    "protocol": {"errors", "protocol"},
    "ports": {"errors", "protocol", "ports"},
    "service": {"errors", "protocol", "ports", "service"},
    "config": {"errors", "files"},
    "documents": {"errors"},
    "files": {"errors"},
    "log": set(),
    "programs": {"errors", "protocol", "ports", "programs"},
    "daemon": {"errors", "daemon"},
    "doctor": {"errors", "protocol", "ports", "config", "daemon", "keys", "store", "web", "doctor"},
    "keys": {"errors", "files", "protocol", "ports", "service", "keys"},
    "store": {"errors", "files", "protocol", "ports", "store"},
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
    "jinja2": "web",
    "markupsafe": "web",
    "prometheus_client": "web",
    "asyncpg": "store",
    "sqlalchemy": "store",
    "alembic": "store",
    "yaml": "documents.py",
    "re2": "protocol/rules/patterns.py",
    "click": "cli",
    "rich": "cli",
}


def _imports(path: Path) -> frozenset[str]:
    return outline(path).imports


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


@cache
def _callers() -> dict[str, set[str]]:
    """Return, for each name that is called, the functions, as file:function, that call it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        for function, name in expressions(path).calls:
            found[name].add(f"{path.relative_to(PACKAGE)}:{function}")
    return found


def _calls(name: str) -> set[str]:
    """Return the functions, as file:function, that call *name*."""
    return _callers().get(name, set())


def test_only_the_policy_makes_permits() -> None:
    """Nothing reaches a private exchange key without an appraisal."""
    assert _calls("Permit") == {"protocol/policy.py:appraise"}


def test_only_verification_makes_verified_quotes() -> None:
    """A value that says "verified" was."""
    assert _calls("VerifiedQuote") == {"protocol/quote.py:verify_quote"}


def test_only_the_exchange_and_plain_tang_multiply() -> None:
    """There are two ways to Y: with a permit, and without for an open key."""
    assert _calls("multiply") == {"protocol/exchange.py:respond", "service/tang/plain.py:recover"}
    for way in ("multiply_once", "multiply_twice"):
        assert _calls(way) == {"protocol/exchange.py:multiply", "protocol/exchange.py:multiplies_once"}
    assert _calls("Scalar") == {"protocol/exchange.py:multiply_once"}
    assert _calls("zgen") == {"keys/server_tpm.py:_zgen"}
    assert _calls("_zgen") == {"keys/server_tpm.py:multiply"}


def test_the_server_is_composed_once() -> None:
    """The use cases that answer machines, and their site, are put together in server/ alone, for every caller."""
    for name in ("Unlock", "Enroll", "Announce", "Agents", "RoundVerifier", "OnDemandRounds", "AttestRoutes"):
        assert {caller.partition(":")[0] for caller in _calls(name)} <= {
            "server/compose.py",
            "server/site.py",
        }, name
    sites = {caller.partition(":")[0] for caller in _calls("Site")}
    assert sites == {"server/site.py", "server/tang.py"}


def test_every_code_that_is_raised_has_an_action() -> None:
    """A code that nobody explains helps nobody; a code that nobody raises is a lie."""
    words: set[str] = set()
    for path in FILES:
        if path.name == "errors.py":
            continue
        words |= expressions(path).strings
    assert set(errors.ACTIONS) - words == set(), "codes that nothing raises"


def test_every_code_is_documented() -> None:
    """docs/errors.md explains every code; it is generated by tools/generate_docs.py."""
    text = (ROOT / "docs" / "errors.md").read_text()
    for code, action in errors.ACTIONS.items():
        assert f"`{code}`" in text, code
        assert action in text, code


#: Folders of ``service/``; each may import only those before it.
SERVICE_ORDER = (
    "audit",
    "unlock",
    "tang",
    "enrollment",
    "policies",
    "rounds",
    "machines",
    "admin",
    "operators",
    "notifications",
    "upkeep",
)
MAX_FILES = 15
MAX_METHODS = 20
MAX_POSITIONAL = 5
#: Folders that people work in.
TREES = (
    "tang_attest",
    "tests",
    "clevis-pin",
    "initrd",
    "tools",
    "docs",
    "nix",
    "packaging",
    "model",
    "man",
    "vectors",
)


def _arrows() -> set[tuple[str, str]]:
    """Return the imports between folders of ``service/``, as importing and imported folder."""
    found = set()
    for path in (PACKAGE / "service").rglob("*.py"):
        here = path.relative_to(PACKAGE / "service").parts[0]
        for name in _imports(path):
            parts = name.split(".")
            if parts[:2] == ["tang_attest", "service"] and len(parts) > 2 and parts[2] != here:
                found.add((here, parts[2]))
    return found


def test_use_cases_import_downward() -> None:
    """A folder of use cases imports only folders that stand before it, so there is no circle."""
    folders = {path.name for path in (PACKAGE / "service").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(SERVICE_ORDER)
    upward = {
        (one, other) for one, other in _arrows() if SERVICE_ORDER.index(other) >= SERVICE_ORDER.index(one)
    }
    assert upward == set()


def test_a_folder_can_be_overlooked() -> None:
    """A folder has at most 15 files side by side."""
    counts = Counter(
        str(path.parent.relative_to(ROOT))
        for tree in TREES
        for path in (ROOT / tree).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}


@cache
def _classes() -> dict[str, ClassShape]:
    """Return every class, by file and name."""
    return {
        f"{path.relative_to(ROOT)}:{shape.name}": shape
        for tree in TREES
        for path in (ROOT / tree).rglob("*.py")
        for shape in outline(path).classes
    }


def test_a_class_can_be_overlooked() -> None:
    """A class has at most 20 public methods."""
    counts = {name: shape.public_methods for name, shape in _classes().items()}
    assert len(counts) > 700
    assert {name: count for name, count in counts.items() if count > MAX_METHODS} == {}


def _positional(shape: ClassShape, by_name: dict[str, ClassShape]) -> int:
    """Count what the constructor takes by position, with the fields of base classes of ours."""
    inherited = sum(by_name[base].fields for base in shape.bases if base in by_name) if shape.fields else 0
    return max(shape.arguments, shape.fields + inherited)


def test_a_constructor_can_be_read() -> None:
    """A constructor takes at most 5 values by position; further ones are named where it is called."""
    classes = _classes()
    by_name = {shape.name: shape for shape in classes.values()}
    counts = {name: _positional(shape, by_name) for name, shape in classes.items()}
    assert {name: count for name, count in counts.items() if count > MAX_POSITIONAL} == {}


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("@dataclass\nclass A:\n    a: int\n    b: int = 1", 2),
        ("@dataclass(frozen=True)\nclass A:\n    a: int\n    _: KW_ONLY\n    b: int", 1),
        ("@dataclass(kw_only=True)\nclass A:\n    a: int", 0),
        ("@dataclass\nclass A:\n    a: ClassVar[int]\n    b: int = field(init=False)", 0),
        ("class A:\n    def __init__(self, a, b, *, c): ...", 2),
    ],
)
def test_positions_are_counted(source: str, count: int) -> None:
    """The test above counts what it should."""
    [shape] = parse_outline(source).classes
    assert _positional(shape, {}) == count


def test_roles_are_implemented() -> None:
    """Each role of the store is a Protocol in ports/, and a module of store/roles/ implements it."""
    roles = {
        shape.name
        for path in (PACKAGE / "ports").glob("*.py")
        for shape in outline(path).classes
        if re.fullmatch(r"\w+Store", shape.name) and shape.name != "KeyStore"
    }
    implemented = {
        base
        for path in (PACKAGE / "store" / "roles").glob("*.py")
        for shape in outline(path).classes
        for base in shape.bases
    }
    assert len(roles) == 12
    assert roles <= implemented


def test_no_use_case_takes_the_whole_store() -> None:
    """A use case declares the roles of the store that it needs."""
    for path in (PACKAGE / "service").rglob("*.py"):
        assert "tang_attest.ports.store.Store" not in _imports(path), path
