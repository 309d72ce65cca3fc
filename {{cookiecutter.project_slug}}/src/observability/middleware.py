"""What every request gets, in one pure ASGI middleware: an id, headers, a log line, metrics.

One class instead of five, since each layer around the application costs every request:
BaseHTTPMiddleware alone takes two thirds of the throughput of a trivial route.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable

import structlog
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.observability.metrics import DURATION, IN_PROGRESS, REQUESTS

logger = logging.getLogger(__name__)
DRAIN_SECONDS = 2.0
_USABLE_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")


class RequestMiddleware:
    """Adds request ids, `headers` and X-Database; limits bodies; logs and counts each request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        headers: dict[str, str],
        max_body_bytes: int,
        serves_instead_of_postgresql: Callable[[], bool],
        log: Callable[[dict[str, object]], None],
    ) -> None:
        self._app = app
        self._headers = [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()]
        self._max_body_bytes = max_body_bytes
        self._serves_instead_of_postgresql = serves_instead_of_postgresql
        self._log = log
        # looking a metric's labels up costs more than everything else here
        self._metrics: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given_id, declared_length = b"", 0
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given_id = value
            elif name == b"content-length" and value.isdigit():
                declared_length = int(value)
        request_id = given_id.decode() if _USABLE_ID.fullmatch(given_id) else secrets.token_hex(8)
        # an HTTPException, because FastAPI turns any other error met in a body into a 400
        too_large = HTTPException(413, f"The body is larger than {self._max_body_bytes} bytes.")
        started = time.perf_counter()
        status = received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise too_large
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = list(message["headers"])
                present = {name for name, _ in headers}
                headers += [header for header in self._headers if header[0] not in present]
                headers.append((b"x-request-id", request_id.encode()))
                if self._serves_instead_of_postgresql() and scope["path"].startswith("/api/"):
                    headers.append((b"x-database", b"fallback"))
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
        IN_PROGRESS.inc()
        try:
            if declared_length > self._max_body_bytes:
                raise too_large
            await self._app(scope, limited_receive, send_with_headers)
        except HTTPException as error:
            await _drain(receive)
            answer = JSONResponse({"detail": error.detail}, error.status_code)
            await answer(scope, receive, send_with_headers)
        except Exception:  # the last line of defence: told to the client, and in full to the log
            logger.exception("request failed")
            if status:
                raise
            detail = f"Internal error. The log tells more under the id {request_id}."
            answer = JSONResponse({"detail": detail}, 500)
            await answer(scope, receive, send_with_headers)
        finally:
            self._record(scope, status, time.perf_counter() - started, request_id)
            IN_PROGRESS.dec()
            structlog.contextvars.unbind_contextvars("request_id")

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        key = (method, route, status)
        if key not in self._metrics:
            self._metrics[key] = REQUESTS.labels(*key), DURATION.labels(method, route)
        requests, duration = self._metrics[key]
        requests.inc()
        duration.observe(seconds)
        self._log(
            {
                "event": "request",
                "method": method,
                "route": route,
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
                "request_id": request_id,
            }
        )


async def _drain(receive: Receive) -> None:
    """Read on for a moment: most clients look for an answer only after they have sent all."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await receive()).get("more_body"):
                pass


_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
