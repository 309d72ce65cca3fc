"""One pure ASGI middleware for every request: limits, an ID, headers, access log and metrics.

One class instead of six, because each layer slows down every request: a single BaseHTTPMiddleware
costs a trivial route two thirds of its throughput.
"""

# Otherwise each request would evaluate the annotations of the function inside __call__.
from __future__ import annotations

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from space_runtime.http.errors import answer_of_own_handler
from space_runtime.http.guard import WriteGuard, refusal_of_long, refuse_websocket
from space_runtime.http.request_body import RequestBody
from space_runtime.http.route_names import name_of_route, path_of
from space_runtime.http.server import attended
from space_runtime.observability.logging import AccessLog
from space_runtime.observability.logging import request_id as current_request_id
from space_runtime.observability.metrics import IN_PROGRESS, REQUESTS
from space_runtime.serving.limiter import ConcurrencyLimiter, NoPlace, arrived_at

logger = logging.getLogger(__name__)
_ADDRESS = re.compile(rb"[0-9A-Fa-f:.]{2,45}")
_USABLE_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
# Without a limit, hundreds of simultaneous requests would all be parsed, routed and validated
# before the event loop does anything else. A request holds its place only briefly, because its
# endpoint may wait for a slow model, its body for a slow client, and a stream for its end.
PLACES = 16
HOLD_SECONDS = 0.1
# The server closes WebSockets when it stops; this is for what does not notice.
SOCKET_SECONDS = 2.0
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
        self._limiter = ConcurrencyLimiter(PLACES)
        self._is_fallback = is_fallback
        self._log = log
        self._id_prefix = secrets.token_hex(6).encode() + b"-"
        self._numbers = itertools.count(1)
        self._in_progress = 0
        self._event_streams: set[asyncio.Task[Any]] = set()
        self._sockets: set[asyncio.Task[Any]] = set()
        self._is_stopping = False
        IN_PROGRESS.set_function(lambda: self._in_progress)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            async with attended(self._stop):
                await self._app(scope, receive, send)
            # After the lifespan ends, no request will trigger a flush.
            self._log.flush()
            return
        task = _current_task()
        if scope["type"] == "websocket":
            await self._open_websocket(scope, receive, send, task)
            return
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        # A mounted application puts itself in its place.
        app = scope["app"]
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
        body = None
        if (
            received_headers.get(b"content-length", b"0") != b"0"
            or b"transfer-encoding" in received_headers
        ):
            body = RequestBody(scope, receive, received_headers, self._max_body_bytes)
            receive = body.receive
        status, is_answered = 0, False
        is_event_stream = False
        hold: asyncio.TimerHandle | None = None

        def leave() -> None:
            nonlocal hold
            if hold is not None:
                hold.cancel()
                hold = None
                self._limiter.leave()

        # A plain function, because an `async def` would add a coroutine to every message.
        def send_with_headers(message: Message) -> Awaitable[None]:
            nonlocal status, is_answered, is_event_stream
            if body is not None:
                message = body.explained(message)
            if message["type"] == "http.response.start":
                leave()
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id)]
                message["headers"] = headers
                present = dict(headers)
                is_data = present.get(b"content-type") == b"application/json"
                own = self._headers_of_data if is_data else self._headers
                if not self._names.isdisjoint(present):
                    own = [header for header in own if header[0] not in present]
                headers += own
                if path_of(scope).startswith("/api/") and self._is_fallback():
                    headers.append((b"x-database", b"fallback"))
                if present.get(b"content-type", b"").startswith(b"text/event-stream"):
                    is_event_stream = True
                    self._event_streams.add(task)
                    if self._is_stopping:
                        task.cancel()
                if body is not None and not body.is_complete:
                    headers.append((b"connection", b"close"))
            elif message["type"] == "http.response.body":
                is_answered = not message.get("more_body", False)
                if is_answered and body is not None and not body.is_complete:
                    return body.end_answer(send, message)
            return send(message)

        current_request_id.set(request_id.decode())
        arrived_at.set(started)
        self._in_progress += 1
        answer: ASGIApp = self._app
        try:
            refusal = self._guard.refusal(scope) or refusal_of_long(scope)
            if refusal is None:
                try:
                    if self._limiter.try_to_enter():
                        hold = loop.call_later(HOLD_SECONDS, leave)
                    elif _has_to_wait(scope):
                        await self._limiter.enter()
                        hold = loop.call_later(HOLD_SECONDS, leave)
                except NoPlace:
                    detail = "Too many requests are waiting; nothing was stored."
                    refusal = JSONResponse({"detail": detail}, 503, {"Retry-After": "2"})
            if refusal is not None:
                answer = self._cors(refusal)
            await answer(scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise
            task.uncancel()
            if is_event_stream:
                await send({"type": "http.response.body"})
            elif not status:
                detail = "The server stops. Look whether this was done before you send it again."
                answer = self._cors(JSONResponse({"detail": detail}, 503, {"Retry-After": "2"}))
                await answer(scope, receive, send_with_headers)
        except Exception as error:
            logger.exception("request failed")
            # A mounted application answers by itself, and raises afterwards.
            if is_answered:
                return
            if status:
                raise
            failed = await answer_of_own_handler(app, Request(scope, receive), error)
            if failed is None:
                detail = f"Internal error. The log tells more under the id {request_id.decode()}."
                failed = JSONResponse({"detail": detail}, 500)
            await self._cors(failed)(scope, receive, send_with_headers)
        finally:
            self._in_progress -= 1
            self._event_streams.discard(task)
            leave()
            seconds = time.monotonic() - started
            method = method if method in _METHODS else "other"
            route = name_of_route(scope)
            REQUESTS.add(method, route, status, seconds)
            self._log.add(method, route, status, seconds, request_id)

    async def _open_websocket(
        self, scope: Scope, receive: Receive, send: Send, task: asyncio.Task[Any]
    ) -> None:
        if self._behind_edge:
            _believe_the_edge(scope, dict(scope["headers"]))
        if refusal := self._guard.refusal(scope):
            await refuse_websocket(refusal, scope, receive, send)
            return
        self._sockets.add(task)
        try:
            await self._app(scope, receive, send)
        except WebSocketDisconnect:
            # The usual end of a loop that receives or sends.
            return
        except asyncio.CancelledError:
            if not self._is_stopping:
                raise
        finally:
            self._sockets.discard(task)

    def _stop(self) -> None:
        """End what would never end by itself; the server waits for everything else."""
        self._is_stopping = True
        for task in self._event_streams:
            task.cancel()
        asyncio.get_running_loop().call_later(SOCKET_SECONDS, self._end_sockets)

    def _end_sockets(self) -> None:
        for task in self._sockets:
            task.cancel()


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101
    return task


def _has_to_wait(scope: Scope) -> bool:
    """Return False for health checks and the status page, and for preflight requests."""
    path = path_of(scope)
    is_state = path in ("/", "/status") or path.startswith("/health")
    return not is_state and scope["method"] != "OPTIONS"


def _believe_the_edge(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Set scheme and client as the Hub's proxy saw them.

    The proxy accepts only https, and appends the real client to any X-Forwarded-For it receives.
    """
    scope["scheme"] = "wss" if scope["type"] == "websocket" else "https"
    address = headers.get(b"x-forwarded-for", b"").rpartition(b",")[2].strip()
    if _ADDRESS.fullmatch(address):
        scope["client"] = (address.decode(), 0)
