"""Interactive API docs at /docs that do not need a CDN: Swagger UI comes from a package.

describe() adds to the OpenAPI schema what all routes have in common.
"""

import html
import importlib.util
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, Response
from fastapi.routing import iter_route_contexts

from space_runtime.http.access import SAFE_METHODS, Access, access_to
from space_runtime.http.errors import DESCRIPTIONS, RETRY_AFTER, Problem
from space_runtime.http.policy import content_security_policy

router = APIRouter(include_in_schema=False)

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: API docs</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<nav class="swagger-ui"><p class="wrapper"><a href="status">&larr; Status of {title}</a></p></nav>
<main id="swagger-ui"></main>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: true,
});
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
"""
_TOKEN = {
    "APIToken": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Token",
        "description": "The value of API_TOKEN. While it is not set, these writes are refused.",
    },
    "APITokenBearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "The same; not on a private Space, where the Hub uses this header itself.",
    },
}
_REQUEST_ID = {"description": "The request's id in the log", "schema": {"type": "string"}}
_DATABASE = {
    "description": "Only while SQLite serves because PostgreSQL could not",
    "schema": {"const": "fallback"},
}
# Swagger UI draws its icons from data URLs.
_POLICY = "img-src 'self' data:"


@router.get("/docs")
async def page(request: Request) -> Response:
    """Return the page."""
    policy = content_security_policy(extra=_POLICY)
    text = _PAGE.format(title=html.escape(request.app.title))
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


@router.get("/docs/start.js")
async def start() -> Response:
    """Return the script that starts Swagger UI; the policy would block it if it were inline."""
    return Response(_START, media_type="text/javascript")


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    """Return one of Swagger UI's files."""
    package = importlib.util.find_spec("fastapi_offline")
    if name not in _ASSETS or package is None or package.origin is None:
        raise HTTPException(404)
    return FileResponse(Path(package.origin).parent / "static" / name)


def describe(app: FastAPI, *, writes_are_open: bool, is_limited: bool) -> None:
    """Document in the OpenAPI schema what the middleware adds: who may call, limits, headers."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            accesses = {
                (route.path_format, method): access_to(route)
                for route in iter_route_contexts(app.routes)
                for method in route.methods or ()
            }
            _complete(build(), accesses, writes_are_open, is_limited)
        # FastAPI caches the schema, so this returns the completed one.
        return build()

    app.openapi = openapi  # type: ignore[method-assign]  # As in FastAPI's manual.


def _complete(
    schema: dict[str, Any],
    accesses: dict[tuple[str | None, str], Access],
    writes_are_open: bool,
    is_limited: bool,
) -> None:
    components = schema.setdefault("components", {})
    components.setdefault("schemas", {})["Problem"] = Problem.model_json_schema()
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            statuses = [500]
            if method.upper() not in SAFE_METHODS:
                access = accesses.get((path, method.upper()), Access())
                security = operation.setdefault("security", [])
                if not (access.is_public or access.is_protected or writes_are_open):
                    components["securitySchemes"] = _TOKEN | components.get("securitySchemes", {})
                    operation["security"] = [*security, *({name: []} for name in _TOKEN)]
                if access.schemes or not access.is_public:
                    statuses += [401, 403]
                if access.is_public and is_limited:
                    statuses.append(429)
            if "requestBody" in operation:
                statuses += [400, 413]
            responses = operation["responses"]
            for status in statuses:
                general: dict[str, Any] = {"description": DESCRIPTIONS[status], "content": problem}
                if status == 429:
                    general["headers"] = {"Retry-After": RETRY_AFTER}
                # What the route itself says about a status is more specific, so it wins.
                responses[str(status)] = general | responses.get(str(status), {})
            for response in responses.values():
                headers = response.setdefault("headers", {})
                headers["X-Request-ID"] = _REQUEST_ID
                if path.startswith("/api/"):
                    headers["X-Database"] = _DATABASE
