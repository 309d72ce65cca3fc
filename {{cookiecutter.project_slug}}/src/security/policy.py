"""What browsers may do with an answer, who may write, and how many may come in at a time."""

import asyncio
import contextlib
import hmac
from collections import deque

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from src.config.settings import Space, read_space

SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS", "TRACE"])
MAX_URL_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024
PLACES = 16
HOLD_SECONDS = 0.1
MAX_WAITING = 1_000
MAX_WAIT_SECONDS = 5.0


def security_headers(space: Space) -> dict[str, str]:
    """Return the headers that an answer gets unless it brings its own."""
    return {
        "Content-Security-Policy": content_security_policy(space),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "strict-origin-when-cross-origin",
    }


def content_security_policy(space: Space | None = None, *, extra: str = "") -> str:
    """Return a policy: nothing from other hosts, framed only by the Hub, which shows Spaces so.

    `extra` holds further directives for one page.
    """
    space = space or read_space()
    ancestors = ["'self'", "https://huggingface.co"]
    if space.host:
        ancestors.append(f"https://{space.host}")
    directives = [
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "object-src 'none'",
        f"frame-ancestors {' '.join(ancestors)}",
        extra,
    ]
    return "; ".join(filter(None, directives))


class WriteGuard:
    """Knows who may write: who sends the token; without one, whoever comes, but not on a Space."""

    def __init__(self, *, token: str | None, on_space: bool) -> None:
        self._token = token
        self._on_space = on_space

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the answer to a request without a right to what it asks; None lets it pass."""
        if scope["method"] in SAFE_METHODS:
            return None
        if self._token is None:
            if not self._on_space:
                return None
            return JSONResponse(
                {"detail": "Writes are off: set the secret API_TOKEN in this Space's settings."},
                403,
            )
        headers = dict(scope["headers"])
        # the Hub itself uses Authorization on private Spaces, so X-API-Token comes first
        given = headers.get(b"x-api-token")
        if given is None:
            scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
            given = credentials.strip() if scheme.lower() == b"bearer" else None
        if given is not None and hmac.compare_digest(given, self._token.encode()):
            return None
        return JSONResponse(
            {"detail": "Writing needs the API token, in the header X-API-Token."},
            401,
            headers={"WWW-Authenticate": "Bearer"},
        )


def _refuse_if_long(scope: Scope) -> JSONResponse | None:
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
        return JSONResponse({"detail": f"The URL is longer than {MAX_URL_BYTES} bytes."}, 414)
    if sum([len(name) + len(value) for name, value in scope["headers"]]) > MAX_HEADER_BYTES:
        detail = f"The headers are longer than {MAX_HEADER_BYTES} bytes."
        return JSONResponse({"detail": detail}, 431)
    return None


class Entrance:
    """Refuses who may not write, and long URLs and headers; the others come in, not all at once.

    First come, first served; / and /health do not wait. Hundreds of requests at once would each be
    parsed, routed and validated before the event loop came round to anything else. Who cannot come
    in within MAX_WAIT_SECONDS is answered 503. One pure ASGI middleware for all of this decides
    before path and body are looked at, and costs little.
    """

    def __init__(self, app: ASGIApp, *, guard: WriteGuard) -> None:
        self._app = app
        self._guard = guard
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when there is a place."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._guard.refusal(scope) or _refuse_if_long(scope)
        if refusal is not None or scope["path"] == "/" or scope["path"].startswith("/health"):
            await (refusal or self._app)(scope, receive, send)
            return
        if self._inside < PLACES:
            self._inside += 1
        elif not await self._comes_in():
            detail = "Too many requests are waiting; nothing was stored."
            refusal = JSONResponse({"detail": detail}, 503, headers={"Retry-After": "2"})
            await refusal(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._inside -= 1
            if self._waiting and self._inside < PLACES:
                self._let_one_in()

    async def _comes_in(self) -> bool:
        """Wait for a place; return whether there was one in time."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._watch()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                await turn
        return not turn.cancelled()

    def _let_one_in(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                self._inside += 1
                turn.set_result(None)
                return

    def _watch(self) -> None:
        """While some wait, let one more in now and then: endpoints may wait for a slow model."""
        if self._timer is None and self._waiting:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(HOLD_SECONDS / PLACES, self._let_one_more_in)

    def _let_one_more_in(self) -> None:
        self._timer = None
        self._let_one_in()
        self._watch()
