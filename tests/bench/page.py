"""``python -m tests.bench.page``: put the figures of a run into docs/performance.md.

The figures go to docs/performance.json, from which the page can be made again, and as tables between two marks on the page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.bench.figures import bounds, report
from tests.bench.load.workplace import BUILD

_DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = _DOCS / "performance.md"
FIGURES: Final = _DOCS / "performance.json"
BEGIN: Final = "<!-- figures of docs/performance.json; `make bench-page` writes them -->"
END: Final = "<!-- end of the figures -->"


def replaced(page: str, figures: report.Figures) -> str:
    """*page* with the tables of *figures* between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"the page has no '{BEGIN}' with a '{END}' after it")
    return f"{before}{BEGIN}\n\n{_section(figures)}\n{END}{after}"


def _section(figures: report.Figures) -> str:
    verdicts = bounds.verdicts(figures)
    parts = [f"One run: {figures['run']}.", "", *(["### Bounds", "", *_code(verdicts)] if verdicts else [])]
    for bound in bounds.missed(figures):
        parts += _code(report.missed_bound(figures, bound))
    for section in report.sections(figures):
        parts += [f"### {section.title}", "", *_code([section.command, "", *section.lines])]
    boots = bounds.verdicts(figures, bounds.BOOT)
    if boots:
        parts += ["### A boot", "", *_code(["make bench-boot", "", *boots])]
    return "\n".join(parts)


def _code(lines: Sequence[str]) -> list[str]:
    return [*(f"    {line}" if line else "" for line in lines), ""] if lines else []


def main(arguments: Sequence[str]) -> int:
    """Write the page, and the JSON beside it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.page", description="Put the figures of a run into docs/performance.md."
    )
    parser.add_argument("figures", type=Path, nargs="?", default=BUILD / "bench.json", help="what it wrote")
    options = parser.parse_args(arguments)
    figures = json.loads(options.figures.read_text())
    PAGE.write_text(replaced(PAGE.read_text(), figures))
    report.write(figures, FIGURES)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
