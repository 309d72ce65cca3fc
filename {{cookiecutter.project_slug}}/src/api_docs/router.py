"""Interactive API docs at /docs that need no other host: Swagger UI comes from a package."""

import html
import importlib.util
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from src.security.policy import content_security_policy

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
<nav class="swagger-ui"><p class="wrapper"><a href="./">&larr; Status of {title}</a></p></nav>
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
# Swagger UI draws its icons from data URLs
_POLICY = "img-src 'self' data:"


@router.get("/docs")
async def page(request: Request) -> Response:
    """Return the page."""
    policy = content_security_policy(extra=_POLICY)
    text = _PAGE.format(title=html.escape(request.app.title))
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


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
