"""Interactive API docs at /docs that need no other host: Swagger UI comes from a package."""

import importlib.util
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, Response

from src.security.headers import content_security_policy

router = APIRouter(include_in_schema=False)

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API docs</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
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
"""
# Swagger UI sets styles on its elements and draws its icons from data URLs
_POLICY = "style-src 'self' 'unsafe-inline'; img-src 'self' data:"


@router.get("/docs")
async def page() -> Response:
    """Return the page."""
    policy = content_security_policy(extra=_POLICY)
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": policy})


@router.get("/docs/start.js")
async def start() -> Response:
    """Return the script that starts Swagger UI; inline, the policy would refuse it."""
    return Response(_START, media_type="text/javascript")


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    """Return one of Swagger UI's files."""
    package = importlib.util.find_spec("fastapi_offline")
    if name not in _ASSETS or package is None or package.origin is None:
        raise HTTPException(404)
    return FileResponse(Path(package.origin).parent / "static" / name)
