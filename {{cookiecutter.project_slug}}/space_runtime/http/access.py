"""Who may write, and which requests are too long."""

import hmac

from starlette.responses import JSONResponse
from starlette.types import Scope

SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS", "TRACE"])
MAX_URL_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024


class WriteGuard:
    """Allows writes with the token. If none is set, everybody may write, except on a Space."""

    def __init__(self, *, token: str | None, on_space: bool) -> None:
        self._token = token
        self._on_space = on_space

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the answer to a write that is not allowed, or None to let the request pass."""
        if scope["method"] in SAFE_METHODS:
            return None
        if self._token is None:
            if not self._on_space:
                return None
            detail = "Writes are off: set the secret API_TOKEN in this Space's settings."
            return JSONResponse({"detail": detail}, 403)
        headers = dict(scope["headers"])
        # Checked first, because on private Spaces the Hub itself uses Authorization.
        given = headers.get(b"x-api-token")
        if given is None:
            scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
            given = credentials.strip() if scheme.lower() == b"bearer" else b""
        if hmac.compare_digest(given, self._token.encode()):
            return None
        detail = "Writing needs the API token, in the header X-API-Token."
        return JSONResponse({"detail": detail}, 401, headers={"WWW-Authenticate": "Bearer"})


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
