"""Who may write. A pure ASGI middleware, so that the answer comes before path and body are read."""

import hmac
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

SAFE_METHODS = frozenset(["GET", "HEAD", "OPTIONS", "TRACE"])


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


def describe_token(app: FastAPI) -> None:
    """Let the OpenAPI schema say that writes take a token, so that the API docs can ask for it."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        schema = describe()
        scheme = {
            "type": "apiKey",
            "in": "header",
            "name": "X-API-Token",
            "description": "What API_TOKEN is set to. Where it is not set, no token is needed, "
            "or on a Space none is accepted.",
        }
        schema.setdefault("components", {})["securitySchemes"] = {"APIToken": scheme}
        for path in schema["paths"].values():
            for method, operation in path.items():
                if method.upper() not in SAFE_METHODS:
                    operation["security"] = [{"APIToken": []}]
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's manual does it
