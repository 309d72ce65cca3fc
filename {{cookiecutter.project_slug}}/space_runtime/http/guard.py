"""Refuses writes without a right to them, and requests that are too long."""

import hmac
from functools import cached_property
from typing import TYPE_CHECKING

from starlette import status
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from space_runtime.http.access import SAFE_METHODS
from space_runtime.http.targets import Target, Targets

if TYPE_CHECKING:
    from space_runtime.http.public_limit import PublicLimit

MAX_URL_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024

# How the owner opens what a stranger was refused, which on a Space is learnt from the answer.
_MARKS = {
    "nothing": "its route is marked with **public",
    "route": "its route is marked with **public, as in @router.post(..., **public)",
    "WebSocket": "its route is marked with dependencies=[anybody]",
    "mount": 'the application opens it with public_mount(app, "{path}")',
}


class WriteGuard:
    """Allows writes with the token, and what `access` says. Without a token all, unless on a Space.

    A WebSocket counts as a write, since what it will carry cannot be known when it is opened.
    """

    def __init__(
        self, app: Starlette, *, token: str | None, on_space: bool, public_limit: str
    ) -> None:
        """`public_limit` is a value of PUBLIC_LIMIT."""
        self._targets = Targets(app)
        self._token = token.encode() if token else None
        self._on_space = on_space
        self._public_limit = public_limit

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the answer to a write that is not allowed, or None to let the request pass."""
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
            return None
        if self._token is not None and self._has_token(scope, self._token):
            return None
        target = self._targets.find(scope)
        if target.access.is_public:
            return self._refusal_of_many(scope)
        if target.access.is_left_to_its_own_check(scope):
            return None
        if self._token is None and not self._on_space:
            return None
        return self._refusal_of_stranger(target)

    def _has_token(self, scope: Scope, token: bytes) -> bool:
        headers = dict(scope["headers"])
        # Checked first, because on private Spaces the Hub itself uses Authorization.
        given = headers.get(b"x-api-token")
        if given is None:
            scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
            given = credentials.strip() if scheme.lower() == b"bearer" else b""
        return hmac.compare_digest(given, token)

    def _refusal_of_many(self, scope: Scope) -> JSONResponse | None:
        if self._public_limit == "off":
            return None
        address = (scope.get("client") or ("",))[0]
        seconds = self._limit.seconds_to_wait(address)
        if not seconds:
            return None
        detail = f"More than {self._public_limit} from one client; try again in {seconds} s."
        return JSONResponse({"detail": detail}, 429, {"Retry-After": str(seconds)})

    @cached_property
    def _limit(self) -> "PublicLimit":
        from space_runtime.http.public_limit import PublicLimit

        return PublicLimit(self._public_limit)

    def _refusal_of_stranger(self, target: Target) -> JSONResponse:
        open_it = f"Anybody may call it if {_MARKS[target.kind].format(path=target.path)}."
        if target.access.schemes:
            names = " or ".join(scheme.scheme_name for scheme in target.access.schemes)
            detail = f"This needs credentials ({names}). {open_it}"
        elif self._token is None:
            detail = (
                "Writes are off: set the secret API_TOKEN in this Space's settings, and send it. "
                + open_it
            )
            return JSONResponse({"detail": detail}, 403)
        else:
            detail = f"Writing needs the API token, in the header X-API-Token. {open_it}"
        return JSONResponse({"detail": detail}, 401, {"WWW-Authenticate": "Bearer"})


async def refuse_websocket(
    refusal: JSONResponse, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer instead of opening it, or where the server cannot do that, close it: that is a 403."""
    if "websocket.http.response" in scope.get("extensions", {}):
        await refusal(scope, receive, send)
    else:
        await WebSocketClose(status.WS_1008_POLICY_VIOLATION)(scope, receive, send)


def refusal_of_long(scope: Scope) -> JSONResponse | None:
    """Return the answer to a request with a very long URL or headers, or None to let it pass."""
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URL_BYTES:
        return JSONResponse({"detail": f"The URL is longer than {MAX_URL_BYTES} bytes."}, 414)
    header_bytes = 0
    for name, value in scope["headers"]:  # Twice as fast as sum().
        header_bytes += len(name) + len(value)
    if header_bytes > MAX_HEADER_BYTES:
        detail = f"The headers are longer than {MAX_HEADER_BYTES} bytes."
        return JSONResponse({"detail": detail}, 431)
    return None
