"""What browsers may do with an answer, who may write, and how much may come in at a time."""

import asyncio
import hmac
from collections import deque
from collections.abc import Callable
from functools import partial

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Scope

from src.config.settings import Space, read_space

SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS", "TRACE"])
MAX_URL_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024
PLACES = 16
HOLD_SECONDS = 0.1
MAX_WAITING = 1_000
MAX_WAIT_SECONDS = 5.0


def security_headers(space: Space, *, of_data: bool = False) -> dict[str, str]:
    """Return the headers that a page, or data, gets unless it brings its own."""
    return {
        "Content-Security-Policy": content_security_policy(space, of_data=of_data),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
    }


def content_security_policy(
    space: Space | None = None, *, of_data: bool = False, extra: str = ""
) -> str:
    """Return a policy: nothing from other hosts, framed only by the Hub, which shows Spaces so.

    Data loads nothing at all. `extra` holds further directives for one page.
    """
    space = space or read_space()
    ancestors = ["'self'", "https://huggingface.co"]
    if space.host:
        ancestors.append(f"https://{space.host}")
    directives = (
        ["default-src 'none'"]
        if of_data
        else ["default-src 'self'", "base-uri 'none'", "form-action 'self'", "object-src 'none'"]
    )
    directives.append(f"frame-ancestors {' '.join(ancestors)}")
    return "; ".join(filter(None, [*directives, extra]))


def cross_origin_rules(origins: str | None) -> Callable[[ASGIApp], ASGIApp]:
    """Return what is put around an application so that pages of these origins may use it.

    `origins` holds them separated by commas; None allows no other origin.
    """
    if not origins:
        return lambda app: app
    return partial(
        CORSMiddleware,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Location", "Retry-After", "X-Database", "X-Request-ID"],
    )


class WriteGuard:
    """Knows who may write: who sends the token; without one, whoever comes, but not on a Space."""

    def __init__(self, *, token: str | None, on_space: bool) -> None:
        self._token = token
        self._on_space = on_space

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the answer to a write without a right to it; None lets it pass."""
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


class Entrance:
    """Refuses who may not write, and long URLs and headers; lets the others in, not all at once.

    First come, first served. Hundreds at once would each be parsed, routed and validated before the
    event loop came round to anything else.
    """

    def __init__(self, guard: WriteGuard) -> None:
        self._guard = guard
        self._inside = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the answer to a request that may not come in at all; None lets it pass."""
        if scope["method"] not in SAFE_METHODS and (refusal := self._guard.refusal(scope)):
            return refusal
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
            return JSONResponse({"detail": f"The URL is longer than {MAX_URL_BYTES} bytes."}, 414)
        header_bytes = 0
        for name, value in scope["headers"]:
            header_bytes += len(name) + len(value)
        if header_bytes > MAX_HEADER_BYTES:
            detail = f"The headers are longer than {MAX_HEADER_BYTES} bytes."
            return JSONResponse({"detail": detail}, 431)
        return None

    def enter(self) -> bool:
        """Take a place and return True, or return False because none is free."""
        if self._inside >= PLACES:
            return False
        self._inside += 1
        return True

    async def wait(self) -> bool:
        """Wait for a place and take it; return False if too many wait, or none comes in time."""
        if len(self._waiting) >= MAX_WAITING:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._watch()
        try:
            async with asyncio.timeout(MAX_WAIT_SECONDS):
                await turn
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.leave()
            raise
        return not turn.cancelled()

    def leave(self) -> None:
        """Give a place back."""
        self._inside -= 1
        if self._waiting and self._inside < PLACES:
            self._let_one_in()

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
