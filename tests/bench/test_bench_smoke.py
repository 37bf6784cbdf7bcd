"""The bench runs in short, and has every figure it promises; how fast anything is depends on the machine and is not tested."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tang_attest.web.gate.connections import Connection
from tests.bench import __main__ as bench
from tests.bench import keylime, page, profile
from tests.bench.figures import boot, bounds, report
from tests.bench.figures.test_boot import measured
from tools.generate_docs import ROOT


def _run(tmp_path: Path, *parts: str) -> dict[str, Any]:
    output = tmp_path / "bench.json"
    boots = measured(tmp_path / "boots", 1.0, 1000)
    only = [word for part in parts for word in ("--only", part)]
    assert bench.main(["--short", *only, "--output", str(output), "--boots", str(boots)]) == 0
    figures: dict[str, Any] = json.loads(output.read_text())
    assert boot.names() <= figures.keys()
    numbers = {name: value for name, value in figures.items() if name not in {"run", "profiles"}}
    assert all(math.isfinite(value) for value in numbers.values())
    return figures


def _positive(figures: Mapping[str, float], *names: str) -> None:
    assert {name: figures[name] for name in names if not figures[name] > 0} == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each transport, database, number of workers and of clients is measured beside tangd, and the storm opens every machine."""
    figures = _run(tmp_path, "rates")
    for transport in ("http", "p256", "rsa2048"):
        for database in ("sqlite", "postgresql"):
            for workers in (1, 2):
                place = f"{transport}_{database}_{workers}w"
                for clients in bench.SHORT.clients:
                    names = ("per_s", "p99_ms", "cpu_ratio_ecdh", "ratio_tangd")
                    _positive(figures, *(f"{place}_unlock_{clients}c_{name}" for name in names))
                    if transport == "http":
                        _positive(figures, f"{place}_unlock_{clients}c_kept_ratio_tangd")
                if transport == "http":
                    assert figures[f"{database}_{workers}w_storm_opened"] == bench.SHORT.storm
    for workers in (1, 2):
        _positive(figures, f"http_sqlite_{workers}w_rec_16c_ratio_tangd")
        _positive(figures, f"http_sqlite_{workers}w_rec_16c_kept_ratio_tangd")
    _positive(figures, "unlock_cpu_ratio_ecdh", "unlock_cpu_ratio_ecdh_postgresql")
    missed = [bound for bound in bounds.missed(figures) if bound.cause is not None]
    assert figures["profiles"].keys() == {bound.name for bound in missed}
    printed = capsys.readouterr().out
    assert "HTTPS, RSA-2048, PostgreSQL, 2 w" in printed
    assert all(bound.what in printed for bound in bounds.BOUNDS if bound.name in figures)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_other_parts(tmp_path: Path) -> None:
    """With those of the rates they give every figure that has a bound, and every one of the report."""
    parts = [part for part in bench.PARTS if part != "rates"]
    figures = _run(tmp_path, *parts)
    rates = {bound.name for bound in bounds.BOUNDS if bound.cause is not None}
    _positive(figures, *({bound.name for bound in bounds.BOUNDS} - rates))
    titles = {section.title for section in report.sections(figures)}
    assert titles >= {
        "Size of the registry",
        "Agents",
        "Siege",
        "Exchange keys in a software TPM",
        "For scale",
    }
    assert not {name for name in ("quote_check_ms", "startup_s", "pin_decrypt_ms") if name not in figures}


def test_a_python_without_keylime_is_named(tmp_path: Path) -> None:
    """Nothing is made up when Keylime's check cannot be run."""
    with pytest.raises(RuntimeError, match=re.escape(f"Keylime's check failed in {sys.executable}")):
        keylime.measure(tmp_path, Path(sys.executable))


def test_each_bound_is_judged() -> None:
    """A figure at its bound is reached, beyond it is missed, in both directions."""
    for bound in bounds.BOUNDS:
        beyond = bound.value * (1.01 if bound.direction == "at most" else 0.99)
        assert bounds.verdicts({bound.name: bound.value})[0].endswith("reached")
        assert bounds.verdicts({bound.name: beyond})[0].endswith("MISSED")
        assert bounds.missed({bound.name: beyond}) == [bound]


def test_a_missed_bound_has_its_profile() -> None:
    """The page and the terminal say why: the shares of the server's parts, and the command that shows them."""
    bound = bounds.BOUNDS[0]
    figures = {bound.name: 7.0, "profiles": {bound.name: {"aiohttp": 0.25}}}
    printed = report.text(figures)
    assert ".venv/bin/python -m tests.bench.profile --database sqlite --workers 1 --kind unlock" in printed
    assert re.search(r"aiohttp +25\.0 %", printed)


def test_the_page_is_made_from_the_figures(tmp_path: Path) -> None:
    """Text between the markers is replaced, and nothing else; each table has its command."""
    before = f"# Performance\n\n{page.BEGIN}\nold\n{page.END}\n\n## More\n"
    figures = {"run": "2026-11-27; 2 processors", "fsync_ms": 0.5, "unlock_cpu_ratio_ecdh": 5.4}
    after = page.replaced(before, figures)
    assert after.startswith("# Performance\n\n")
    assert after.endswith("\n\n## More\n")
    assert "old" not in after
    assert "2026-11-27; 2 processors" in after
    assert ".venv/bin/python -m tests.bench --only single" in after
    assert "5.40   at most 6     reached" in after
    assert page.replaced(after, figures) == after


def test_the_page_has_the_figures_of_its_json() -> None:
    """docs/performance.md was made from docs/performance.json, by `make bench-page`."""
    text = page.PAGE.read_text()
    assert page.replaced(text, json.loads(page.FIGURES.read_text())) == text


def test_samples_are_shared_out() -> None:
    """Each sample belongs to one part, the first that fits; what fits nowhere is told."""
    stacks = (
        "run (asyncio/runners.py);answer (tang_attest/web/app.py);verify_quote (tang_attest/protocol/quote.py) 3\n"
        "run (asyncio/runners.py);start (aiohttp/web_protocol.py) 2\n"
        "start (aiohttp/web_protocol.py);Connection.finish_response (tang_attest/web/gate/connections.py);write (aiohttp/x.py) 5\n"
        "_worker (concurrent/futures/thread.py);find (tang_attest/store/records/keys.py);execute (sqlalchemy/x.py) 4\n"
        "main (somewhere.py) 1\n"
    )
    assert profile.share_out(stacks) == {
        "checking the quote": 3,
        "aiohttp": 2,
        "writing answers, with the kernel's part": 5,
        "finding key, device and policy, but for the database": 4,
        "other": 1,
    }


def test_each_part_of_a_profile_is_somewhere() -> None:
    """A file that is renamed would leave its part empty, and its time with another one."""
    files = [str(path.relative_to(ROOT)) for path in (ROOT / "tang_attest").rglob("*.py")]
    functions = ["finish_response (", "connection_made (", "data_received ("]
    assert all(hasattr(Connection, name.removesuffix(" (")) for name in functions)
    files += functions
    for name, pattern in profile.PARTS:
        if name in {"checking the quote", "unsealing the key", "TLS", "aiohttp", "the event loop"}:
            continue
        assert any(re.search(pattern, file) for file in files), name
