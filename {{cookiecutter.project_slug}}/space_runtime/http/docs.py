"""Interactive API docs at /docs that do not need a CDN: Swagger UI comes from a package.

describe() adds to the OpenAPI schema what all routes have in common.
"""

import importlib.util
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, Response
from fastapi.routing import iter_route_contexts

from space_runtime.http.access import SAFE_METHODS, Access, access_to
from space_runtime.http.errors import DESCRIPTIONS, RETRY_AFTER, Problem
from space_runtime.http.templates import page

router = APIRouter(include_in_schema=False)

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")
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


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Return the page."""
    return page("docs.html", {"title": request.app.title})


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    """Return one of Swagger UI's files."""
    package = importlib.util.find_spec("fastapi_offline")
    if name not in _ASSETS or package is None or package.origin is None:
        raise HTTPException(404)
    return FileResponse(Path(package.origin).parent / "static" / name)


def describe(app: FastAPI, *, writes_are_open: bool, is_limited: bool) -> None:
    """Document in the OpenAPI schema what the middleware adds: who may call, limits, headers."""
    build, described = app.openapi, dict[str, Any]()

    def openapi() -> dict[str, Any]:
        nonlocal described
        # FastAPI returns the same schema until routes are added.
        if (schema := build()) is not described:
            described = schema
            accesses = {
                (route.path_format, method.lower()): access_to(route)
                for route in iter_route_contexts(app.routes)
                for method in route.methods or ()
            }
            _complete(schema, accesses, writes_are_open, is_limited)
        return schema

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
                access = accesses.get((path, method), Access())
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
