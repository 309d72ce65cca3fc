"""One pure ASGI middleware for every request: limits, an ID, headers, access log and metrics.

One class instead of six, because each layer slows down every request: a single BaseHTTPMiddleware
costs a trivial route two thirds of its throughput.
"""

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from space_runtime.http.errors import answer_of_own_handler
from space_runtime.http.guard import WriteGuard, refusal_of_long, refuse_websocket
from space_runtime.http.policy import SecurityHeaders
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
# When the server stops, it closes WebSockets. Endpoints that do not notice are cancelled later.
SOCKET_SECONDS = 2.0
# Endless by definition: events, and the pictures of a camera. Anything else may be a download, and
# must not look complete when it is not: it has until the server's own limit, then it is cut off.
_ENDLESS = (b"text/event-stream", b"multipart/x-mixed-replace")
_METHODS = frozenset(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])


@dataclass(eq=False, repr=False)
class RequestMiddleware:
    """Refuses bad requests; adds an ID, headers and X-Database; logs and counts every request.

    `cors` wraps the application and also the middleware's own answers, because browsers need the
    CORS headers on those, too.
    """

    app: ASGIApp
    headers: SecurityHeaders
    max_body_bytes: int
    behind_edge: bool
    guard: WriteGuard
    cors: Callable[[ASGIApp], ASGIApp]
    is_fallback: Callable[[], bool]
    log: AccessLog

    def __post_init__(self) -> None:
        self.app = self.cors(self.app)
        self.limiter = ConcurrencyLimiter(PLACES)
        self.event_streams: set[Any] = set()
        self.sockets: set[Any] = set()
        self.is_stopping: Callable[[], bool] = lambda: False
        self.in_progress = 0
        self.id_prefix = secrets.token_hex(6)
        self.numbers = itertools.count(1)
        IN_PROGRESS.set_function(lambda: self.in_progress)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle a request, a WebSocket, or the lifespan."""
        if scope["type"] == "http":
            return self._answer(scope, receive, send)
        if scope["type"] == "websocket":
            return self._serve_websocket(scope, receive, send)
        return self._run_lifespan(scope, receive, send)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with attended(self._stop) as self.is_stopping:
            await self.app(scope, receive, send)
        # After the lifespan ends, no request will trigger a flush.
        self.log.flush()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, method = time.monotonic(), scope["method"]
        exchange = self._begin(scope, receive, send)
        arrived_at.set(started)
        self.in_progress += 1
        try:
            refusal = self.guard.refusal(exchange.scope) or refusal_of_long(exchange.scope)
            if not (refusal or exchange.takes_place()):
                refusal = await exchange.wait_for_place()
            await exchange.let_answer(self.cors(refusal) if refusal else self.app)
        except asyncio.CancelledError:
            if not self.is_stopping():
                raise
            await exchange.end_because_of_stop()
        except Exception as error:
            logger.exception("request failed")
            await exchange.end_because_of(error)
        finally:
            self.in_progress -= 1
            self.event_streams.discard(exchange.task)
            exchange.give_place_back()
            seconds = time.monotonic() - started
            method = method if method in _METHODS else "other"
            route = name_of_route(exchange.scope)
            REQUESTS.add(method, route, exchange.status, seconds)
            self.log.add(method, route, exchange.status, seconds, exchange.request_id)

    def _begin(self, scope: Scope, receive: Receive, send: Send) -> "_Exchange":
        if scope["method"] == "HEAD":
            # Routes only know GET. The server looks at its own scope, so it still sends no body.
            scope = {**scope, "method": "GET"}
        headers = dict(scope["headers"])
        if self.behind_edge:
            _believe_the_edge(scope, headers)
        given = headers.get(b"x-request-id", b"")
        is_usable = _USABLE_ID.fullmatch(given)
        request_id = given.decode() if is_usable else f"{self.id_prefix}-{next(self.numbers)}"
        current_request_id.set(request_id)
        body = None
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            body = RequestBody(scope, receive, headers, self.max_body_bytes)
            receive = body.receive
        task = asyncio.current_task()
        return _Exchange(self, scope, receive, send, request_id, body, task, scope["app"])

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.behind_edge:
            _believe_the_edge(scope, dict(scope["headers"]))
        if refusal := self.guard.refusal(scope):
            await refuse_websocket(refusal, scope, receive, send)
            return
        task = asyncio.current_task()
        self.sockets.add(task)
        try:
            await self.app(scope, receive, send)
        except WebSocketDisconnect:
            # The usual end of a loop that receives or sends.
            return
        except asyncio.CancelledError:
            if not self.is_stopping():
                raise
        finally:
            self.sockets.discard(task)

    def _stop(self) -> None:
        """End what would never end by itself; the server waits for everything else."""
        for task in self.event_streams:
            task.cancel()
        for task in self.sockets:
            asyncio.get_running_loop().call_later(SOCKET_SECONDS, task.cancel)


@dataclass(eq=False, repr=False, slots=True)
class _Exchange:
    """A request and its answer, as far as it is known."""

    middleware: RequestMiddleware
    scope: Scope
    receive: Receive
    send_on: Send
    request_id: str
    body: RequestBody | None
    task: Any
    app: FastAPI
    """Kept here, because a mounted application puts itself into the scope."""
    status: int = 0
    is_complete: bool = False
    place: asyncio.TimerHandle | None = None

    def let_answer(self, app: ASGIApp) -> Awaitable[None]:
        """Let this application or response answer the request."""
        return app(self.scope, self.receive, self.send)

    async def end_because_of_stop(self) -> None:
        """End an event stream as if it were complete; answer 503 if there is no answer yet."""
        self.task.uncancel()
        if self.task in self.middleware.event_streams:
            await self.send_on({"type": "http.response.body"})
        elif not self.status:
            detail = "The server is stopping. Look whether this was done before you send it again."
            await self.let_answer(self.middleware.cors(_unavailable(detail)))

    async def end_because_of(self, error: Exception) -> None:
        """Let the application's own handler answer, or answer 500; raise if it is too late."""
        # A mounted application answers by itself, and raises afterwards.
        if self.is_complete:
            return
        if self.status:
            raise error
        request = Request(self.scope, self.receive)
        answer = await answer_of_own_handler(self.app, request, error)
        if answer is None:
            detail = f"Internal error. The log tells more under the id {self.request_id}."
            answer = JSONResponse({"detail": detail}, 500)
        await self.let_answer(self.middleware.cors(answer))

    def takes_place(self) -> bool:
        """Take a place for a moment, if one is free; return whether this need not wait for one."""
        if self.middleware.limiter.try_to_enter():
            self._hold_place()
            return True
        path = path_of(self.scope)
        is_state = path in ("/", "/status") or path.startswith("/health")
        return is_state or self.scope["method"] == "OPTIONS"

    async def wait_for_place(self) -> JSONResponse | None:
        """Take a place as soon as one is free; return what to answer if that takes too long."""
        try:
            await self.middleware.limiter.enter()
        except NoPlace:
            return _unavailable("Too many requests are waiting; nothing was stored.")
        self._hold_place()
        return None

    def _hold_place(self) -> None:
        self.place = asyncio.get_running_loop().call_later(HOLD_SECONDS, self.give_place_back)

    def give_place_back(self) -> None:
        """Let the next request in, if this one still has a place."""
        if self.place is not None:
            self.place.cancel()
            self.place = None
            self.middleware.limiter.leave()

    # A plain function, because an `async def` would add a coroutine to every message.
    def send(self, message: Message) -> Awaitable[None]:
        """Send a message of the answer, with the headers that every answer has."""
        body = self.body
        if body is not None:
            message = body.explained(message)
        if message["type"] == "http.response.start":
            self.give_place_back()
            self._start(message)
        elif message["type"] == "http.response.body":
            self.is_complete = not message.get("more_body", False)
            if self.is_complete and body is not None and not body.is_complete:
                return body.end_answer(self.send_on, message)
        return self.send_on(message)

    def _start(self, message: Message) -> None:
        middleware = self.middleware
        self.status = message["status"]
        own_id = (b"x-request-id", self.request_id.encode())
        headers = message["headers"] = [*message["headers"], own_id]
        present = dict(headers)
        headers += middleware.headers.missing_from(present)
        if path_of(self.scope).startswith("/api/") and middleware.is_fallback():
            headers.append((b"x-database", b"fallback"))
        if self.body is not None and not self.body.is_complete:
            headers.append((b"connection", b"close"))
        if present.get(b"content-type", b"").startswith(_ENDLESS):
            middleware.event_streams.add(self.task)
            if middleware.is_stopping():
                self.task.cancel()


def _unavailable(detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, 503, {"Retry-After": "2"})


def _believe_the_edge(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Set scheme and client as the Hub's proxy saw them.

    The proxy accepts only https, and appends the real client to any X-Forwarded-For it receives.
    """
    scope["scheme"] = "wss" if scope["type"] == "websocket" else "https"
    address = headers.get(b"x-forwarded-for", b"").rpartition(b",")[2].strip()
    if _ADDRESS.fullmatch(address):
        scope["client"] = (address.decode(), 0)
