"""One pure ASGI middleware for every request: limits, an ID, headers, access log and metrics.

One class instead of six, because each layer slows down every request: a single BaseHTTPMiddleware
costs a trivial route two thirds of its throughput.
"""

# Otherwise each request would evaluate the annotations of the function inside __call__.
from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from space_runtime.http.guard import WriteGuard, refusal_of_long, refuse_websocket
from space_runtime.observability.logging import AccessLog
from space_runtime.observability.logging import request_id as current_request_id
from space_runtime.observability.metrics import IN_PROGRESS, REQUESTS
from space_runtime.serving.limiter import ConcurrencyLimiter, NoPlace, arrived_at

logger = logging.getLogger(__name__)
_ADDRESS = re.compile(rb"[0-9A-Fa-f:.]{2,45}")
_USABLE_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
# Without a limit, hundreds of simultaneous requests would all be parsed, routed and validated
# before the event loop does anything else. A request holds its place only briefly, because its
# endpoint may wait for a slow model.
PLACES = 16
HOLD_SECONDS = 0.1
_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])


class RequestMiddleware:
    """Refuses bad requests; adds an ID, headers and X-Database; logs and counts every request.

    An answer gets `headers`, or `headers_of_data` if it is JSON, except those that it already has.
    `cors` wraps the application and also the middleware's own answers, because browsers need the
    CORS headers on those, too.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        headers: list[tuple[bytes, bytes]],
        headers_of_data: list[tuple[bytes, bytes]],
        max_body_bytes: int,
        behind_edge: bool,
        guard: WriteGuard,
        cors: Callable[[ASGIApp], ASGIApp],
        is_fallback: Callable[[], bool],
        log: AccessLog,
    ) -> None:
        self._app = cors(app)
        self._cors = cors
        self._headers = headers
        self._headers_of_data = headers_of_data
        self._names = frozenset(name for name, _ in headers + headers_of_data)
        self._behind_edge = behind_edge
        self._max_body_bytes = max_body_bytes
        self._guard = guard
        self._limiter = ConcurrencyLimiter(PLACES, hold_seconds=HOLD_SECONDS)
        self._is_fallback = is_fallback
        self._log = log
        self._id_prefix = secrets.token_hex(6).encode() + b"-"
        self._numbers = itertools.count(1)
        self._in_progress = 0
        IN_PROGRESS.set_function(lambda: self._in_progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await self._open_websocket(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            # After the lifespan ends, no request will trigger a flush.
            self._log.flush()
            return
        started = time.monotonic()
        method = scope["method"]
        if method == "HEAD":
            # Routes only know GET. The server looks at its own scope, so it still sends no body.
            scope = {**scope, "method": "GET"}
        received_headers = dict(scope["headers"])
        if self._behind_edge:
            _believe_the_edge(scope, received_headers)
        request_id = received_headers.get(b"x-request-id", b"")
        if not _USABLE_ID.fullmatch(request_id):
            request_id = self._id_prefix + b"%d" % next(self._numbers)
        length = received_headers.get(b"content-length", b"0")
        if length != b"0" or b"transfer-encoding" in received_headers:
            receive = self._limited(receive, length)
        status = 0

        # A plain function, because an `async def` would add a coroutine to every message.
        def send_with_headers(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id)]
                message["headers"] = headers
                present = dict(headers)
                is_data = present.get(b"content-type") == b"application/json"
                own = self._headers_of_data if is_data else self._headers
                if not self._names.isdisjoint(present):
                    own = [header for header in own if header[0] not in present]
                headers += own
                if _path(scope).startswith("/api/") and self._is_fallback():
                    headers.append((b"x-database", b"fallback"))
            return send(message)

        current_request_id.set(request_id.decode())
        arrived_at.set(started)
        self._in_progress += 1
        is_inside = False
        answer: ASGIApp = self._app
        try:
            refusal = self._guard.refusal(scope) or refusal_of_long(scope)
            if refusal is None:
                is_inside = self._limiter.try_to_enter()
                if not is_inside and _has_to_wait(scope):
                    try:
                        await self._limiter.enter()
                        is_inside = True
                    except NoPlace:
                        detail = "Too many requests are waiting; nothing was stored."
                        refusal = JSONResponse({"detail": detail}, 503, {"Retry-After": "2"})
            if refusal is not None:
                answer = self._cors(refusal)
            await answer(scope, receive, send_with_headers)
        except Exception:
            logger.exception("request failed")
            if status:
                raise
            detail = f"Internal error. The log tells more under the id {request_id.decode()}."
            answer = self._cors(JSONResponse({"detail": detail}, 500))
            await answer(scope, receive, send_with_headers)
        finally:
            self._in_progress -= 1
            if is_inside:
                self._limiter.leave()
            seconds = time.monotonic() - started
            method = method if method in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "none")
            REQUESTS.add(method, route, status, seconds)
            self._log.add(method, route, status, seconds, request_id)

    async def _open_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._behind_edge:
            _believe_the_edge(scope, dict(scope["headers"]))
        refusal = self._guard.refusal(scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await refuse_websocket(refusal, scope, receive, send)

    def _limited(self, receive: Receive, declared_length: bytes) -> Receive:
        """Return a `receive` that raises a 413 when the body is too large."""
        digits, limit = declared_length.lstrip(b"0"), b"%d" % self._max_body_bytes
        # Compared as text, because int() refuses thousands of digits.
        is_too_large = digits.isdigit() and (len(digits), digits) > (len(limit), limit)
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            if not is_too_large:
                message = await receive()
                received += len(message.get("body", b""))
                if received <= self._max_body_bytes:
                    return message
            # FastAPI turns any exception but HTTPException into a 400 while it reads the body.
            raise HTTPException(413, f"The body is larger than {self._max_body_bytes} bytes.")

        return limited_receive


def _has_to_wait(scope: Scope) -> bool:
    """Return False for health checks and the status page, and for preflight requests."""
    path = _path(scope)
    is_state = path in ("/", "/status") or path.startswith("/health")
    return not is_state and scope["method"] != "OPTIONS"


def _path(scope: Scope) -> str:
    """Return the path as routes know it, whether or not a proxy removes what it puts before it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _believe_the_edge(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Set scheme and client as the Hub's proxy saw them.

    The proxy accepts only https, and appends the real client to any X-Forwarded-For it receives.
    """
    scope["scheme"] = "wss" if scope["type"] == "websocket" else "https"
    address = headers.get(b"x-forwarded-for", b"").rpartition(b",")[2].strip()
    if _ADDRESS.fullmatch(address):
        scope["client"] = (address.decode(), 0)
