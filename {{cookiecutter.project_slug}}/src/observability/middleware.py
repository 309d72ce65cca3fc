"""What every request gets, in one pure ASGI middleware: an id, headers, a log line, metrics.

One class instead of five, since each layer around the application costs every request:
BaseHTTPMiddleware alone takes two thirds of the throughput of a trivial route.
"""

import asyncio
import contextlib
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from src.observability.logging import request_id as current_request_id
from src.observability.metrics import IN_PROGRESS, REQUESTS

logger = logging.getLogger(__name__)
DRAIN_SECONDS = 2.0
LOG_SECONDS = 0.02
_ADDRESS = re.compile(rb"[0-9A-Fa-f:.]{2,45}")
_USABLE_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")


class RequestMiddleware:
    """Adds request ids, `headers` and X-Database; limits bodies; logs and counts each request."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        headers: dict[str, str],
        max_body_bytes: int,
        behind_edge: bool,
        serves_instead_of_postgresql: Callable[[], bool],
        log: Callable[[Sequence[dict[str, Any]]], None],
    ) -> None:
        self._app = app
        self._headers = [(k.lower().encode(), v.encode("latin-1")) for k, v in headers.items()]
        self._behind_edge = behind_edge
        self._max_body_bytes = max_body_bytes
        self._serves_instead_of_postgresql = serves_instead_of_postgresql
        self._log = log
        self._events: list[dict[str, Any]] = []
        self._logged_at = 0.0
        self._process_id = secrets.token_hex(6)
        self._numbers = itertools.count(1)
        self._in_progress = 0
        IN_PROGRESS.set_function(lambda: self._in_progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            # the end of the lifespan: nothing may wait any longer
            self._log_events(asyncio.get_running_loop())
            return
        method = scope["method"]
        if method == "HEAD":
            # routes know GET; the server looks at its own scope, and sends no body
            scope = {**scope, "method": "GET"}
        received_headers = dict(scope["headers"])
        if self._behind_edge:
            _believe_the_edge(scope, received_headers)
        given_id = received_headers.get(b"x-request-id")
        request_id = (
            given_id.decode()
            if given_id is not None and _USABLE_ID.fullmatch(given_id)
            else f"{self._process_id}-{next(self._numbers)}"
        )
        length = received_headers.get(b"content-length", b"0")
        if length != b"0" or b"transfer-encoding" in received_headers:
            receive = self._limited(receive, length)
        started = time.perf_counter()
        status = 0

        # no coroutine of its own, which would cost each message another turn
        def send_with_headers(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"] = [*message["headers"]]
                present = dict(headers)
                headers += [header for header in self._headers if header[0] not in present]
                headers.append((b"x-request-id", request_id.encode()))
                if scope["path"].startswith("/api/") and self._serves_instead_of_postgresql():
                    headers.append((b"x-database", b"fallback"))
            return send(message)

        current_request_id.set(request_id)
        self._in_progress += 1
        try:
            await self._app(scope, receive, send_with_headers)
        except HTTPException as error:
            # receiving would ask a client that waits for "100 Continue" for its body
            if b"expect" not in received_headers:
                await _drain(receive)
            # what follows on this connection may be the rest of the body
            close = {"Connection": "close"}
            answer = JSONResponse({"detail": error.detail}, error.status_code, headers=close)
            await answer(scope, receive, send_with_headers)
        except Exception:  # the last line of defence: told to the client, and in full to the log
            logger.exception("request failed")
            if status:
                raise
            detail = f"Internal error. The log tells more under the id {request_id}."
            answer = JSONResponse({"detail": detail}, 500)
            await answer(scope, receive, send_with_headers)
        finally:
            self._in_progress -= 1
            seconds = time.perf_counter() - started
            method = method if method in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "none")
            REQUESTS.add(method, route, status, seconds)
            self._log_soon(
                {
                    "event": "request",
                    "method": method,
                    "route": route,
                    "status": status,
                    "milliseconds": round(seconds * 1000, 1),
                    "request_id": request_id,
                }
            )

    def _limited(self, receive: Receive, declared_length: bytes) -> Receive:
        """Return what receives a body that is not too large; the rest becomes a 413."""
        is_too_large = declared_length.isdigit() and int(declared_length) > self._max_body_bytes
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            if not is_too_large:
                message = await receive()
                received += len(message.get("body", b""))
                if received <= self._max_body_bytes:
                    return message
            # an HTTPException, because FastAPI turns any other error met in a body into a 400
            raise HTTPException(413, f"The body is larger than {self._max_body_bytes} bytes.")

        return limited_receive

    def _log_soon(self, event: dict[str, Any]) -> None:
        """Log at once, or in a crowd together with others: one at a time takes twice as long."""
        if not self._events:
            loop = asyncio.get_running_loop()
            due = self._logged_at + LOG_SECONDS
            if loop.time() >= due:
                loop.call_soon(self._log_events, loop)
            else:
                loop.call_at(due, self._log_events, loop)
        self._events.append(event)

    def _log_events(self, loop: asyncio.AbstractEventLoop) -> None:
        self._logged_at = loop.time()
        events, self._events = self._events, []
        self._log(events)


def _believe_the_edge(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Set scheme and client as the edge of the Hub saw them.

    It speaks https only, and appends the real client to whatever X-Forwarded-For it was sent.
    """
    scope["scheme"] = "https"
    address = headers.get(b"x-forwarded-for", b"").rpartition(b",")[2].strip()
    if _ADDRESS.fullmatch(address):
        scope["client"] = (address.decode(), 0)


async def _drain(receive: Receive) -> None:
    """Read on for a moment: most clients look for an answer only after they have sent all."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await receive()).get("more_body"):
                pass


_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
