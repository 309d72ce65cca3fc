"""What every request meets, in one pure ASGI middleware: limits, an id, headers, log and metrics.

One class instead of six, since each layer around the application costs every request:
BaseHTTPMiddleware alone takes two thirds of the throughput of a trivial route.
"""

# else each request would evaluate the annotations of the function inside __call__
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

from space_runtime.http.access import WriteGuard, refusal_of_long
from space_runtime.observability.logging import AccessLog
from space_runtime.observability.logging import request_id as current_request_id
from space_runtime.observability.metrics import IN_PROGRESS, REQUESTS
from space_runtime.serving.limiter import ConcurrencyLimiter, NoPlace, arrived_at

logger = logging.getLogger(__name__)
_ADDRESS = re.compile(rb"[0-9A-Fa-f:.]{2,45}")
_USABLE_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
# int() refuses thousands of them
_MOST_DIGITS = 18
# Hundreds at once would each be parsed, routed and validated before the event loop came round to
# anything else. Endpoints may wait for a slow model, so a place is held for a moment only.
PLACES = 16
HOLD_SECONDS = 0.1
_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])


class RequestMiddleware:
    """Refuses what may not come in; adds ids, headers and X-Database; logs and counts all.

    `headers`, or for JSON `headers_of_data`, are those that an answer gets unless it has its own.
    Who may write is decided before path and body are looked at. `cors` is put around the
    application, and around the answers that are given in its place: a browser needs its headers on
    those, too.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        headers: dict[str, str],
        headers_of_data: dict[str, str],
        max_body_bytes: int,
        behind_edge: bool,
        guard: WriteGuard,
        cors: Callable[[ASGIApp], ASGIApp],
        is_fallback: Callable[[], bool],
        log: AccessLog,
    ) -> None:
        self._app = cors(app)
        self._cors = cors
        self._headers = _encoded(headers)
        self._headers_of_data = _encoded(headers_of_data)
        self._names = frozenset(name for name, _ in self._headers + self._headers_of_data)
        self._behind_edge = behind_edge
        self._max_body_bytes = max_body_bytes
        self._guard = guard
        self._limiter = ConcurrencyLimiter(PLACES, hold_seconds=HOLD_SECONDS)
        self._is_fallback = is_fallback
        self._log = log
        self._id_prefix = secrets.token_hex(6) + "-"
        self._numbers = itertools.count(1)
        self._in_progress = 0
        IN_PROGRESS.set_function(lambda: self._in_progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            # the end of the lifespan: nothing may wait any longer
            self._log.flush()
            return
        started = time.monotonic()
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
            else self._id_prefix + str(next(self._numbers))
        )
        encoded_id = request_id.encode()
        length = received_headers.get(b"content-length", b"0")
        if length != b"0" or b"transfer-encoding" in received_headers:
            receive = self._limited(receive, length)
        status = 0

        # no coroutine of its own, which would cost each message another turn
        def send_with_headers(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", encoded_id)]
                message["headers"] = headers
                present = dict(headers)
                is_data = present.get(b"content-type") == b"application/json"
                own = self._headers_of_data if is_data else self._headers
                if self._names.isdisjoint(present):
                    headers += own
                else:
                    headers += [header for header in own if header[0] not in present]
                if scope["path"].startswith("/api/") and self._is_fallback():
                    headers.append((b"x-database", b"fallback"))
            return send(message)

        current_request_id.set(request_id)
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
                        refusal = _crowded()
            if refusal is not None:
                answer = self._cors(refusal)
            await answer(scope, receive, send_with_headers)
        except Exception:  # the last line of defence: told to the client, and in full to the log
            logger.exception("request failed")
            if status:
                raise
            detail = f"Internal error. The log tells more under the id {request_id}."
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
            self._log.add(method, route, status, seconds, encoded_id)

    def _limited(self, receive: Receive, declared_length: bytes) -> Receive:
        """Return what receives a body that is not too large; the rest becomes a 413."""
        digits = declared_length.lstrip(b"0")
        is_too_large = digits.isdigit() and (
            len(digits) > _MOST_DIGITS or int(digits) > self._max_body_bytes
        )
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


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def _has_to_wait(scope: Scope) -> bool:
    """Return False for who asks how the server is, and for browsers that ask what they may."""
    path = scope["path"]
    return path != "/" and not path.startswith("/health") and scope["method"] != "OPTIONS"


def _crowded() -> JSONResponse:
    detail = "Too many requests are waiting; nothing was stored."
    return JSONResponse({"detail": detail}, 503, headers={"Retry-After": "2"})


def _believe_the_edge(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Set scheme and client as the edge of the Hub saw them.

    It speaks https only, and appends the real client to whatever X-Forwarded-For it was sent.
    """
    scope["scheme"] = "https"
    address = headers.get(b"x-forwarded-for", b"").rpartition(b",")[2].strip()
    if _ADDRESS.fullmatch(address):
        scope["client"] = (address.decode(), 0)
