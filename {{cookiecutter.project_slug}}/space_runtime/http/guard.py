"""Refuses writes without a right to them, and requests that are too long."""

import hmac

from starlette import status
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

from space_runtime.http.access import SAFE_METHODS
from space_runtime.http.rate_limit import RateLimit, client_at
from space_runtime.http.targets import Target, Targets

MAX_URL_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024

# The answer tells the owner how to open what was refused.
_MARKS = {
    "nothing": "its route is marked with **public",
    "route": "its route is marked with **public, as in @router.post(..., **public)",
    "plain route": "it is added with add_api_route(..., **public)",
    "WebSocket": "its route is marked with dependencies=[anybody]",
    "mount": 'the application opens it with public_mount(app, "{path}")',
}


class WriteGuard:
    """Allows writes with the token, and those that a route allows to others (access.py).

    If no token is set, all writes are allowed, but none on a Space. A WebSocket counts as a write,
    since nobody knows what it will carry when it is opened.
    """

    def __init__(
        self, app: Starlette, *, token: str | None, on_space: bool, public_limit: str
    ) -> None:
        """`public_limit` is a value of PUBLIC_LIMIT."""
        self._targets = Targets(app)
        self._token = token.encode() if token else None
        self._on_space = on_space
        self._limit = RateLimit(public_limit)

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the answer to a write that is not allowed, or None to let the request pass."""
        if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
            return None
        if self._token is not None and hmac.compare_digest(_token_in(scope), self._token):
            return None
        target = self._targets.find(scope)
        if target.kind == "nothing":
            # Redirected there, if that is a route (pages.py).
            target = self._targets.find({**scope, "path": f"{scope['path']}/"})
        if target.access.is_public:
            return self._refusal_of_many(scope)
        if target.access.is_left_to_its_own_check(scope):
            return None
        if self._token is None and not self._on_space:
            return None
        return self._refusal_of_stranger(target)

    def _refusal_of_many(self, scope: Scope) -> JSONResponse | None:
        address = (scope.get("client") or ("",))[0]
        seconds = self._limit.seconds_to_wait(client_at(address))
        if not seconds:
            return None
        detail = f"More than {self._limit.rule} from one client; try again in {seconds} s."
        return JSONResponse({"detail": detail}, 429, {"Retry-After": str(seconds)})

    def _refusal_of_stranger(self, target: Target) -> JSONResponse:
        code, headers = 401, {"WWW-Authenticate": "Bearer"}
        if target.access.schemes:
            names = " or ".join(scheme.scheme_name for scheme in target.access.schemes)
            why = f"This needs credentials ({names})."
        elif self._token is not None:
            why = "Writing needs the API token, in the header X-API-Token."
        else:
            why = "Writes are off: set the secret API_TOKEN in this Space's settings, and send it."
            code, headers = 403, {}
        mark = _MARKS[target.kind].format(path=target.path)
        if target.mount:
            mark += f', or all below {target.mount} with public_mount(app, "{target.mount}")'
        return JSONResponse({"detail": f"{why} Anybody may call it if {mark}."}, code, headers)


def _token_in(scope: Scope) -> bytes:
    headers = dict(scope["headers"])
    # Looked at first, because on private Spaces the Hub itself uses Authorization.
    if (token := headers.get(b"x-api-token")) is not None:
        return bytes(token)
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    return credentials.strip() if scheme.lower() == b"bearer" else b""


async def refuse_websocket(
    refusal: JSONResponse, scope: Scope, receive: Receive, send: Send
) -> None:
    """Send the answer, or a bare 403 if the server cannot send one in place of a WebSocket."""
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
