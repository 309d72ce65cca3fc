"""One line per event: JSON on a Space, readable text on a terminal."""

import logging
import sys
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic_core import to_json
from structlog.typing import EventDict

from src.config.settings import Settings

request_id: ContextVar[str] = ContextVar("request_id")
"""The id of the request that is being answered; each line that is logged meanwhile carries it."""


def uses_json(settings: Settings, *, on_space: bool) -> bool:
    """Return whether log lines are JSON."""
    return settings.log_format == "json" or (settings.log_format is None and on_space)


def configure_logging(settings: Settings, *, use_json: bool) -> None:
    """Send every log line of this process, uvicorn's too, through one handler to stderr.

    uvicorn's own access log is silenced: it prints query strings, which may hold secrets.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _without_color_message,
    ]
    render: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if use_json
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(settings.log_level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    # uvicorn's lines about WebSockets show query strings, too
    logging.getLogger("uvicorn.error").addFilter(lambda record: "WebSocket" not in str(record.msg))
    access = logging.getLogger("uvicorn.access")
    access.handlers = []
    access.propagate = False
    # Alembic tells of every step at INFO; only what it warns of matters at start
    logging.getLogger("alembic").setLevel("WARNING")


def _add_request_id(logger: Any, method: str, event: EventDict) -> EventDict:
    if (current := request_id.get(None)) is not None:
        event["request_id"] = current
    return event


def _without_color_message(logger: Any, method: str, event: EventDict) -> EventDict:
    """uvicorn logs the same text a second time, with colours."""
    event.pop("color_message", None)
    return event


def access_log(settings: Settings, *, use_json: bool) -> Callable[[Sequence[dict[str, Any]]], None]:
    """Return what writes one line for each request, as the other lines look but in less time.

    The way through the logging module costs as much as all else that a trivial request needs.
    """
    if settings.log_level in ("warning", "error"):
        return lambda events: None

    def as_json(event: dict[str, Any], now: datetime) -> str:
        event |= {"level": "info", "logger": "access", "timestamp": now}
        return to_json(event).decode() + "\n"

    def as_text(event: dict[str, Any], now: datetime) -> str:
        timestamp = now.isoformat().replace("+00:00", "Z")
        fields = " ".join(f"{name}={value}" for name, value in event.items() if name != "event")
        return f"{timestamp} [info     ] {event['event']:<30} [access] {fields}\n"

    def write(events: Sequence[dict[str, Any]]) -> None:
        now = datetime.now(UTC)
        as_line = as_json if use_json else as_text
        sys.stderr.write("".join([as_line(event, now) for event in events]))

    return write
