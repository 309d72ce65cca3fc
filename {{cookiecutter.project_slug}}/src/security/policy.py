"""What browsers may do with an answer, who may write, and how many may come in at a time.

The last two are pure ASGI middleware, so that they decide before path and body are looked at.
"""

import asyncio
import hmac
from collections import deque
from collections.abc import Mapping

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
    """Lets writes pass that carry the token; without a token, only where no stranger can reach."""

    def __init__(self, app: ASGIApp, *, token: str | None, on_space: bool) -> None:
        self._app = app
        self._token = token
        self._on_space = on_space

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http" or scope["method"] in SAFE_METHODS:
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(dict(scope["headers"]))
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, headers: Mapping[bytes, bytes]) -> JSONResponse | None:
        if self._token is None:
            if not self._on_space:
                return None
            return JSONResponse(
                {"detail": "Writes are off: set the secret API_TOKEN in this Space's settings."},
                403,
            )
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
    """Refuses long URLs and headers; first come, first served; / and /health do not wait.

    Hundreds of requests at once would each be parsed, routed and validated before the event loop
    came round to anything else. A place is free again when its request is answered, or after
    HOLD_SECONDS if others wait: an endpoint that waits for a slow model does not keep them out.
    Who cannot come in within MAX_WAIT_SECONDS is answered 503.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # each place that is taken, and since when; the oldest first
        self._taken: dict[object, float] = {}
        self._waiting: deque[asyncio.Future[object]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on when there is a place."""
        if scope["type"] == "http" and (refusal := _refuse_if_long(scope)):
            await refusal(scope, receive, send)
            return
        if scope["type"] != "http" or scope["path"] == "/" or scope["path"].startswith("/health"):
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        place = self._take(loop) if len(self._taken) < PLACES else await self._wait(loop)
        if place is None:
            detail = "Too many requests are waiting; nothing was stored."
            refusal = JSONResponse({"detail": detail}, 503, headers={"Retry-After": "2"})
            await refusal(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._taken.pop(place, None)
            self._let_in(loop)

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> object | None:
        """Return a place, or None if none is free in time."""
        if len(self._waiting) >= MAX_WAITING:
            return None
        turn: asyncio.Future[object] = loop.create_future()
        self._waiting.append(turn)
        self._watch(loop)
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                return await turn
        except TimeoutError:
            return None

    def _take(self, loop: asyncio.AbstractEventLoop) -> object:
        place = object()
        self._taken[place] = loop.time()
        return place

    def _let_in(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting and len(self._taken) < PLACES:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(self._take(loop))

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Free the oldest place when its time is up; nothing needs a timer while nobody waits."""
        if self._timer is None and self._waiting:
            oldest = next(iter(self._taken.values()))
            self._timer = loop.call_at(oldest + HOLD_SECONDS, self._free_overdue, loop)

    def _free_overdue(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        overdue = loop.time() - HOLD_SECONDS
        for place in [place for place, since in self._taken.items() if since <= overdue]:
            del self._taken[place]
        self._let_in(loop)
        self._watch(loop)
