"""Log lines: structured, one for each request and each thing an operator should know.

Secrets never get here: what is logged is chosen member by member, and no request or response body is.
"""

from __future__ import annotations

import logging
import sys

import structlog


def configure(log_format: str, level: str) -> None:
    """Send log lines to stderr, for eyes (``console``) or programs (``json``)."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        # Not the pretty traceback: it shows local variables, and those may be secrets.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if log_format == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # aiohttp writes a traceback for each request line it cannot read: a stranger could fill the disk with them.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
