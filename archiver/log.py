"""What the archiver says of itself: structlog, for people on a console or as JSON lines."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import orjson
import structlog


def set_up_logging(format: Literal["console", "json"], level: str) -> None:
    """Everything at or above `level` goes to standard error; libraries only from warning on."""
    numeric = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[structlog.typing.Processor]
    if format == "json":
        render = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_dumps)]
    else:
        # Plain, because rich ones show local variables, and passwords are among those.
        plain = structlog.dev.plain_traceback
        render = [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)
        ]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    without_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[without_meta, *render]
        )
    )
    logging.basicConfig(handlers=[handler], level=max(numeric, logging.WARNING), force=True)
    # Its pool warns with a traceback when the database is away, which we say in a sentence.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)


def _dumps(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str).decode()
