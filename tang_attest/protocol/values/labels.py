"""Labels of devices: words by which rollouts and listings choose."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from tang_attest.errors import Malformed

MAX_LABELS: Final = 32

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/=@-]{0,62}")


def check_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """*labels*, sorted, each once: words such as ``canary`` or ``site=berlin``.

    Raises :class:`Malformed` ``request-malformed`` for a word that is none, and for more than 32.
    """
    distinct = tuple(sorted(set(labels)))
    for label in distinct:
        if not _LABEL.fullmatch(label):
            raise Malformed(
                "request-malformed",
                f"'{label}' is no label: 1 to 63 letters, digits and . _ : / = @ -, a letter or digit first.",
            )
    if len(distinct) > MAX_LABELS:
        raise Malformed("request-malformed", f"A device has at most {MAX_LABELS} labels.")
    return distinct
