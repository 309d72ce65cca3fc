"""One line per event: JSON on a Space, readable text on a terminal."""

import asyncio
import atexit
import functools
import logging
import os
import re
import select
import sys
import threading
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import structlog
from pydantic_core import to_json
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.stdlib import ProcessorFormatter
from structlog.typing import EventDict

from space_runtime.observability.metrics import LOST_LINES
from space_runtime.settings import RuntimeSettings

MOST_UNREAD_BYTES = 512 * 1024
SECONDS_FOR_LAST_LINES = 1.0
LOG_SECONDS = 0.02
_STANDARD_LIBRARY = re.escape(os.path.dirname(os.__file__))
_LIBRARY = re.compile(rf"{_STANDARD_LIBRARY}/|.*/(?:site|dist)-packages/")
request_id: ContextVar[str] = ContextVar("request_id")
"""The ID of the current request, which is added to every line that is logged during it."""


class Stderr:
    """Writes lines to stderr without waiting for a reader that is slow or gone.

    Lines that the pipe cannot take are kept, up to MOST_UNREAD_BYTES. Further lines are lost.
    """

    def __init__(self) -> None:
        try:
            self._descriptor = sys.stderr.fileno()
        except (AttributeError, OSError, ValueError):  # It is closed, or not a real file.
            self._descriptor = -1
        self._unread = bytearray()
        self._lock = threading.Lock()
        self._helper: threading.Thread | None = None
        """Writes what is unread, while there is some."""
        atexit.register(self._end)

    def write(self, text: str) -> None:
        """Write whole lines."""
        if self._descriptor < 0:
            return
        data = text.encode(errors="backslashreplace")
        with self._lock:
            if len(self._unread) + len(data) > MOST_UNREAD_BYTES:
                LOST_LINES.inc(data.count(b"\n"))
                return
            self._unread += data
            if self._helper is None and not self._write_what_fits():
                self._helper = threading.Thread(target=self._help, name="log", daemon=True)
                self._helper.start()

    def _write_what_fits(self) -> bool:
        """Return whether all was written. A writable pipe takes PIPE_BUF bytes without blocking."""
        while self._unread:
            if not self._has_room(within=0):
                return False
            end = self._unread.rfind(b"\n", 0, select.PIPE_BUF) + 1 or select.PIPE_BUF
            try:
                written = os.write(self._descriptor, self._unread[:end])
            except OSError:  # The reader has gone.
                LOST_LINES.inc(self._unread.count(b"\n"))
                written = len(self._unread)
            del self._unread[:written]
        return True

    def _has_room(self, within: float | None) -> bool:
        """Wait so many milliseconds, or without end, until the reader takes more."""
        # A new object each time, because two threads cannot wait on the same one.
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(within))

    def _help(self) -> None:
        while self._has_room(within=None):
            with self._lock:
                if self._write_what_fits():
                    self._helper = None
                    return

    def _end(self) -> None:
        """Give a slow reader a moment for the last lines, which tell why the process ended."""
        if helper := self._helper:
            helper.join(SECONDS_FOR_LAST_LINES)


class AccessLog:
    """Writes a line for each request, in the same format as other lines but in less time.

    Requests that end within LOG_SECONDS of each other are written together. One at a time would
    take twice as long; the logging module, ten times. Client addresses are left out: they are
    personal data, and a request's ID is enough to find its lines.
    """

    def __init__(self, settings: RuntimeSettings, stderr: Stderr, *, use_json: bool) -> None:
        self._is_off = settings.log_level in ("warning", "error", "critical")
        self._stderr = stderr
        self._use_json = use_json
        self._requests: list[tuple[str, float, str]] = []
        self._written_at = 0.0

    def add(self, method: str, route: str, status: int, seconds: float, request_id: str) -> None:
        """Write a line now, or with others at most LOG_SECONDS later."""
        if self._is_off:
            return
        if not self._requests:
            loop = asyncio.get_running_loop()
            loop.call_at(self._written_at + LOG_SECONDS, self.flush)
        line = _access_line(method, route, status, self._use_json)
        self._requests.append((line, seconds * 1000, request_id))

    def flush(self) -> None:
        """Write the pending lines."""
        self._written_at = asyncio.get_running_loop().time()
        requests, self._requests = self._requests, []
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        lines = [line % (now, milliseconds, who) for line, milliseconds, who in requests]
        self._stderr.write("".join(lines))


@functools.cache
def _access_line(method: str, route: str, status: int, use_json: bool) -> str:
    """Return a line that lacks its timestamp, the milliseconds, and the request's ID."""
    if use_json:
        known = {"level": "info", "logger": "access", "event": "request", "method": method}
        start, end = '{"timestamp":"%s",', ',"milliseconds":%.1f,"request_id":"%s"}\n'
        text = to_json({**known, "route": route, "status": status})[1:-1].decode()
    else:
        start, end = "%s [info     ] ", " milliseconds=%.1f request_id=%s\n"
        text = f"{'request':<30} [access] method={method} route={route} status={status}"
    return start + text.replace("%", "%%") + end


def configure_logging(settings: RuntimeSettings, *, on_space: bool) -> AccessLog:
    """Send every log line of this process, uvicorn's too, through one handler to stderr.

    Return the access log. uvicorn's own is turned off, because it prints query strings, which may
    contain secrets.
    """
    use_json = settings.log_format == "json" or (settings.log_format is None and on_space)
    stderr = Stderr()
    colors = sys.stderr is not None and sys.stderr.isatty()
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        _complete_event,
    ]
    render: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if use_json
        else [ConsoleRenderer(colors=colors, exception_formatter=plain_traceback)]
    )
    handler = logging.StreamHandler(stderr)
    handler.addFilter(_is_to_be_told)
    without_meta = ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        ProcessorFormatter(foreign_pre_chain=shared, processors=[without_meta, *render])
    )
    logging.root.handlers = [handler]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    logging.root.setLevel(level)
    # Where they are installed as packages, their lines are told, too.
    for name in ("src", "space_runtime"):
        logging.getLogger(name).setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = name != "uvicorn.access"
        logger.setLevel(max(level, logging.INFO))
    # uvicorn's lines about WebSockets show query strings, too.
    logging.getLogger("uvicorn.error").addFilter(lambda record: "WebSocket" not in str(record.msg))
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                *shared,
                ProcessorFormatter.wrap_for_formatter,
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
            cache_logger_on_first_use=True,
        )
    return AccessLog(settings, stderr, use_json=use_json)


def _is_to_be_told(record: logging.LogRecord) -> bool:
    """Return whether a line is a warning, or from code that is not an installed package.

    Below WARNING, libraries log URLs and headers of requests, including secrets. To read them, set
    the level of the library's logger.
    """
    return (
        record.levelno >= logging.WARNING
        or not _LIBRARY.match(record.pathname)
        # With structlog, the caller's file is not always known.
        or hasattr(record, "_logger")
        or _has_own_level(logging.getLogger(record.name))
    )


def _has_own_level(logger: logging.Logger | None) -> bool:
    while logger is not None and logger.level == logging.NOTSET:
        logger = logger.parent
    return logger is not logging.root


def _complete_event(logger: Any, method: str, event: EventDict) -> EventDict:
    # uvicorn adds its message a second time, with colors.
    event.pop("color_message", None)
    if (current := request_id.get(None)) is not None:
        event["request_id"] = current
    return event
