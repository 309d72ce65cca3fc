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
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.observability.metrics import DURATION, IN_PROGRESS, REQUESTS

logger = logging.getLogger("access")
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
    ) -> None:
        self._app = app
        self._headers = headers
        self._max_body_bytes = max_body_bytes
        self._serves_instead_of_postgresql = serves_instead_of_postgresql

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_headers = dict(scope["headers"])
        given_id = request_headers.get(b"x-request-id", b"")
        request_id = given_id.decode() if _USABLE_ID.fullmatch(given_id) else secrets.token_hex(8)
        # an HTTPException, because FastAPI turns any other error met in a body into a 400
        too_large = HTTPException(413, f"The body is larger than {self._max_body_bytes} bytes.")
        started = time.perf_counter()
        status = 0
        received = 0

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
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if scope["path"].startswith("/api/") and self._serves_instead_of_postgresql():
                    headers["X-Database"] = "fallback"
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
        IN_PROGRESS.inc()
        try:
            if _declared_length(request_headers) > self._max_body_bytes:
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
            self._record(scope, status, time.perf_counter() - started)
            IN_PROGRESS.dec()
            structlog.contextvars.unbind_contextvars("request_id")

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        REQUESTS.labels(method, route, status).inc()
        DURATION.labels(method, route).observe(seconds)
        logger.info(
            "request",
            extra={
                "method": method,
                "route": route,
                "status": status,
                "milliseconds": round(seconds * 1000, 1),
            },
        )


async def _drain(receive: Receive) -> None:
    """Read on for a moment: most clients look for an answer only after they have sent all."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await receive()).get("more_body"):
                pass


_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])


def _declared_length(headers: dict[bytes, bytes]) -> int:
    value = headers.get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
