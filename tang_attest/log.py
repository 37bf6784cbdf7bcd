"""Log lines: structured, one for each request and each event for an operator.

Secrets never get here: what is logged is chosen member by member, and no request or response body is.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import structlog

#: Name of the one handler of ours on the root logger.
HANDLER: Final = "tang-attest"


def configure(log_format: str, level: str) -> None:
    """Send log lines to stderr, for eyes (``console``) or programs (``json``)."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        # Not the pretty traceback: it shows local variables, and those may be secrets.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    traceback: list[structlog.typing.Processor] = (
        [structlog.processors.format_exc_info] if log_format == "json" else []
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *traceback,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        # One write for a line and its end: another thread's line, or one of `logging`, does not come between.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _adopt_standard_library(renderer, traceback)
    # aiohttp writes a traceback for each request line it cannot read: a client could fill the disk with them.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


def _adopt_standard_library(
    renderer: structlog.typing.Processor, traceback: list[structlog.typing.Processor]
) -> None:
    """Send records of :mod:`logging` (the store, libraries) to the same output, in the same format."""
    handler = logging.StreamHandler(sys.stderr)
    handler.name = HANDLER
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *traceback, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [kept for kept in root.handlers if kept.name != HANDLER]
    root.addHandler(handler)
