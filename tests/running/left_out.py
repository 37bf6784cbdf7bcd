"""Files of tests that a run leaves out as a whole: a fifth of the time of a collection, in each process of the run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

#: ``not boot and not slow``; any other expression may take a test of any file.
_EXPRESSION: Final = re.compile(r"not \w+( and not \w+)*")
#: The marks of all tests of a file.
_MARKS: Final = re.compile(r"^pytestmark = (\[[^\]]*\]|.*)$", re.MULTILINE)


def is_left_out(file: Path, expression: str) -> bool:
    """Tell whether *expression*, that of pytest's ``-m``, leaves out each test of *file* by the file's own marks."""
    if not _EXPRESSION.fullmatch(expression):
        return False
    marks = _MARKS.search(file.read_text())
    names = set(re.findall(r"pytest\.mark\.(\w+)", marks[1])) if marks else set()
    return not names.isdisjoint(re.findall(r"not (\w+)", expression))
